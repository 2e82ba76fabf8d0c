"""Tensors as pagefill_tensor, read in place; and torch's number of threads."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import increment_version

from pagefill._c import options, structs
from pagefill._c.library import DTYPES

_CODES = {getattr(torch, name): code for name, code in DTYPES.items()}
_pack = structs.tensor
_unpack_dual: Any = forward_ad.unpack_dual
_MAX_THREADS = 1024  # what PAGEFILL_NUM_THREADS and pagefill_context take


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


@lru_cache(maxsize=4096)
def _layout(dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    """The packed layout; an error does not know the tensor's name yet."""
    if dtype not in _CODES:
        raise TypeError(f"expected dtype {', '.join(DTYPES)}, got {dtype_name(dtype)}")
    if len(shape) > structs.MAX_RANK:
        raise ValueError(
            f"expected at most {structs.MAX_RANK} dimensions, got shape {list(shape)}"
        )
    return structs.tensor_layout(_CODES[dtype], shape, strides)


def view(name: str, tensor: Tensor) -> bytes:
    """The packed tensor. The tensor must outlive the call."""
    if tensor.requires_grad:
        needs_no_gradient(name, tensor)
    try:
        layout = _layout(tensor.dtype, tensor.shape, tensor.stride())
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None
    return _pack(tensor.data_ptr(), layout)


def new_view(tensor: Tensor) -> bytes:
    """Of a new row-major tensor, whose strides need no asking."""
    return _pack(tensor.data_ptr(), _row_major(tensor.dtype, tensor.shape))


@lru_cache(maxsize=4096)
def _row_major(dtype: torch.dtype, shape: tuple[int, ...]) -> bytes:
    # A dtype or rank that C lacks was taken from an argument, which `view` refuses by its name.
    return structs.tensor_layout(_CODES.get(dtype, -1), shape, structs.row_major(shape))


def optional_view(name: str, tensor: Tensor | None) -> bytes | None:
    return None if tensor is None else view(name, tensor)


def mark_written(*tensors: Tensor | None) -> None:
    """Lets autograd notice, as after torch's own in-place operators, that a tensor which it saved
    for a backward pass is not what it was. Tensors of inference mode have no versions."""
    for tensor in tensors:
        if tensor is not None and not tensor.is_inference():
            increment_version(tensor)


# As the library does on every call; five times faster than os.environ. PyDLL: not worth letting go
# of the GIL for.
_getenv = ctypes.PyDLL(None).getenv
_getenv.restype = ctypes.c_void_p


def context(
    num_threads: int | None = None, backend: str | None = None, cpu_target: str | None = None
) -> bytes | None:
    """Unless told otherwise, as many threads as torch's own operators use; PAGEFILL_NUM_THREADS,
    where set, decides instead."""
    if num_threads is None and not _getenv(b"PAGEFILL_NUM_THREADS"):
        num_threads = torch.get_num_threads()
        if num_threads > _MAX_THREADS:
            num_threads = _MAX_THREADS
        if backend is None and cpu_target is None:
            return structs.context(num_threads)
    return options.context(num_threads, backend, cpu_target)
