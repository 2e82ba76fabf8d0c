"""Python values as what the operators' schemas take. torch's own message for a wrong type is a
RuntimeError of many lines. torch.compile traces through all of this."""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor

_INT32_MAX = 2**31 - 1
_SMALLER_INTEGERS = (torch.int8, torch.int16, torch.uint8)


def tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")


def optional_tensor(name: str, value: Any) -> Tensor | None:
    return None if value is None else tensor(name, value)


def optional_number(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, bool):
        if isinstance(value, (float, int)):
            return value
        if isinstance(value, numbers.Real):  # NumPy's
            return float(value)
    raise TypeError(f"{name}: expected a number, got {value!r}")


def optional_integer(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, bool):
        if isinstance(value, int):
            return value
        if isinstance(value, numbers.Integral):  # NumPy's
            return int(value)
    raise TypeError(f"{name}: expected an integer, got {value!r}")


def optional_text(name: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise TypeError(f"{name}: expected a name, got {value!r}")


def where(num_threads: Any, backend: Any, cpu_target: Any) -> tuple[Any, ...]:
    """How a call runs; nothing where that is the default."""
    if num_threads is None and backend is None and cpu_target is None:
        return ()
    return (
        optional_integer("num_threads", num_threads),
        optional_text("backend", backend),
        optional_text("cpu_target", cpu_target),
    )


def lengths(name: str, value: Any) -> Tensor:
    """int32, in place where it is; torch's own integers are int64, and are converted. Numbers that
    int32 lacks stay wrong: they become -1 or the largest, and neither is a length or a page."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.dtype is torch.int64:
        return value.clamp(-1, _INT32_MAX).to(torch.int32)
    return value.to(torch.int32) if value.dtype in _SMALLER_INTEGERS else value


def length(name: str, value: Any, like: Tensor) -> Tensor:
    """The same; an integer becomes a tensor of one, on the other's device."""
    if isinstance(value, Tensor):
        return lengths(name, value)
    number = optional_integer(name, value)
    if number is None:
        raise TypeError(f"{name}: expected a torch.Tensor or an integer, got None")
    if not -1 <= number <= _INT32_MAX:
        raise ValueError(f"{name}: expected a length from 0 to {_INT32_MAX}, got {number}")
    return torch.full((1,), number, dtype=torch.int32, device=like.device)
