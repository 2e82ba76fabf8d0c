"""prefill_page_attention, ragged_page_attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

from torch import Tensor

from pagefill._c.options import DEFAULT_MASK_VALUE
from pagefill.torch import _arguments
from pagefill.torch._attention_operators import PREFILL, RAGGED, Operators

if TYPE_CHECKING:
    from typing_extensions import Unpack


class AttentionOptions(TypedDict, total=False):
    """The keyword arguments that both calls have, but return_lse; for type checkers."""

    softmax_scale: float | None
    mask_value: float
    attn_logits_soft_cap: float | None
    sliding_window: int | None
    sinks: Tensor | None
    kv_start: Tensor | int | None
    key_scale: Tensor | None
    value_scale: Tensor | None
    out: Tensor | None
    out_lse: Tensor | None
    num_threads: int | None
    backend: str | None
    cpu_target: str | None
    max_chunk_size: int | None
    max_context_len: int | None
    status: Tensor | None


def _attend(
    operators: Operators,
    arguments: tuple[Any, ...],
    return_lse: bool,
    out: Any,
    out_lse: Any,
    status: Any,
) -> Any:
    """The operator that returns new tensors; or, where one to write is given, the operator that
    writes, with what is not given and returned new."""
    if out is out_lse is status is None:
        return operators.with_lse(*arguments) if return_lse else operators.plain(*arguments)
    out = _arguments.optional_tensor("out", out)
    out_lse = _arguments.optional_tensor("out_lse", out_lse)
    query, _, value_cache, *_ = arguments
    if out is None:
        out = operators.new_output(query, value_cache)
    if out_lse is None and return_lse:
        out_lse = operators.new_lse(query)
    if status is None:
        operators.out(out, out_lse, *arguments)
    else:
        operators.out(out, out_lse, *arguments, status=_arguments.tensor("status", status))
    return (out, out_lse) if return_lse else out


_NO_NUMBERS = (None, None, None, None)
_HERE = (None, None, None, None, None)


def _options(
    query: Tensor,
    softmax_scale: Any,
    mask_value: Any,
    attn_logits_soft_cap: Any,
    sliding_window: Any,
    sinks: Any,
    kv_start: Any,
    key_scale: Any,
    value_scale: Any,
    *where: Any,
) -> tuple[Any, ...]:
    """Of the types that the schema takes, in its order, up to the last group of which one is given:
    the schema knows the defaults, and converting them back and forth costs a microsecond."""
    if softmax_scale is not None:
        softmax_scale = _arguments.number("softmax_scale", softmax_scale)
    mask_value = None if mask_value is DEFAULT_MASK_VALUE else _arguments.mask_value(mask_value)
    if attn_logits_soft_cap is not None:
        attn_logits_soft_cap = _arguments.number("attn_logits_soft_cap", attn_logits_soft_cap)
    if sliding_window is not None:
        sliding_window = _arguments.integer("sliding_window", sliding_window)
    numbers = (softmax_scale, mask_value, attn_logits_soft_cap, sliding_window)
    where = () if where == _HERE else _arguments.where(*where)
    if not where and sinks is kv_start is key_scale is value_scale is None:
        return () if numbers == _NO_NUMBERS else numbers
    return (
        *numbers,
        _arguments.optional_tensor("sinks", sinks),
        None if kv_start is None else _arguments.length("kv_start", kv_start, query),
        _arguments.optional_tensor("key_scale", key_scale),
        _arguments.optional_tensor("value_scale", value_scale),
        *where,
    )


@overload
def prefill_page_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    context_len: Tensor | int,
    page_indices: Tensor,
    *,
    return_lse: Literal[False] = ...,
    **options: Unpack[AttentionOptions],
) -> Tensor: ...
@overload
def prefill_page_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    context_len: Tensor | int,
    page_indices: Tensor,
    *,
    return_lse: Literal[True],
    **options: Unpack[AttentionOptions],
) -> tuple[Tensor, Tensor]: ...
@overload
def prefill_page_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    context_len: Tensor | int,
    page_indices: Tensor,
    *,
    return_lse: bool,
    **options: Unpack[AttentionOptions],
) -> Tensor | tuple[Tensor, Tensor]: ...
def prefill_page_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    context_len: Tensor | int,
    page_indices: Tensor,
    *,
    softmax_scale: float | None = None,
    mask_value: float = DEFAULT_MASK_VALUE,
    attn_logits_soft_cap: float | None = None,
    sliding_window: int | None = None,
    sinks: Tensor | None = None,
    kv_start: Tensor | int | None = None,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    return_lse: bool = False,
    out: Tensor | None = None,
    out_lse: Tensor | None = None,
    num_threads: int | None = None,
    backend: str | None = None,
    cpu_target: str | None = None,
    max_chunk_size: int | None = None,
    max_context_len: int | None = None,
    status: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The chunk of one sequence attends to all that the cache holds for it.

    Args:
        query: [chunk_size, num_q_heads, head_dim], float32, bfloat16 or float16.
        key_cache: [num_kv_heads, total_num_pages, page_size, head_dim], one of the three dtypes, or
            int8, float8_e4m3fn, float8_e5m2. The chunk's own keys and values are already in it.
        value_cache: [num_kv_heads, total_num_pages, page_size, v_head_dim], key_cache's dtype.
        context_len: int32 [1] or [], or an int: tokens in the context, this chunk's included.
        page_indices: int32 [num_pages], the physical page of the sequence's logical page i.
        softmax_scale: multiplies the scores; 1 / sqrt(head_dim) where None.
        mask_value: at or below -1e4 masked keys are excluded; above, it is added to their scores.
        attn_logits_soft_cap: > 0; a score s becomes cap * tanh(s / cap) before the mask.
        sliding_window: >= 1; a query sees at most that many keys, its own included.
        sinks: float32 [num_q_heads], a logit a head that takes part in the softmax without a value.
        kv_start: int32 [1], the absolute position of page_indices' first slot; 0 where None.
        key_scale, value_scale: float32 [1], [num_kv_heads] or
            [num_kv_heads, total_num_pages, page_size], of a quantised cache; 1 where None.
        return_lse: also return the natural log-sum-exp of each row's scores.
        out: where to write the output, [chunk_size, num_q_heads, v_head_dim] in query's dtype.
        out_lse: where to write the log-sum-exp, float32 [chunk_size, num_q_heads]; written where
            given, returned with return_lse.
        num_threads: of the CPU, 1 to 1024; None: PAGEFILL_NUM_THREADS, else
            torch.get_num_threads().
        backend: a name of pagefill.list_backends(); None: PAGEFILL_BACKEND, else the best.
        cpu_target: an instruction set; None: PAGEFILL_CPU_TARGET, else the best.
        max_chunk_size, max_context_len: what no sequence exceeds, in rows and in keys of its pages.
            They plan a call on a CUDA device, which does not look at lengths; None: chunk_size (or
            total_tokens) and the table's capacity. Only there.
        status: int32 [4] of zeros on the device, written: code, sequence, entry and value of the
            first length or page that is bad. Only there.

    Returns:
        The output, [chunk_size, num_q_heads, v_head_dim] in query's dtype (`out` where given); with
        return_lse a pair of it and the log-sum-exp, float32 [chunk_size, num_q_heads].

    Tensors are read in place through their strides; the innermost is 1. Lengths and pages may be
    tensors of other integers, which are converted. A row that sees no key gives
    output 0 and log-sum-exp -inf.

    On a CUDA device, where all tensors are on it, the call is enqueued on torch's current stream.

    Raises:
        ValueError: a shape, stride, length, page or option that breaks a rule. On a CUDA device a
            bad length or page raises nothing: rows that need it are NaN, and `status` says which.
        TypeError: a dtype or a type.
        NotImplementedError: a tensor elsewhere than on the CPU or a CUDA device, or than the
            others; one that requires grad, in grad mode, or has a forward-mode tangent; `out`,
            `out_lse` or `status` in torch.vmap.
        MemoryError: no memory for the workspace.
    """
    arguments = (
        _arguments.tensor("query", query),
        _arguments.tensor("key_cache", key_cache),
        _arguments.tensor("value_cache", value_cache),
        _arguments.length("context_len", context_len, query),
        _arguments.lengths("page_indices", page_indices),
        *_options(
            query,
            softmax_scale,
            mask_value,
            attn_logits_soft_cap,
            sliding_window,
            sinks,
            kv_start,
            key_scale,
            value_scale,
            num_threads,
            backend,
            cpu_target,
            max_chunk_size,
            max_context_len,
        ),
    )
    result: Tensor | tuple[Tensor, Tensor]
    result = _attend(PREFILL, arguments, return_lse, out, out_lse, status)
    return result


