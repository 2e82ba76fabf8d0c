"""Golden cases: ejkernel's inputs, the formula's results in float64, and the command's bits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import case_file
import pytest
from cases import assert_close, bits, golden

import pagefill

TARGETS = [
    (backend.name, target.name if target else None)
    for backend in pagefill.list_backends()
    if backend.memory == "cpu"
    for target in (backend.targets or (None,))
    if target is None or target.available
]


@pytest.mark.parametrize(("backend", "cpu_target"), TARGETS)
def test_golden_cases_are_met_within_rounding(
    golden_file: Path, backend: str, cpu_target: str | None
) -> None:
    case = golden(golden_file)
    output, lse = pagefill.prefill_page_attention(
        *case.arguments, **case.options, return_lse=True, backend=backend, cpu_target=cpu_target
    )
    assert output.dtype == case.query.dtype
    assert_close(case, output, lse)


def test_the_bits_are_those_of_the_command(golden_file: Path, tmp_path: Path) -> None:
    case = golden(golden_file)
    result = tmp_path / "out.safetensors"
    program = Path(sys.executable).parent / "pagefill"
    subprocess.run([program, "run", golden_file, "-o", result], check=True, capture_output=True)
    wanted, _ = case_file.load(result)
    output, lse = pagefill.prefill_page_attention(*case.arguments, **case.options, return_lse=True)
    assert bits(output) == bits(wanted["output"])
    assert bits(lse) == bits(wanted["lse"])
