"""The report's figures: the best peers' time over pagefill's, and TFLOP/s of each peer."""

from __future__ import annotations

from pathlib import Path

from ..drawing import STYLE, grouped_bars, plt, save
from .peers import PAGEFILL, PEERS
from .results import LAYOUTS, OTHERS, Result, Run

# A hue for each house, lighter for its further ways; pagefill's is the CPU report's.
COLOURS = {
    PAGEFILL.name: "#d55e00",
    "cuDNN": "#0072b2",
    "FlashAttention-2": "#999999",
    "FlashAttention-3": "#009e73",
    "FlashAttention-3, page 16": "#5cc2a5",
    "FlashAttention-3, page 128": "#b2e0d3",
    "FlashAttention-4": "#e69f00",
    "FlashAttention-4, page 16": "#f0c987",
    "FlashInfer fa3, page 16": "#8e4a73",
    "FlashInfer fa2, page 16": "#cc79a7",
    "FlashInfer fmha_v2, page 64": "#e6bcd3",
}
LAYOUT_COLOURS = dict(zip(LAYOUTS, ("#0072b2", "#009e73", "#999999")))


def _label(result: Result) -> str:
    """In short lines, for many stand side by side."""
    shape = result.case.shape
    queries, context = shape.tokens.split(" @ ")
    kind = "" if result.case.kind == "prefill" else f"\n({result.case.kind})"
    return f"{queries}\n@ {context}\n{shape.heads}/{shape.head_dim}{kind}"


def _bars(
    results: list[Result],
    series: dict[str, dict[int, float]],
    colours: dict[str, str],
    line: tuple[float, str],
    texts: tuple[str, str],
    path: Path,
) -> str | None:
    """line: its height and name. texts: the title, and what the bars count. No figure without bars."""
    series = {name: heights for name, heights in series.items() if heights}
    if not series:
        return None
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(max(8.5, 0.85 * len(results)), 3.8))
        grouped_bars(axes, [_label(result) for result in results], series, colours)
        axes.axhline(line[0], color="#444444", linewidth=0.8, label=line[1])
        axes.set_xlim(-0.6, len(results) - 0.4)  # shapes without bars as well
        axes.set_title(texts[0], loc="left", fontsize=10)
        axes.set_ylabel(texts[1])
        axes.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.27))
        return save(figure, path)


def ratios(run: Run, title: str, path: Path) -> str | None:
    series = {}
    for layout, peers in LAYOUTS.items():
        found = {i: r.ratio(r.best(peers)) for i, r in enumerate(run.results)}
        series[layout] = {i: ratio for i, ratio in found.items() if ratio is not None}
    texts = (title, "best peer's time / pagefill's")
    line = (1.0, "as fast; above it pagefill is faster")
    return _bars(run.results, series, LAYOUT_COLOURS, line, texts, path)


def prefill_rates(run: Run, title: str, path: Path) -> str | None:
    """pagefill with pages of 16: its other sizes have few of the shapes."""
    results = run.of("prefill")
    series: dict[str, dict[int, float]] = {}
    for peer in (peer for peer in PEERS if peer is PAGEFILL or peer in OTHERS):
        found = {i: r.best([peer]) for i, r in enumerate(results)}
        series[peer.name] = {
            i: results[i].case.rate(result.median)[0] for i, result in found.items() if result
        }
    line = (run.matrix_flops / 1e12, "matrix product of torch")
    return _bars(results, series, COLOURS, line, (title, "TFLOP/s"), path)