@overload
def ragged_page_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    page_table: Tensor,
    *,
    return_lse: Literal[False] = ...,
    **options: Unpack[AttentionOptions],
) -> Tensor: ...
@overload
def ragged_page_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    page_table: Tensor,
    *,
    return_lse: Literal[True],
    **options: Unpack[AttentionOptions],
) -> tuple[Tensor, Tensor]: ...
@overload
def ragged_page_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    page_table: Tensor,
    *,
    return_lse: bool,
    **options: Unpack[AttentionOptions],
) -> Tensor | tuple[Tensor, Tensor]: ...
def ragged_page_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    page_table: Tensor,
    *,
    softmax_scale: float | None = None,
    mask_value: float = DEFAULT_MASK_VALUE,
    attn_logits_soft_cap: float | None = None,
    sliding_window: int | None = None,
    sinks: Tensor | None = None,
    kv_start: Tensor | int | None = None,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    return_lse: bool = False,
    out: Tensor | None = None,
    out_lse: Tensor | None = None,
    num_threads: int | None = None,
    backend: str | None = None,
    cpu_target: str | None = None,
    max_chunk_size: int | None = None,
    max_context_len: int | None = None,
    status: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """prefill_page_attention for a batch of sequences, chunks and single decode tokens mixed.

    Args:
        query: [total_tokens, num_q_heads, head_dim], the rows of all sequences.
        query_starts: int32 [num_seqs + 1]: the rows of sequence s are those from query_starts[s] to
            query_starts[s + 1]; from 0, never decreasing. Rows from query_starts[num_seqs] on are
            padding: `out` and `out_lse` stay there as they are, new tensors hold 0 and -inf.
        context_lens: int32 [num_seqs].
        page_table: int32 [num_seqs, max_pages], row s holds the pages of sequence s.
        kv_start: int32 [num_seqs].

    All else, and what is returned and raised, as in prefill_page_attention, with total_tokens for
    chunk_size.
    """
    arguments = (
        _arguments.tensor("query", query),
        _arguments.tensor("key_cache", key_cache),
        _arguments.tensor("value_cache", value_cache),
        _arguments.lengths("query_starts", query_starts),
        _arguments.lengths("context_lens", context_lens),
        _arguments.lengths("page_table", page_table),
        *_options(
            query,
            softmax_scale,
            mask_value,
            attn_logits_soft_cap,
            sliding_window,
            sinks,
            kv_start,
            key_scale,
            value_scale,
            num_threads,
            backend,
            cpu_target,
            max_chunk_size,
            max_context_len,
        ),
    )
    result: Tensor | tuple[Tensor, Tensor]
    result = _attend(RAGGED, arguments, return_lse, out, out_lse, status)
    return result
