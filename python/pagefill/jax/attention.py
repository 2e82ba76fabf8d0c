"""Attention over a paged KV cache, for JAX arrays."""

from __future__ import annotations

from typing import Any, Literal, TypedDict, Unpack, overload

import jax

from pagefill._c.options import DEFAULT_MASK_VALUE, integer, mask, real
from pagefill.jax._arguments import array, given, lengths, pages
from pagefill.jax._attention import Maxima, Numbers, attend
from pagefill.jax._merge import merge

State = tuple[jax.Array, jax.Array]


class Options(TypedDict, total=False):
    """The options of both calls, with the defaults that these have."""

    softmax_scale: float | None
    mask_value: float
    attn_logits_soft_cap: float | None
    sliding_window: int | None
    sinks: jax.Array | None
    kv_start: jax.Array | int | None
    key_scale: jax.Array | None
    value_scale: jax.Array | None
    max_chunk_size: int | None
    max_context_len: int | None


@overload
def prefill_page_attention(
    query: jax.Array,
    key_cache: jax.Array,
    value_cache: jax.Array,
    context_len: jax.Array | int,
    page_indices: jax.Array,
    *,
    return_lse: Literal[False] = ...,
    **options: Unpack[Options],
) -> jax.Array: ...


@overload
def prefill_page_attention(
    query: jax.Array,
    key_cache: jax.Array,
    value_cache: jax.Array,
    context_len: jax.Array | int,
    page_indices: jax.Array,
    *,
    return_lse: Literal[True],
    **options: Unpack[Options],
) -> State: ...


@overload
def prefill_page_attention(
    query: jax.Array,
    key_cache: jax.Array,
    value_cache: jax.Array,
    context_len: jax.Array | int,
    page_indices: jax.Array,
    *,
    return_lse: bool,
    **options: Unpack[Options],
) -> jax.Array | State: ...


@overload
def prefill_page_attention(
    query: jax.Array,
    key_cache: jax.Array,
    value_cache: jax.Array,
    context_len: jax.Array | int,
    page_indices: jax.Array,
    *,
    status: jax.Array,
    return_lse: bool = ...,
    **options: Unpack[Options],
) -> tuple[jax.Array, ...]: ...


