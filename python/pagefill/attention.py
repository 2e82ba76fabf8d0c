"""Attention over a paged KV cache of NumPy arrays."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Literal, overload

from pagefill._c import interrupt, options, outputs, views
from pagefill._c.library import check, lib
from pagefill._c.options import DEFAULT_MASK_VALUE, Integers, Lengths
from pagefill._c.outputs import NAMES
from pagefill._c.views import Array
from pagefill._typing import AttentionOptions, Output, State, Where

if TYPE_CHECKING:
    from pagefill._typing import Unpack

_prefill = lib.pagefill_prefill_page_attention
_ragged = lib.pagefill_ragged_page_attention
_merge = lib.pagefill_merge_attention_states


@overload
def prefill_page_attention(
    query: Array,
    key_cache: Array,
    value_cache: Array,
    context_len: Lengths,
    page_indices: Integers,
    *,
    return_lse: Literal[False] = ...,
    **options: Unpack[AttentionOptions],
) -> Output: ...
@overload
def prefill_page_attention(
    query: Array,
    key_cache: Array,
    value_cache: Array,
    context_len: Lengths,
    page_indices: Integers,
    *,
    return_lse: Literal[True],
    **options: Unpack[AttentionOptions],
) -> State: ...
@overload
def prefill_page_attention(
    query: Array,
    key_cache: Array,
    value_cache: Array,
    context_len: Lengths,
    page_indices: Integers,
    *,
    return_lse: bool,
    **options: Unpack[AttentionOptions],
) -> Output | State: ...
def prefill_page_attention(
    query: Array,
    key_cache: Array,
    value_cache: Array,
    context_len: Lengths,
    page_indices: Integers,
    *,
    softmax_scale: float | None = None,
    mask_value: float = DEFAULT_MASK_VALUE,
    attn_logits_soft_cap: float | None = None,
    sliding_window: int | None = None,
    sinks: Array | None = None,
    kv_start: Lengths | None = None,
    key_scale: Array | None = None,
    value_scale: Array | None = None,
    return_lse: bool = False,
    out: Array | None = None,
    out_lse: Array | None = None,
    num_threads: int | None = None,
    backend: str | None = None,
    cpu_target: str | None = None,
) -> Output | State:
    """The chunk of one sequence attends, causally, to all that the cache holds for it.

    The chunk's own keys and values are already in the cache: call `append_kv` first. Arrays are
    NumPy's, or speak DLPack or the buffer protocol; they are read in place, through strides >= 0
    (the last dimension's elements lie together). bfloat16 and float8 are ml_dtypes', or torch's, or
    JAX's.

    Args:
        query: [chunk_size, num_q_heads, head_dim], float32, bfloat16 or float16. Query i stands at
            position context_len - chunk_size + i. chunk_size may be 0; head_dim is a multiple of 8
            up to 512.
        key_cache: [num_kv_heads, total_num_pages, page_size, head_dim], float32, bfloat16 or
            float16, or quantised: int8, float8_e4m3fn, float8_e5m2. num_q_heads is a multiple of
            num_kv_heads.
        value_cache: [num_kv_heads, total_num_pages, page_size, v_head_dim], key_cache's dtype.
        context_len: an integer, or int32 [1]: tokens in the context, the chunk's included.
        page_indices: int32 [num_pages]: the physical page of the sequence's logical page i. Entries
            that no visible key needs may hold anything. Other integers are converted.
        softmax_scale: multiplies the scores; 1 / sqrt(head_dim) where None.
        mask_value: at or below -1e4 masked keys are excluded; above it, it is added to their
            scores.
        attn_logits_soft_cap: s becomes cap * tanh(s / cap), before the mask. > 0.
        sliding_window: a query sees at most that many keys, its own included. >= 1.
        sinks: float32 [num_q_heads]: a logit a head that takes part in the softmax without a value.
        kv_start: an integer, or int32 [1]: the position of the table's first slot.
        key_scale: float32 [1], [num_kv_heads] or [num_kv_heads, total_num_pages, page_size]: what a
            quantised cache's elements are multiplied by.
        value_scale: likewise.
        return_lse: whether to return the log-sum-exp too.
        out: where to write the output; returned as it is. Else a new NumPy array.
        out_lse: where to write the log-sum-exp. Written, where given, whatever return_lse is.
        num_threads: 1 to 1024; None: PAGEFILL_NUM_THREADS, else all.
        backend: a name of `list_backends`; None: PAGEFILL_BACKEND, else the best.
        cpu_target: an instruction set; None: PAGEFILL_CPU_TARGET, else the best.

    Returns:
        output [chunk_size, num_q_heads, v_head_dim] in query's dtype; with return_lse, (output,
        lse), lse float32 [chunk_size, num_q_heads], natural. A row that sees no key gives 0 and
        -inf.

    Raises:
        ValueError: a shape, a value or an array's memory breaks a rule. The message names the
            argument.
        TypeError: a dtype or a type does.
        NotImplementedError: memory of a GPU, or a backend that is not available here.
        MemoryError: no memory for the workspace.
        KeyboardInterrupt: a long call was interrupted; `out` and `out_lse` then hold anything.
    """
    query_view = views.read("query", query)
    key_view = views.read("key_cache", key_cache)
    value_view = views.read("value_cache", value_cache)
    length = options.lengths("context_len", context_len)
    pages = options.pages("page_indices", page_indices)
    settings = options.attention(
        softmax_scale,
        mask_value,
        attn_logits_soft_cap,
        sliding_window,
        sinks,
        kv_start,
        key_scale,
        value_scale,
    )
    where = options.context(num_threads, backend, cpu_target)
    shape = views.shape(query, query_view)
    results = outputs.Outputs(shape, query, query_view, value_cache, value_view)
    output, output_view = results.output(out)
    lse, lse_view = results.lse(out_lse, return_lse)
    slots = views.shape(page_indices, pages) + views.shape(key_cache, key_view)[2:3]
    keys = prod(slots) if type(context_len) is not int else context_len
    try:
        interrupt.run(
            _prefill,
            (query_view, key_view, value_view, length, pages, settings, output_view, lse_view),
            where,
            4 * prod(shape) * _keys_a_row(keys, shape, sliding_window),
            (
                *(query, key_cache, value_cache, context_len, page_indices),
                *(sinks, kv_start, key_scale, value_scale, output, lse),
            ),
        )
    except ValueError as error:
        raise options.with_given_page(error, "page_indices", page_indices) from None
    return (output, lse) if return_lse else output


def _keys_a_row(keys: int, shape: tuple[int, ...], sliding_window: int | None) -> int:
    """About how many keys a row meets; for `interrupt` only."""
    # A NumPy integer of few bits would overflow.
    return keys if sliding_window is None else min(keys, int(sliding_window) + sum(shape[:1]))


@overload
def ragged_page_attention(
    query: Array,
    key_cache: Array,
    value_cache: Array,
    query_starts: Integers,
    context_lens: Integers,
    page_table: Integers,
    *,
    return_lse: Literal[False] = ...,
    **options: Unpack[AttentionOptions],
) -> Output: ...
@overload
def ragged_page_attention(
    query: Array,
    key_cache: Array,
    value_cache: Array,
    query_starts: Integers,
    context_lens: Integers,
    page_table: Integers,
    *,
    return_lse: Literal[True],
    **options: Unpack[AttentionOptions],
) -> State: ...
@overload
def ragged_page_attention(
    query: Array,
    key_cache: Array,
    value_cache: Array,
    query_starts: Integers,
    context_lens: Integers,
    page_table: Integers,
    *,
    return_lse: bool,
    **options: Unpack[AttentionOptions],
) -> Output | State: ...
def ragged_page_attention(
    query: Array,
    key_cache: Array,
    value_cache: Array,
    query_starts: Integers,
    context_lens: Integers,
    page_table: Integers,
    *,
    softmax_scale: float | None = None,
    mask_value: float = DEFAULT_MASK_VALUE,
    attn_logits_soft_cap: float | None = None,
    sliding_window: int | None = None,
    sinks: Array | None = None,
    kv_start: Lengths | None = None,
    key_scale: Array | None = None,
    value_scale: Array | None = None,
    return_lse: bool = False,
    out: Array | None = None,
    out_lse: Array | None = None,
    num_threads: int | None = None,
    backend: str | None = None,
    cpu_target: str | None = None,
) -> Output | State:
    """The same for a batch of sequences, prefill chunks and single decode tokens mixed.

    The arguments are those of `prefill_page_attention`, but:

    Args:
        query: [total_tokens, num_q_heads, head_dim]: the rows of all sequences.
        query_starts: int32 [num_seqs + 1]: sequence s has rows query_starts[s] to
            query_starts[s + 1]; from 0, never decreasing. Rows behind the last are left alone (0
            and -inf in new results).
        context_lens: int32 [num_seqs].
        page_table: int32 [num_seqs, max_pages]: row s holds the pages of sequence s.
        kv_start: int32 [num_seqs].

    Returns:
        output [total_tokens, num_q_heads, v_head_dim]; with return_lse, (output, lse), lse float32
        [total_tokens, num_q_heads].

    Raises:
        As `prefill_page_attention`.
    """
    query_view = views.read("query", query)
    key_view = views.read("key_cache", key_cache)
    value_view = views.read("value_cache", value_cache)
    starts = options.lengths("query_starts", query_starts)
    lengths = options.lengths("context_lens", context_lens)
    pages = options.pages("page_table", page_table)
    settings = options.attention(
        softmax_scale,
        mask_value,
        attn_logits_soft_cap,
        sliding_window,
        sinks,
        kv_start,
        key_scale,
        value_scale,
    )
    where = options.context(num_threads, backend, cpu_target)
    shape = views.shape(query, query_view)
    results = outputs.Outputs(shape, query, query_view, value_cache, value_view, padded=True)
    output, output_view = results.output(out)
    lse, lse_view = results.lse(out_lse, return_lse)
    slots = views.shape(page_table, pages)[1:] + views.shape(key_cache, key_view)[2:3]
    caches = (query_view, key_view, value_view)
    try:
        interrupt.run(
            _ragged,
            (*caches, starts, lengths, pages, settings, output_view, lse_view),
            where,
            4 * prod(shape) * _keys_a_row(prod(slots), shape, sliding_window),
            (
                *(query, key_cache, value_cache, query_starts, context_lens, page_table),
                *(sinks, kv_start, key_scale, value_scale, output, lse),
            ),
        )
    except ValueError as error:
        raise options.with_given_page(error, "page_table", page_table) from None
    return (output, lse) if return_lse else output


def merge_attention_states(
    output_a: Array,
    lse_a: Array,
    output_b: Array,
    lse_b: Array,
    *,
    out: Array | None = None,
    out_lse: Array | None = None,
    **where: Unpack[Where],
) -> State:
    """Combines attention over two disjoint sets of keys into attention over their union.

    Args:
        output_a, output_b: [total_tokens, num_q_heads, v_head_dim], float32, bfloat16 or float16,
            of one dtype.
        lse_a, lse_b: float32 [total_tokens, num_q_heads].
        out, out_lse: where to write; may be the memory of a or of b. Else new NumPy arrays.
        num_threads, backend, cpu_target: as in `prefill_page_attention`.

    Returns:
        (output, lse) of the union. The identity is (0, -inf).

    Raises:
        ValueError, TypeError, NotImplementedError: as `prefill_page_attention`.
    """
    views_in = (
        views.read("output_a", output_a),
        views.read("lse_a", lse_a),
        views.read("output_b", output_b),
        views.read("lse_b", lse_b),
    )
    results = outputs.Outputs(
        views.shape(output_a, views_in[0]), output_a, views_in[0], output_a, views_in[0]
    )
    output, output_view = results.output(out)
    lse, lse_view = results.lse(out_lse, True)
    check(_merge(*views_in, output_view, lse_view, options.where(where)), NAMES)
    return output, lse
