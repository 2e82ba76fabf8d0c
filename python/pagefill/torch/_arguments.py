"""Python values as what the operators' schemas take. torch's own message for a wrong type is a
RuntimeError of many lines. torch.compile traces through all of this."""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor

from pagefill._c.options import DEFAULT_MASK_VALUE, threads
from pagefill._c.structs import INT32_MAX, INT64_MAX

_FIT_INT32 = (torch.int8, torch.int16, torch.uint8, torch.uint16)
_MAY_NOT_FIT = (torch.int64, torch.uint32, torch.uint64)


def _shown(value: Any) -> str:
    """A value in one short line."""
    simple = isinstance(value, (bool, int, float, complex, str, numbers.Number))
    return repr(value) if simple else type(value).__name__


def tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")


def optional_tensor(name: str, value: Any) -> Tensor | None:
    return None if value is None else tensor(name, value)


def number(name: str, value: Any) -> float:
    if isinstance(value, float):
        return value
    if not isinstance(value, bool):
        if isinstance(value, int):
            return value if -INT64_MAX <= value <= INT64_MAX else _real(value)
        if isinstance(value, numbers.Real):  # NumPy's
            return float(value)
    raise TypeError(f"{name}: expected a number, got {_shown(value)}")


def _real(value: int) -> float:
    try:
        return float(value)
    except OverflowError:  # as what is too large for float32 does
        return torch.inf if value > 0 else -torch.inf


def mask_value(value: Any) -> float | None:
    """None for the default."""
    if isinstance(value, float) and value == DEFAULT_MASK_VALUE:
        return None
    return number("mask_value", value)


def integer(name: str, value: Any) -> int:
    result = None
    if not isinstance(value, bool):
        if isinstance(value, int):
            result = value
        elif isinstance(value, numbers.Integral):  # NumPy's
            result = int(value)
    if result is None:
        raise TypeError(f"{name}: expected an integer, got {_shown(value)}")
    if not -INT64_MAX <= result <= INT64_MAX:
        raise ValueError(f"{name}: expected an integer of 64 bits, got {result}")
    return result


def _text(name: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise TypeError(f"{name}: expected a name, got {_shown(value)}")


def where(
    num_threads: Any,
    backend: Any,
    cpu_target: Any,
    max_chunk_size: Any = None,
    max_context_len: Any = None,
) -> tuple[Any, ...]:
    """How a call runs, up to the last group of which one is given."""
    if num_threads is backend is cpu_target is max_chunk_size is max_context_len is None:
        return ()
    choice = (
        None if num_threads is None else threads(integer("num_threads", num_threads)),
        _text("backend", backend),
        _text("cpu_target", cpu_target),
    )
    if max_chunk_size is max_context_len is None:
        return choice
    return (
        *choice,
        None if max_chunk_size is None else integer("max_chunk_size", max_chunk_size),
        None if max_context_len is None else integer("max_context_len", max_context_len),
    )


def lengths(name: str, given: Any) -> Tensor:
    """int32, in place where it is; torch's own integers are int64, and are converted. Numbers that
    int32 lacks become -1, which is no length and no page; the largest would be a length."""
    value = tensor(name, given)
    dtype = value.dtype
    if dtype is torch.int32:
        return value
    if dtype in _MAY_NOT_FIT:
        value = value.to(torch.int64)  # uint64 beyond it becomes negative
        value = torch.where((value >= 0) & (value <= INT32_MAX), value, -1)
        return value.to(torch.int32)
    return value.to(torch.int32) if dtype in _FIT_INT32 else value


def length(name: str, value: Any, like: Tensor) -> Tensor:
    """The same; an integer, or a tensor of no dimensions, becomes a tensor of one, the integer on
    the other's device."""
    if isinstance(value, Tensor):
        converted = lengths(name, value)
        return converted if converted.dim() else converted.reshape(1)
    if value is None:
        raise TypeError(f"{name}: expected a torch.Tensor or an integer, got None")
    whole = integer(name, value)
    if not -1 <= whole <= INT32_MAX:
        raise ValueError(f"{name}: expected a length from 0 to {INT32_MAX}, got {whole}")
    return like.new_full((1,), whole, dtype=torch.int32)