def prefill_page_attention(
    query: jax.Array,
    key_cache: jax.Array,
    value_cache: jax.Array,
    context_len: jax.Array | int,
    page_indices: jax.Array,
    *,
    softmax_scale: float | None = None,
    mask_value: float = DEFAULT_MASK_VALUE,
    attn_logits_soft_cap: float | None = None,
    sliding_window: int | None = None,
    sinks: jax.Array | None = None,
    kv_start: jax.Array | int | None = None,
    key_scale: jax.Array | None = None,
    value_scale: jax.Array | None = None,
    max_chunk_size: int | None = None,
    max_context_len: int | None = None,
    status: jax.Array | None = None,
    return_lse: bool = False,
) -> jax.Array | tuple[jax.Array, ...]:
    """The chunk of one sequence attends to all that the cache holds for it.

    Query i stands at position p = context_len - chunk_size + i and sees key j when j <= p,
    j < context_len and, with a window W, j >= p - W + 1.

    Args:
        query: [chunk_size, num_q_heads, head_dim] float32, bfloat16 or float16.
        key_cache: [num_kv_heads, total_num_pages, page_size, head_dim], one of these dtypes, or
            int8, float8_e4m3fn or float8_e5m2. The chunk's own keys are in it already (append_kv).
        value_cache: [num_kv_heads, total_num_pages, page_size, v_head_dim], key_cache's dtype.
        context_len: int32 [1] or [], or a Python integer: tokens in the context, the chunk's
            included.
        page_indices: int32 [num_pages]: the physical page of the sequence's logical page i.
        softmax_scale: multiplies the scores. Default: 1 / sqrt(head_dim).
        mask_value: at or below -1e4 masked keys are excluded; above it is added to their scores.
        attn_logits_soft_cap: > 0; s becomes cap * tanh(s / cap), before the mask.
        sliding_window: >= 1; a query sees at most that many keys, its own included.
        sinks: float32 [num_q_heads]: a logit a head that takes part in the softmax, without a
            value.
        kv_start: int32 [1] or [], or an integer: the position of the first slot of page_indices.
        key_scale, value_scale: float32 [1], [num_kv_heads] or [num_kv_heads, total_num_pages,
            page_size], of a quantised cache.
        max_chunk_size, max_context_len: what no sequence exceeds, in rows and in keys of its pages.
            They plan a computation for CUDA, where lengths are not looked at; None: chunk_size (or
            total_tokens) and the table's capacity. Only there.
        status: int32 [4], zeros at first, for CUDA alone: comes back as the last result, with what
            was found bad first, {code, sequence, entry, value}; a report that it holds stays.
        return_lse: whether to return the log-sum-exp as well.

    Returns:
        output [chunk_size, num_q_heads, v_head_dim], query's dtype; or (output, lse) with lse
        float32 [chunk_size, num_q_heads]. A row that sees no key has output 0 and lse -inf. Behind
        them the status that was given.

    Numbers are static; arrays may be traced, so that no new length or table compiles anew. Lengths
    and pages that are NumPy arrays of other integers are converted to int32.

    Raises:
        ValueError, TypeError: a shape, dtype or number that breaks a rule, when the call is traced.
        NotImplementedError: a gradient, or a computation for another platform than the CPU and,
            where pagefill was built with CUDA, CUDA.
        jax.errors.JaxRuntimeError: on the CPU, a length or page number out of range, when the
            result is waited for; ValueError where XLA ran the call in the calling thread. The
            message is the library's. On CUDA the rows that need it are NaN, and `status` says
            which.
    """
    results = attend(
        array("query", query),
        array("key_cache", key_cache),
        array("value_cache", value_cache),
        lengths("context_len", context_len),
        pages("page_indices", page_indices),
        given(
            sinks=sinks,
            kv_start=None if kv_start is None else lengths("kv_start", kv_start),
            key_scale=key_scale,
            value_scale=value_scale,
            status=status,
        ),
        numbers=_numbers(softmax_scale, mask_value, attn_logits_soft_cap, sliding_window),
        with_lse=bool(return_lse),
        maxima=_maxima(max_chunk_size, max_context_len),
    )
    return results[0] if len(results) == 1 else tuple(results)


@overload
def ragged_page_attention(
    query: jax.Array,
    key_cache: jax.Array,
    value_cache: jax.Array,
    query_starts: jax.Array,
    context_lens: jax.Array,
    page_table: jax.Array,
    *,
    return_lse: Literal[False] = ...,
    **options: Unpack[Options],
) -> jax.Array: ...


@overload
def ragged_page_attention(
    query: jax.Array,
    key_cache: jax.Array,
    value_cache: jax.Array,
    query_starts: jax.Array,
    context_lens: jax.Array,
    page_table: jax.Array,
    *,
    return_lse: Literal[True],
    **options: Unpack[Options],
) -> State: ...


@overload
def ragged_page_attention(
    query: jax.Array,
    key_cache: jax.Array,
    value_cache: jax.Array,
    query_starts: jax.Array,
    context_lens: jax.Array,
    page_table: jax.Array,
    *,
    return_lse: bool,
    **options: Unpack[Options],
) -> jax.Array | State: ...


@overload
def ragged_page_attention(
    query: jax.Array,
    key_cache: jax.Array,
    value_cache: jax.Array,
    query_starts: jax.Array,
    context_lens: jax.Array,
    page_table: jax.Array,
    *,
    status: jax.Array,
    return_lse: bool = ...,
    **options: Unpack[Options],
) -> tuple[jax.Array, ...]: ...


