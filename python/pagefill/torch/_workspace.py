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
AsRagged = Callable[[Tensors, Tensor], Tensors]

_size_of = lib.pagefill_attention_workspace_size
_sizes: dict[tuple[Any, ...], int] = {}
_MOST_SIZES = 4096


def num_elements(
    query: Tensor,
    tensors: Tensors,
    as_ragged: AsRagged,
    page_table: Tensor,
    options: bytes | None,
    described: tuple[Any, ...],
    where: tuple[Any, ...],
    out: bytes,
    out_lse: bytes | None,
) -> int:
    """How much memory, in elements of query, a call of these tensors needs, of which `as_ragged` makes
    those of the ragged call; 0 where it needs none, or will say itself what is wrong. `described` are
    the options, and `where`, as what can be compared.

    The size depends on layouts, options, the device and the kernels that are chosen by hand, never
    on what the tensors hold, so that it is asked for once. Nor does it on the strides of `out`:
    where these are wrong, the call refuses them itself."""
    # A layout says the device as well.
    key = (
        variable(CUDA_TARGET),
        out_lse is None,
        described,
        *map(layout_of, tensors),
    )
    size = _sizes.get(key)
    if size is None:
        asked = c_size_t()
        place = context(query.get_device(), None, *where)
        if _size_of(*as_ragged(tensors, page_table), options, out, out_lse, place, byref(asked)):
            return 0
        if len(_sizes) >= _MOST_SIZES:
            _sizes.clear()
        # In query's elements: an allocation of another dtype takes 0.2 us longer.
        size = _sizes[key] = -(-asked.value // query.element_size())
    return size
