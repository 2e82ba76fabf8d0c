"""The paged KV cache: how new tokens get into their slots, and who owns which page."""

from __future__ import annotations

from collections.abc import Iterable
from ctypes import byref, c_int64, c_size_t, c_void_p
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from pagefill._c import options, structs, views
from pagefill._c.library import check, lib
from pagefill._c.options import Integers, Lengths, integer
from pagefill._c.views import Array
from pagefill._typing import Where

if TYPE_CHECKING:
    from pagefill._typing import Unpack


def append_kv(
    keys: Array,
    values: Array,
    key_cache: Array,
    value_cache: Array,
    query_starts: Integers,
    context_lens: Lengths,
    page_table: Integers,
    *,
    kv_start: Lengths | None = None,
    key_scale: Array | None = None,
    value_scale: Array | None = None,
    chosen_key_scale: Array | None = None,
    chosen_value_scale: Array | None = None,
    **where: Unpack[Where],
) -> None:
    """Writes the keys and values of new tokens into their slots, rounding to the cache's dtype.

    The metadata are those of the attention call that follows: token i of the n new ones of sequence
    s goes to position context_lens[s] - n + i.

    Args:
        keys: [total_tokens, num_kv_heads, head_dim], float32, bfloat16 or float16.
        values: [total_tokens, num_kv_heads, v_head_dim], keys' dtype.
        key_cache: [num_kv_heads, total_num_pages, page_size, head_dim], any dtype that attention
            reads; written.
        value_cache: [num_kv_heads, total_num_pages, page_size, v_head_dim]; written.
        query_starts: int32 [num_seqs + 1]: the tokens of sequence s.
        context_lens: int32 [num_seqs]: with the new tokens.
        page_table: int32 [num_seqs, max_pages].
        kv_start: int32 [num_seqs]: the position of the table's first slot.
        key_scale, value_scale: what to quantise with, in the shapes that attention takes; 1 where
            None.
        chosen_key_scale, chosen_value_scale: float32 [num_kv_heads, total_num_pages, page_size],
            written: the scale of each new slot is chosen, max|x| / the largest number of the dtype.
        num_threads, backend, cpu_target: as in `prefill_page_attention`.

    Raises:
        ValueError: a shape or value breaks a rule, or a token's page is not in the cache. Then
            nothing is written.
        TypeError: a dtype does. NotImplementedError: memory of a GPU.
    """
    read = views.read
    arguments = (
        read("keys", keys),
        read("values", values),
        views.write("key_cache", key_cache),
        views.write("value_cache", value_cache),
        options.lengths("query_starts", query_starts),
        options.lengths("context_lens", context_lens),
        options.pages("page_table", page_table),
    )
    settings = structs.append_options(
        None if kv_start is None else options.lengths("kv_start", kv_start),
        None if key_scale is None else read("key_scale", key_scale),
        None if value_scale is None else read("value_scale", value_scale),
        None if chosen_key_scale is None else views.write("chosen_key_scale", chosen_key_scale),
        None
        if chosen_value_scale is None
        else views.write("chosen_value_scale", chosen_value_scale),
    )
    try:
        check(lib.pagefill_append_kv(*arguments, settings, options.where(where)))
    except ValueError as error:
        raise options.with_given_page(error, "page_table", page_table) from None


class PageCopy(NamedTuple):
    """A page whose first num_slots slots are to be copied before destination is written."""

    source: int
    destination: int
    num_slots: int


def copy_pages(
    copies: Iterable[tuple[int, int, int]],
    key_cache: Array,
    value_cache: Array,
    *,
    key_scale: Array | None = None,
    value_scale: Array | None = None,
    **where: Unpack[Where],
) -> None:
    """Carries out the copies that `PageAllocator.append` asks for, in their order.

    Args:
        copies: (source, destination, num_slots) each: pages of the cache, and how many slots of
            them.
        key_cache, value_cache: as in `append_kv`; written.
        key_scale, value_scale: float32 [num_kv_heads, total_num_pages, page_size]: scales a slot of
            a quantised cache, which move with the elements.
        num_threads, backend, cpu_target: as in `prefill_page_attention`.

    Raises:
        ValueError: a page or slot is not in the cache, or a shape disagrees; nothing is written.
        TypeError: a dtype breaks a rule. NotImplementedError: memory of a GPU.
    """
    rows = options.page_copies(copies)
    packed = np.array(rows, np.int32).tobytes()
    settings = structs.copy_options(
        None if key_scale is None else views.write("key_scale", key_scale),
        None if value_scale is None else views.write("value_scale", value_scale),
    )
    check(
        lib.pagefill_copy_pages(
            packed if rows else None,
            c_size_t(len(rows)),
            views.write("key_cache", key_cache),
            views.write("value_cache", value_cache),
            settings,
            options.where(where),
        )
    )


