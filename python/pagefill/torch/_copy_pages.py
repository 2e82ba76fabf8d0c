"""copy_pages."""

from __future__ import annotations

from collections.abc import Iterable
from ctypes import c_size_t, c_void_p
from typing import Any

import torch
from torch import Tensor

from pagefill._c.library import check, lib
from pagefill._c.options import page_copies
from pagefill._c.outputs import NAMES
from pagefill._c.structs import copy_options
from pagefill.torch import _arguments, _fake
from pagefill.torch._operators import define
from pagefill.torch._views import mark_written, optional_view, view
from pagefill.torch._where import CHOICE, context, where_of


def _copy(a: Any) -> None:
    device = a.key_cache.get_device()
    listed = address = None
    count = 0
    if a.copies.get_device() < 0 <= device:  # a list, which the library checks on the CPU
        _fake.check_copies(a.copies)
        copies = a.copies.contiguous()
        address, count = c_void_p(copies.data_ptr()), len(copies)
    else:
        listed = view("copies", a.copies)
    options = copy_options(
        optional_view("key_scale", a.key_scale), optional_view("value_scale", a.value_scale), listed
    )
    check(
        lib.pagefill_copy_pages(
            address,
            c_size_t(count),
            view("key_cache", a.key_cache),
            view("value_cache", a.value_cache),
            options,
            context(device, None, *where_of(a)),
        ),
        NAMES,
    )
    mark_written(a.key_cache, a.value_cache, a.key_scale, a.value_scale, a.status)


_COPY = define(
    "copy_pages",
    {
        "copies": "Tensor",
        "key_cache": "Tensor(a!)",
        "value_cache": "Tensor(b!)",
        "key_scale": "Tensor(c!)?",
        "value_scale": "Tensor(d!)?",
        **CHOICE,
        "status": "Tensor(e!)?",
    },
    "()",
    _copy,
    _fake.copy,
    on_the_cpu_too=("copies",),
)


def copy_pages(
    copies: Tensor | Iterable[tuple[int, int, int]],
    key_cache: Tensor,
    value_cache: Tensor,
    *,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    num_threads: int | None = None,
    backend: str | None = None,
    cpu_target: str | None = None,
    status: Tensor | None = None,
) -> None:
    """Carries out the copies that `PageAllocator.append` asks for, in their order, in place.

    Args:
        copies: (source, destination, num_slots) each, pages of the cache and how many slots of
            them; or int32 [num_copies, 3], on the CPU or where the caches are.
        key_cache, value_cache: as in `append_kv`; written.
        key_scale, value_scale: float32 [num_kv_heads, total_num_pages, page_size]: scales a slot of
            a quantised cache, which move with the elements.
        num_threads, backend, cpu_target: as in prefill_page_attention.
        status: as there, of copies on a CUDA device: code 6, copy, number, value.

    Copies on the CPU are checked before anything is written, and are fixed in a graph. Those on a
    CUDA device are read there, by each replay of a graph; a bad one is not done.

    Raises:
        ValueError: a page or slot is not in the cache, or a shape disagrees; nothing is written.
        TypeError: a dtype or a type.
        NotImplementedError: a tensor elsewhere than on the CPU or a CUDA device, or than the
            others.
    """
    if isinstance(copies, Tensor):
        copies = _arguments.lengths("copies", copies)
    else:
        copies = torch.tensor(page_copies(copies), dtype=torch.int32).reshape(-1, 3)
    _COPY(
        copies,
        _arguments.tensor("key_cache", key_cache),
        _arguments.tensor("value_cache", value_cache),
        _arguments.optional_tensor("key_scale", key_scale),
        _arguments.optional_tensor("value_scale", value_scale),
        *_arguments.where(num_threads, backend, cpu_target),
        **({} if status is None else {"status": _arguments.tensor("status", status)}),
    )