def ragged_page_attention(
    query: jax.Array,
    key_cache: jax.Array,
    value_cache: jax.Array,
    query_starts: jax.Array,
    context_lens: jax.Array,
    page_table: jax.Array,
    *,
    softmax_scale: float | None = None,
    mask_value: float = DEFAULT_MASK_VALUE,
    attn_logits_soft_cap: float | None = None,
    sliding_window: int | None = None,
    sinks: jax.Array | None = None,
    kv_start: jax.Array | int | None = None,
    key_scale: jax.Array | None = None,
    value_scale: jax.Array | None = None,
    max_chunk_size: int | None = None,
    max_context_len: int | None = None,
    status: jax.Array | None = None,
    return_lse: bool = False,
) -> jax.Array | tuple[jax.Array, ...]:
    """prefill_page_attention for a batch of sequences, chunks and single decode tokens mixed.

    Args:
        query: [total_tokens, num_q_heads, head_dim].
        query_starts: int32 [num_seqs + 1]: sequence s has the rows from query_starts[s] to
            query_starts[s + 1]; from 0, never decreasing. Rows behind the last are padding.
        context_lens: int32 [num_seqs].
        page_table: int32 [num_seqs, max_pages].
        kv_start: int32 [num_seqs]; a number, where there is one sequence.
        The others: as in prefill_page_attention.

    Returns:
        output [total_tokens, num_q_heads, v_head_dim]; or (output, lse). Padding has output 0 and
        lse -inf. Behind them the status that was given.

    Raises:
        As prefill_page_attention.
    """
    results = attend(
        array("query", query),
        array("key_cache", key_cache),
        array("value_cache", value_cache),
        lengths("context_lens", context_lens),
        pages("page_table", page_table),
        given(
            query_starts=lengths("query_starts", query_starts),
            sinks=sinks,
            kv_start=None if kv_start is None else lengths("kv_start", kv_start),
            key_scale=key_scale,
            value_scale=value_scale,
            status=status,
        ),
        numbers=_numbers(softmax_scale, mask_value, attn_logits_soft_cap, sliding_window),
        with_lse=bool(return_lse),
        maxima=_maxima(max_chunk_size, max_context_len),
    )
    return results[0] if len(results) == 1 else tuple(results)


def merge_attention_states(
    output_a: jax.Array, lse_a: jax.Array, output_b: jax.Array, lse_b: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Combines attention over two disjoint sets of keys into attention over their union.

    Args:
        output_a, output_b: [total_tokens, num_q_heads, v_head_dim], one dtype.
        lse_a, lse_b: float32 [total_tokens, num_q_heads].

    Returns:
        (output, lse) of the union. The identity is (0, -inf). A sink belongs into one state only.

    Raises:
        ValueError, TypeError: shapes and dtypes that do not agree, when the call is traced.
    """
    output, lse = merge(
        array("output_a", output_a),
        array("lse_a", lse_a),
        array("output_b", output_b),
        array("lse_b", lse_b),
    )
    return output, lse


def _numbers(
    softmax_scale: Any, mask_value: Any, attn_logits_soft_cap: Any, sliding_window: Any
) -> Numbers:
    return Numbers(
        None if softmax_scale is None else real("softmax_scale", softmax_scale),
        None
        if attn_logits_soft_cap is None
        else real("attn_logits_soft_cap", attn_logits_soft_cap),
        None if sliding_window is None else integer("sliding_window", sliding_window),
        mask(mask_value),
    )


def _maxima(max_chunk_size: Any, max_context_len: Any) -> Maxima:
    return Maxima(
        _maximum("max_chunk_size", max_chunk_size), _maximum("max_context_len", max_context_len)
    )


def _maximum(name: str, value: Any) -> int:
    number = 0 if value is None else integer(name, value)
    if number < 0:
        raise ValueError(f"{name}: expected None or at least 1, got {number}")
    return number
