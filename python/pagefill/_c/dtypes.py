"""NumPy's dtypes, those that it lacks from ml_dtypes, by the C interface's numbers."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from pagefill._c.library import DTYPES

_NAMES = {code: name for name, code in DTYPES.items()}


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
