"""What the wheel brings."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pagefill

PACKAGE = Path(pagefill.__file__).parent
REPOSITORY = Path(__file__).resolve().parents[2]


def run(
    *command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)


def test_the_version_is_that_of_cmake() -> None:
    text = (REPOSITORY / "CMakeLists.txt").read_text()
    [version] = re.findall(r"project\(pagefill VERSION ([0-9.]+)", text)
    assert pagefill.__version__ == importlib.metadata.version("pagefill") == version


def test_the_command_is_the_program_of_the_package() -> None:
    program = Path(sys.executable).parent / "pagefill"
    info = run(program, "info")
    assert info.returncode == 0
    assert info.stdout.startswith(f"pagefill {pagefill.__version__}\n")
    assert run(program, "run", "no-such-file").returncode == 2


def test_the_terms_of_all_that_is_brought_along_are_in_it() -> None:
    """Those of the library's and the command's own parts, and the Apache licence that two refer to."""
    terms = {file.name for file in (PACKAGE / "lib" / "licenses").iterdir()}
    packages = ("libhwy-dev", "libtbb-dev", "libfmt-dev", "libcli11-dev", "nlohmann-json3-dev")
    assert {f"{name}.txt" for name in (*packages, "Apache-2.0")} <= terms


def test_numpy_is_the_only_requirement() -> None:
    requirements = importlib.metadata.requires("pagefill")
    assert requirements is not None
    assert [r for r in requirements if "extra" not in r] == ["numpy>=1.26"]
    code = (
        "import sys, pagefill; "
        "print([m for m in ('jax', 'torch', 'ejkernel', 'ml_dtypes') if m in sys.modules])"
    )
    assert run(sys.executable, "-c", code).stdout == "[]\n"


def test_ml_dtypes_is_asked_for_only_where_a_result_needs_it() -> None:
    code = """
import sys
sys.modules["ml_dtypes"] = None
import numpy as np, pagefill
x, cache = np.ones((1, 1, 8), "f4"), np.ones((1, 1, 1, 8), "f4")
pagefill.prefill_page_attention(x, cache, cache, 1, [0])
from pagefill._c import dtypes, library
try:
    dtypes.numpy_dtype(library.DTYPES["bfloat16"])
except TypeError as error:
    print(error)
"""
    result = run(sys.executable, "-c", code)
    assert "or the package ml_dtypes for bfloat16" in result.stdout, result.stderr


def test_a_library_that_is_not_there_is_an_import_error_that_says_so() -> None:
    environment = {"PAGEFILL_LIBRARY": "/nowhere/libpagefill.so"}
    result = run(sys.executable, "-c", "import pagefill", env=environment)
    assert result.returncode == 1
    assert "ImportError: pagefill: expected the library of the variable" in result.stderr


def test_a_file_that_is_no_library_is_an_import_error_that_names_variable_and_file() -> None:
    environment = {"PAGEFILL_LIBRARY": __file__}
    result = run(sys.executable, "-c", "import pagefill", env=environment)
    assert result.returncode == 1
    named = f"expected the library of the variable PAGEFILL_LIBRARY at {__file__} to be one"
    assert f"ImportError: pagefill: {named}" in result.stderr


def test_another_library_is_an_import_error_that_names_variable_and_file() -> None:
    maps = Path("/proc/self/maps").read_text().splitlines()
    libc = next(line.split()[-1] for line in maps if "libc.so" in line)
    result = run(sys.executable, "-c", "import pagefill", env={"PAGEFILL_LIBRARY": libc})
    assert result.returncode == 1
    named = f"expected the library of the variable PAGEFILL_LIBRARY at {libc} to be libpagefill"
    assert f"ImportError: pagefill: {named}" in result.stderr


def test_a_users_file_passes_the_strict_type_checker(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    user = tmp_path / "user.py"
    user.write_text("""
import numpy as np
import numpy.typing as npt
import pagefill

x, cache = np.ones((1, 1, 8), np.float32), np.ones((1, 1, 1, 8), np.float32)
output: npt.NDArray[np.float32] = pagefill.prefill_page_attention(x, cache, cache, 1, [0])
state = pagefill.prefill_page_attention(
    x, cache, cache, np.array([1]), [0], return_lse=True, sliding_window=3, num_threads=1)
lse: npt.NDArray[np.float32] = state[1]
pagefill.merge_attention_states(*state, *state, num_threads=1)
either = pagefill.prefill_page_attention(x, cache, cache, 1, [0], return_lse=bool(x.sum()))
assert isinstance(either, tuple)
row = np.zeros(1, np.int64)
pagefill.ragged_page_attention(x, cache, cache, [np.int64(0), np.int64(1)], [np.int64(1)], [row])
pages: npt.NDArray[np.int32] = pagefill.PageAllocator(4, 2).page_indices(0)
copies: list[pagefill.PageCopy] = []
pagefill.copy_pages(copies, cache, cache)
# --strict complains of a comment that ignores no error.
pagefill.choose_backend(threads=1)  # type: ignore[call-arg]
pagefill.prefill_page_attention(x, cache, cache, "1", [0])  # type: ignore[arg-type]
""")
    result = run(sys.executable, "-m", "mypy", "--strict", user, cwd=tmp_path)
    assert result.returncode == 0, result.stdout


def test_the_package_is_whole_and_small() -> None:
    assert (PACKAGE / "py.typed").is_file()
    size = sum(file.stat().st_size for file in PACKAGE.rglob("*"))
    has_cuda = any(backend.memory == "cuda" for backend in pagefill.list_backends())
    assert size < (100e6 if has_cuda else 10e6)
