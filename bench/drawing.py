"""The style of the reports' figures, and their bars."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

STYLE = {
    "svg.hashsalt": "pagefill",  # the same numbers give the same file
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e5e5",
    "legend.frameon": False,
}


def save(figure: plt.Figure, path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = path.read_text()
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n")
    return path.name


def grouped_bars(
    axes: plt.Axes, labels: list[str], series: dict[str, dict[int, float]], colours: dict[str, str]
) -> None:
    """A group of bars over each label, one bar of each series where it has a height for that position."""
    width = 0.84 / len(series)
    for index, (name, heights) in enumerate(series.items()):
        offset = (index - (len(series) - 1) / 2) * width
        positions = [position + offset for position in heights]
        axes.bar(positions, list(heights.values()), width * 0.92, label=name, color=colours[name])
    axes.grid(axis="x", visible=False)
    axes.set_xticks(range(len(labels)), labels)
