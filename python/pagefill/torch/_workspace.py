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

NUM_OPTIONS = 8
"""Of attention, numbers and tensors; what a call is given behind them says where it runs."""

Tensors = tuple[bytes, ...]
AsRagged = Callable[[Tensors, Tensor], Tensors]

_size_of = lib.pagefill_attention_workspace_size
_sizes: dict[tuple[Any, ...], int] = {}
"""In elements of query."""
_MOST_SIZES = 4096


def allocate(
    query: Tensor,
    tensors: Tensors,
    as_ragged: AsRagged,
    page_table: Tensor,
    options: bytes | None,
    rest: tuple[Any, ...],
    out: bytes,
    out_lse: bytes | None,
) -> Tensor | None:
    """Memory for a call of these tensors, of which `as_ragged` makes those of the ragged call; None
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
        if _size_of(*as_ragged(tensors, page_table), options, out, out_lse, where, byref(asked)):
            return None
        if len(_sizes) >= _MOST_SIZES:
            _sizes.clear()
        # In query's elements: an allocation of another dtype takes 0.2 us longer.
        size = _sizes[key] = -(-asked.value // query.element_size())
    return query.new_empty(size) if size else None


def _described(value: Any) -> Any:
    """What the size may depend on."""
    return value.shape if isinstance(value, Tensor) else value
