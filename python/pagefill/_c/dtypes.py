"""NumPy's dtypes, those that it lacks from ml_dtypes, by the C interface's numbers."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from pagefill._c.library import DTYPES

_FLOATS = ("float32", "bfloat16", "float16")
_ALLOWED = {
    **dict.fromkeys(("query", "keys", "output_a"), _FLOATS),
    "key_cache": (*_FLOATS, "int8", "float8_e4m3fn", "float8_e5m2"),
    "value_cache": ("of key_cache",),
    "values": ("of keys",),
    "output_b": ("of output_a",),
    "out": ("of query, or of output_a",),
    **dict.fromkeys(("query_starts", "context_lens", "page_table"), ("int32",)),
    **dict.fromkeys(("context_len", "page_indices", "kv_start", "status", "copies"), ("int32",)),
}
"""What an argument may be of, as the library has it (src/validate.cc); all others are float32."""

_NAMES = {code: name for name, code in DTYPES.items()}


def unknown_dtype(name: str, got: str) -> TypeError:
    """Of a dtype that the C interface has no number for, so that the library cannot say it."""
    return TypeError(
        f"{name}: expected dtype {' or '.join(_ALLOWED.get(name, ('float32',)))}, got {got}"
    )


@cache
def numpy_dtype(code: int) -> np.dtype[Any]:
    """NumPy's dtype of the C interface's number."""
    name = _NAMES[code]
    if name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        try:
            import ml_dtypes
        except ImportError:
            raise TypeError(
                f"out: expected an array, or the package ml_dtypes for {name}, got neither"
            ) from None
        small: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return small
    return np.dtype(name)
