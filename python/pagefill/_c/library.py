"""libpagefill: found, loaded, and its statuses as exceptions.

Functions of `lib` take packed structs (bytes), None for a null pointer and ctypes objects as they
are, so they need no argtypes, which would cost time on every call. An integer needs c_int64(...)
where the header says int64_t: ctypes passes a plain one as an int. The GIL is released while a
function runs.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

LIBRARY_FOLDER = Path(__file__).resolve().parent.parent / "lib"
"""Where a wheel has its shared libraries."""

_VARIABLE = "PAGEFILL_LIBRARY"

# pagefill_status.
_INVALID_ARGUMENT, _UNSUPPORTED, _RESOURCE_EXHAUSTED, _UNAVAILABLE = 1, 2, 3, 4


def _find() -> Path:
    """The wheel's own library, or the one that PAGEFILL_LIBRARY names, for work on pagefill
    itself."""
    named = os.environ.get(_VARIABLE)
    path = LIBRARY_FOLDER / "libpagefill.so" if named is None else Path(named)
    if not path.is_file():
        raise ImportError(f"pagefill: expected the library {_whose()} at {path}, got no such file")
    return path


def _whose() -> str:
    named = _VARIABLE in os.environ
    return f"of the variable {_VARIABLE}" if named else "of this installation"


def load(path: Path) -> ctypes.CDLL:
    """The shared library, or an error that says who named the file."""
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:  # the loader's words; of no fixed form
        raise ImportError(
            f"pagefill: expected the library {_whose()} at {path} to be one for this machine, "
            f"got: {error}"
        ) from None


def _load_ours(path: Path) -> ctypes.CDLL:
    library = load(path)
    if not hasattr(library, "pagefill_version"):
        raise ImportError(
            f"pagefill: expected the library {_whose()} at {path} to be libpagefill, "
            "got one without pagefill_version"
        )
    return library


PATH = _find()
lib = _load_ours(PATH)

for _name in ("last_error_message", "version", "dtype_name"):
    getattr(lib, f"pagefill_{_name}").restype = ctypes.c_char_p

VERSION: str = lib.pagefill_version().decode()


def _dtypes() -> dict[str, int]:
    """PAGEFILL_FLOAT32 and so on by their names. Unknown numbers have names with spaces."""
    codes: dict[str, int] = {}
    while " " not in (name := lib.pagefill_dtype_name(len(codes)).decode()):
        codes[name] = len(codes)
    return codes


DTYPES = _dtypes()
"""Number of each dtype by its name, which is also NumPy's, ml_dtypes', JAX's and torch's."""


def error(status: int, names: Mapping[str, str] = MappingProxyType({})) -> Exception:
    """The exception for the last call of this thread, which failed with that status. `names` are
    those of arguments that the caller knows by others than the library's."""
    # A name that the message repeats, as of the environment, may be in no encoding.
    message = lib.pagefill_last_error_message().decode(errors="backslashreplace")
    argument, colon, rest = message.partition(":")
    message = names.get(argument, argument) + colon + rest
    if status == _INVALID_ARGUMENT:
        return TypeError(message) if ": expected dtype " in message else ValueError(message)
    if status in (_UNSUPPORTED, _UNAVAILABLE):
        return NotImplementedError(message)
    if status == _RESOURCE_EXHAUSTED:
        return MemoryError(message)
    return RuntimeError(message)


def check(status: int, names: Mapping[str, str] = MappingProxyType({})) -> None:
    """Raises where the last call of this thread failed."""
    if status:
        raise error(status, names)