class PageAllocator:
    """Hands out the pages of one cache to sequences. Knows page numbers only; not thread-safe.

    Pages are reference-counted: a fork shares its parent's pages, and a shared last page is copied
    only when one of its owners appends to it. A call that fails changes nothing. Numbers of
    sequences are not used again; ValueError names one that is not (any more) there.
    """

    def __init__(self, total_num_pages: int, page_size: int) -> None:
        """total_num_pages >= 0, page_size >= 1."""
        self._handle = c_void_p()
        check(
            lib.pagefill_page_allocator_create(
                _int64("total_num_pages", total_num_pages),
                _int64("page_size", page_size),
                byref(self._handle),
            )
        )

    def __del__(self, destroy: object = lib.pagefill_page_allocator_destroy) -> None:
        handle = getattr(self, "_handle", None)
        if handle:
            destroy(handle)  # type: ignore[operator]

    def __reduce__(self) -> str:  # copy, deepcopy and pickle end here
        raise TypeError("PageAllocator: expected to be shared, got a copy to make; fork sequences")

    def add_sequence(self) -> int:
        """An empty sequence."""
        sequence = c_int64()
        check(lib.pagefill_page_allocator_add_sequence(self._handle, byref(sequence)))
        return sequence.value

    def fork(self, parent: int) -> int:
        """A sequence with the parent's tokens so far, sharing all of its pages."""
        sequence = c_int64()
        check(
            lib.pagefill_page_allocator_fork(
                self._handle, _int64("parent", parent), byref(sequence)
            )
        )
        return sequence.value

    def append(self, sequence: int, num_tokens: int) -> list[PageCopy]:
        """Makes room for num_tokens (>= 0) more tokens. The copies that it returns, at most one,
        have to be carried out (`copy_pages`) before the new tokens are written. MemoryError when
        there are too few free pages."""
        copy, num_copies = structs.PageCopy(), c_size_t()
        check(
            lib.pagefill_page_allocator_append(
                self._handle,
                _int64("sequence", sequence),
                _int64("num_tokens", num_tokens),
                byref(copy),
                byref(num_copies),
            )
        )
        return [PageCopy(copy.source, copy.destination, copy.num_slots)][: num_copies.value]

    def truncate(self, sequence: int, context_len: int) -> None:
        """Forgets the tokens from position context_len on. kv_start <= context_len <= the present
        one."""
        check(
            lib.pagefill_page_allocator_truncate(
                self._handle, _int64("sequence", sequence), _int64("context_len", context_len)
            )
        )

    def drop_before(self, sequence: int, position: int) -> None:
        """Frees the pages that lie wholly before position (>= 0); kv_start moves up."""
        check(
            lib.pagefill_page_allocator_drop_before(
                self._handle, _int64("sequence", sequence), _int64("position", position)
            )
        )

    def release(self, sequence: int) -> None:
        """The sequence is gone; pages that nobody else holds are free."""
        check(lib.pagefill_page_allocator_release(self._handle, _int64("sequence", sequence)))

    def context_len(self, sequence: int) -> int:
        """How many tokens the sequence has."""
        return int(self._sequence(sequence).context_len)

    def kv_start(self, sequence: int) -> int:
        """The position of the first slot of page_indices."""
        return int(self._sequence(sequence).kv_start)

    def page_indices(self, sequence: int) -> npt.NDArray[np.int32]:
        """The sequence's pages, int32 [num_pages]: a new array, which later calls do not change."""
        info = self._sequence(sequence)
        if info.num_pages == 0:
            return np.empty(0, np.int32)
        return np.ctypeslib.as_array(info.page_indices, (info.num_pages,)).copy()

    def reference_count(self, page: int) -> int:
        """How many sequences hold the page; 0 when it is free or not in the cache."""
        count = c_int64()
        check(
            lib.pagefill_page_allocator_reference_count(
                self._handle, _int64("page", page), byref(count)
            )
        )
        return count.value

    @property
    def total_num_pages(self) -> int:
        """As given."""
        return int(self._info().total_num_pages)

    @property
    def page_size(self) -> int:
        """As given."""
        return int(self._info().page_size)

    @property
    def num_free_pages(self) -> int:
        """Pages that no sequence holds."""
        return int(self._info().num_free_pages)

    @property
    def num_sequences(self) -> int:
        """Sequences that were added or forked and not released."""
        return int(self._info().num_sequences)

    def _info(self) -> structs.PageAllocatorInfo:
        info = structs.PageAllocatorInfo()
        check(lib.pagefill_page_allocator_get_info(self._handle, byref(info)))
        return info

    def _sequence(self, sequence: int) -> structs.SequenceInfo:
        info = structs.SequenceInfo()
        check(
            lib.pagefill_page_allocator_get_sequence(
                self._handle, _int64("sequence", sequence), byref(info)
            )
        )
        return info


def _int64(name: str, value: int) -> c_int64:
    return c_int64(integer(name, value))
