"""Arguments, before JAX gets them: what is no array is refused by name, and NumPy's integers become
int32 by the rules of the NumPy face, where JAX would cut them to their lowest bits."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from pagefill._c import options
from pagefill._c.structs import INT32_MAX

_JAX: dict[type, bool] = {}


def _is_jax(value: Any) -> bool:
    """A call outside of jit asks some ten times, and isinstance of jax.Array takes up to 0.3 us."""
    kind = type(value)
    if kind not in _JAX:
        _JAX[kind] = issubclass(kind, (jax.Array, jax.core.Tracer))
    return _JAX[kind]


def array(name: str, value: Any, expected: str = "an array of JAX or NumPy") -> Any:
    """The array as it is, traced or not."""
    if not _is_jax(value) and not isinstance(value, (np.ndarray, np.generic)):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")
    return value


def given(**arrays: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {name: array(name, value) for name, value in arrays.items() if value is not None}


def lengths(name: str, value: Any) -> Any:
    """Lengths or positions; one number is an array of one."""
    if _is_jax(value):
        return value if value.ndim else value.reshape(1)
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if isinstance(value, (int, np.integer)):
        return np.array([options.integer(name, value, INT32_MAX)], np.int32)
    value = array(name, value, "an integer or an array of JAX or NumPy")
    if _has_other_integers(value):
        value = options.int32_lengths(name, value)
    return value if value.ndim else value.reshape(1)


def pages(name: str, value: Any) -> Any:
    """Page numbers."""
    if _is_jax(value):
        return value
    value = array(name, value)
    return options.int32_pages(name, value) if _has_other_integers(value) else value


def copies(value: Any) -> Any:
    """int32 [num_copies, 3], of arrays or of three numbers each."""
    if isinstance(value, np.ndarray) or _is_jax(value):
        return pages("copies", value)
    return np.array(options.page_copies(value), np.int32).reshape(-1, 3)


def _has_other_integers(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.dtype != np.int32
