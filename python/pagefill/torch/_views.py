"""Tensors as pagefill_tensor, read in place."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import increment_version

from pagefill._c import dtypes, structs
from pagefill._c.library import DTYPES

_CODES = {getattr(torch, name): code for name, code in DTYPES.items()}
_at = structs.tensor_at
_unpack_dual: Any = forward_ad.unpack_dual


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def needs_no_gradient(name: str, tensor: Tensor) -> None:
    """There are no derivatives, so one that torch would have to know is refused."""
    if tensor.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(
            f"{name}: expected a tensor without requires_grad, got one with it: pagefill is for "
            "inference and has no backward pass; call it under torch.no_grad() or detach the tensor"
        )
    if forward_ad._current_level >= 0 and _unpack_dual(tensor).tangent is not None:
        raise NotImplementedError(
            f"{name}: expected a tensor without a tangent, got one with it: pagefill is for "
            "inference and has no forward-mode derivatives; use forward_ad.unpack_dual's primal"
        )


def _place(device: int) -> tuple[int, int]:
    """Type and index for the C interface, of what Tensor.get_device says: -1 for the CPU."""
    return (structs.CPU, 0) if device < 0 else (structs.CUDA, device)


@lru_cache(maxsize=4096)
def _layout(
    dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...], device: int
) -> bytes:
    """The packed layout; an error does not know the tensor's name yet."""
    if dtype not in _CODES:
        raise TypeError(dtype_name(dtype))
    if len(shape) > structs.MAX_RANK:
        raise ValueError(
            f"expected at most {structs.MAX_RANK} dimensions, got shape {list(shape)}"
        )
    return structs.tensor_layout(_CODES[dtype], shape, strides, *_place(device))


def view(name: str, tensor: Tensor) -> bytes:
    """The packed tensor. The tensor must outlive the call."""
    if tensor.requires_grad:
        needs_no_gradient(name, tensor)
    try:
        layout = _layout(tensor.dtype, tensor.shape, tensor.stride(), tensor.get_device())
    except TypeError as error:
        raise dtypes.unknown_dtype(name, str(error)) from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return _at(tensor.data_ptr()) + layout


def new_view(tensor: Tensor) -> bytes:
    """Of a new row-major tensor, whose strides need no asking."""
    layout = _row_major(tensor.dtype, tensor.shape, tensor.get_device())
    return _at(tensor.data_ptr()) + layout


@lru_cache(maxsize=4096)
def _row_major(dtype: torch.dtype, shape: tuple[int, ...], device: int) -> bytes:
    # A dtype or rank that C lacks was taken from an argument, which `view` refuses by its name.
    strides = structs.row_major(shape)
    return structs.tensor_layout(_CODES.get(dtype, -1), shape, strides, *_place(device))


def unread_int32(*shape: int, device: int) -> bytes:
    """Of metadata whose elements a call does not read: the address is none."""
    layout = _row_major(torch.int32, shape, device)
    return _at(structs.NOWHERE) + layout


def optional_view(name: str, tensor: Tensor | None) -> bytes | None:
    return None if tensor is None else view(name, tensor)


def mark_written(*tensors: Tensor | None) -> None:
    """Lets autograd notice, as after torch's own in-place operators, that a tensor which it saved
    for a backward pass is not what it was. Tensors of inference mode have no versions."""
    for tensor in tensors:
        if tensor is not None and not tensor.is_inference():
            increment_version(tensor)
