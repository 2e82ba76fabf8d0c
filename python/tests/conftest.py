"""Where the golden cases are, and what a test may ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = sorted((REPOSITORY / "tests" / "golden").rglob("*.safetensors"))


@pytest.fixture(params=GOLDEN, ids=lambda path: path.stem)
def golden_file(request: pytest.FixtureRequest) -> Path:
    """Each case of tests/golden/."""
    path: Path = request.param
    return path
