"""Workspace of attention on a CUDA device, from torch's caching allocator: a call there takes none
of its own, so that it can be captured into a graph."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import byref, c_size_t
from typing import Any

from torch import Tensor

from pagefill._c.environment import CUDA_TARGET, variable
from pagefill._c.library import lib
from pagefill._c.structs import layout_of
from pagefill.torch._where import context

Tensors = tuple[bytes, ...]
AsRagged = Callable[[Tensors, int], Tensors]

_size_of = lib.pagefill_attention_workspace_size
_sizes: dict[tuple[Any, ...], int] = {}
"""In elements of query."""
_MOST_SIZES = 4096


def allocate(
    query: Tensor,
    tensors: Tensors,
    as_ragged: AsRagged,
    numbers: tuple[Any, ...],
    given: tuple[bytes | None, ...],
    options: bytes | None,
    where: tuple[Any, ...],
    out: bytes,
    out_lse: bytes | None,
) -> Tensor | None:
    """Memory for a call of these tensors, of which `as_ragged` makes those of the ragged call on that
    device; None where the call needs none, or will say itself what is wrong. `numbers` and `given`
    tensors are those of `options`.

    The size depends on layouts, options, the device and the kernels that are chosen by hand, never
    on what the tensors hold, so that it is asked for once. Nor does it on the strides of `out`:
    where these are wrong, the call refuses them itself."""
    *planned, _status = where
    key = (
        variable(CUDA_TARGET),
        out_lse is None,
        numbers,
        *planned,
        # A layout says the device as well.
        *map(layout_of, tensors),
        *[None if tensor is None else layout_of(tensor) for tensor in given],
    )
    size = _sizes.get(key)
    if size is None:
        asked, device = c_size_t(), query.get_device()
        run = context(device, None, *planned)
        if _size_of(*as_ragged(tensors, device), options, out, out_lse, run, byref(asked)):
            return None
        if len(_sizes) >= _MOST_SIZES:
            _sizes.clear()
        # In query's elements: an allocation of another dtype takes 0.2 us longer.
        size = _sizes[key] = -(-asked.value // query.element_size())
    return query.new_empty(size) if size else None
