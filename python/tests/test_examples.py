"""Every example runs, and checks itself."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "python"
NEEDS = {"jax": "jax", "torch": "torch", "ejkernel": "ejkernel"}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_runs(path: Path) -> None:
    for word, module in NEEDS.items():
        if word in path.stem:
            pytest.importorskip(module)
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    result = subprocess.run([sys.executable, path], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout


@pytest.mark.parametrize("document", ["README.md", "docs/python.md"])
def test_the_python_of_the_documents_runs(document: str) -> None:
    text = (EXAMPLES.parents[1] / document).read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        modules = set(NEEDS) & set(re.findall(r"\w+", block))
        if all(importlib.util.find_spec(module) for module in modules):
            exec(block, names)
