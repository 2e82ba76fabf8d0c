"""The `pagefill` command: the program inside the package, in place of this process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

PROGRAM = Path(__file__).resolve().parent / "bin" / "pagefill"


def main() -> None:
    """Runs the program with this process's arguments; does not return."""
    os.execv(PROGRAM, ["pagefill", *sys.argv[1:]])
