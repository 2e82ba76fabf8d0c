"""What the reports are made of."""

from __future__ import annotations

import os
from pathlib import Path

README = Path(__file__).resolve().parent / "README.md"


def table(heading: list[str], rows: list[list[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def image(title: str, name: str | None) -> str:
    return f"![{title}](figures/{name})\n" if name else ""


def link_to_readme(folder: Path) -> str:
    """From a report in `folder`, which may be any."""
    return f"[README.md]({os.path.relpath(README, folder)})"


def in_cell(text: str) -> str:
    """On one line, with no end of a cell in it."""
    return " ".join(text.split()).replace("|", "\\|")
