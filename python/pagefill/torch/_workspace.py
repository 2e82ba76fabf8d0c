"""Workspace of attention on a CUDA device, from torch's caching allocator: a call there takes none
of its own, so that it can be captured into a graph."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import byref, c_size_t
from typing import Any

import torch
from torch import Tensor

from pagefill._c.environment import CUDA_TARGET, variable
from pagefill._c.library import lib
from pagefill._c.structs import layout_of
from pagefill.torch._where import context

NUM_OPTIONS = 8
"""Of attention, numbers and tensors; what a call is given behind them says where it runs."""

_size_of = lib.pagefill_attention_workspace_size
_sizes: dict[tuple[Any, ...], int] = {}
_MOST_SIZES = 4096


def allocate(
    query: Tensor,
    tensors: tuple[bytes, ...],
    ragged: Callable[[], tuple[bytes, ...]],
    options: bytes | None,
    rest: tuple[Any, ...],
    out: bytes,
    out_lse: bytes | None,
) -> Tensor | None:
    """Memory for a call of these tensors, of which `ragged` makes those of the ragged call; None
    where the call needs none, or will say itself what is wrong. `rest` are the operator's arguments
    behind its metadata.

    The size depends on layouts, options, the device and the kernels that are chosen by hand, never
    on what the tensors hold, so that it is asked for once. Nor does it on the strides of `out`:
    where these are wrong, the call refuses them itself."""
    # A layout says the device as well.
    key = (
        variable(CUDA_TARGET),
        out_lse is None,
        *map(layout_of, tensors),
        *(map(_described, rest) if rest else ()),
    )
    size = _sizes.get(key)
    if size is None:
        asked = c_size_t()
        where = context(query.get_device(), None, *rest[NUM_OPTIONS:])
        if _size_of(*ragged(), options, out, out_lse, where, byref(asked)):
            return None
        if len(_sizes) >= _MOST_SIZES:
            _sizes.clear()
        size = _sizes[key] = asked.value
    return torch.empty(size, dtype=torch.uint8, device=query.device) if size else None


def _described(value: Any) -> Any:
    """What the size may depend on."""
    return value.shape if isinstance(value, Tensor) else value
