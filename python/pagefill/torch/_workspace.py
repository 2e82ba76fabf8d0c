"""Workspace of attention on a CUDA device, from torch's caching allocator: a call there takes none of
its own, so that it can be captured into a graph."""

from __future__ import annotations

from ctypes import byref, c_size_t
from typing import Any

import torch
from torch import Tensor

from pagefill._c.library import lib
from pagefill._c.structs import layout_of
from pagefill.torch._views import cuda_context

_size_of = lib.pagefill_attention_workspace_size
_sizes: dict[tuple[Any, ...], int] = {}
_MOST_SIZES = 4096


def allocate(
    query: Tensor,
    tensors: tuple[bytes, ...],
    options: bytes | None,
    rest: tuple[Any, ...],
    out: bytes,
    out_lse: bytes | None,
) -> Tensor | None:
    """Memory for the ragged call of these tensors; None where the call needs none, or will say itself
    what is wrong. `rest` are the operator's arguments behind its metadata: numbers, tensors or
    None, names and maxima.

    The size depends on layouts, numbers and the device, never on what the tensors hold, so that it
    is asked for once."""
    key = (
        query.get_device(),
        *map(layout_of, tensors),
        *(None if isinstance(value, Tensor) else value for value in rest),
        *(tuple(value.shape) for value in rest if isinstance(value, Tensor)),
        out_lse is None,
    )
    size = _sizes.get(key)
    if size is None:
        asked = c_size_t()
        where = cuda_context(query.get_device(), *rest[8:])
        if _size_of(*tensors, options, out, out_lse, where, byref(asked)):
            return None
        if len(_sizes) >= _MOST_SIZES:
            _sizes.clear()
        size = _sizes[key] = asked.value
    return torch.empty(size, dtype=torch.uint8, device=query.device) if size else None
