"""How new tokens get into their slots, for JAX arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax

from pagefill.jax import _primitive
from pagefill.jax._arguments import array, copies as copies_of, given, lengths, pages
from pagefill.jax._attention import GIVEN, given_bits, refuse_on_the_cpu
from pagefill.jax._check import check_append, is_known
from pagefill.jax._copy_pages import copy

NUM_OPERANDS = 7
KEY_CACHE, VALUE_CACHE = 2, 3  # operands that are results as well
WRITTEN = ("chosen_key_scale", "chosen_value_scale", "status")  # likewise, where given


def _aliases(given: tuple[str, ...]) -> dict[int, int]:
    written = [KEY_CACHE, VALUE_CACHE]
    written += [NUM_OPERANDS + given.index(name) for name in WRITTEN if name in given]
    return {operand: result for result, operand in enumerate(written)}


def _abstract(
    *operands: jax.core.ShapedArray, given: tuple[str, ...]
) -> list[jax.core.ShapedArray]:
    if is_known(*operands):
        optional = dict(zip(given, operands[NUM_OPERANDS:], strict=True))
        check_append(operands[:NUM_OPERANDS], optional)
    return [jax.core.ShapedArray(operands[i].shape, operands[i].dtype) for i in _aliases(given)]


def _batch(
    args: Sequence[jax.Array], dims: Sequence[int | None], **params: Any
) -> tuple[Sequence[jax.Array], Sequence[int]]:
    return _primitive.one_after_another(append_p, args, dims, **params)


def _attributes(platform: str, given: tuple[str, ...]) -> dict[str, Any]:
    refuse_on_the_cpu(platform, given)
    return {"given": given_bits(given)}


append_p = _primitive.define(
    "append_kv",
    "pagefill_append_kv",
    _abstract,
    _batch,
    _attributes,
    _aliases,
)


def append_kv(
    keys: jax.Array,
    values: jax.Array,
    key_cache: jax.Array,
    value_cache: jax.Array,
    query_starts: jax.Array,
    context_lens: jax.Array,
    page_table: jax.Array,
    *,
    kv_start: jax.Array | None = None,
    key_scale: jax.Array | None = None,
    value_scale: jax.Array | None = None,
    chosen_key_scale: jax.Array | None = None,
    chosen_value_scale: jax.Array | None = None,
    status: jax.Array | None = None,
) -> tuple[jax.Array, ...]:
    """Caches in which the keys and values of new tokens stand in their slots.

    JAX's arrays do not change, so the caches come back. They stay in place, without a copy, where
    they are donated or die inside of a jitted function:

        append = jax.jit(pagefill.jax.append_kv, donate_argnames=("key_cache", "value_cache"))
        key_cache, value_cache = append(keys, values, key_cache, value_cache, ...)

    Args:
        keys: [total_tokens, num_kv_heads, head_dim] float32, bfloat16 or float16.
        values: [total_tokens, num_kv_heads, v_head_dim], keys' dtype.
        key_cache: [num_kv_heads, total_num_pages, page_size, head_dim]; a quantised dtype, or a
            float to which keys are rounded.
        value_cache: [num_kv_heads, total_num_pages, page_size, v_head_dim], key_cache's dtype.
        query_starts: int32 [num_seqs + 1]: sequence s has the tokens from query_starts[s] to
            query_starts[s + 1].
        context_lens: int32 [num_seqs], the new tokens counted.
        page_table: int32 [num_seqs, max_pages].
        kv_start: int32 [num_seqs]: the position of the table's first slot.
        key_scale, value_scale: float32, of a quantised cache: what to divide by, in attention's
            shapes.
        chosen_key_scale, chosen_value_scale: float32 [num_kv_heads, total_num_pages, page_size]:
            each new slot's scale is chosen, and comes back in these. Not together with key_scale,
            value_scale.
        status: int32 [4], zeros at first, for CUDA alone: comes back with what was found bad, as in
            prefill_page_attention.

    Returns:
        (key_cache, value_cache), and behind them the chosen scales, and status, that were given.

    Raises:
        ValueError, TypeError: shapes, dtypes and options that break a rule, when the call is
            traced.
        NotImplementedError: a gradient, or a computation for another platform than the CPU and,
            where pagefill was built with CUDA, CUDA.
        jax.errors.JaxRuntimeError: on the CPU, a length or page number out of range, when a result
            is waited for; ValueError where XLA ran the call in the calling thread. The message is
            the library's. On CUDA a token without a slot is not written, and `status` says so.
    """
    operands = (
        array("keys", keys),
        array("values", values),
        array("key_cache", key_cache),
        array("value_cache", value_cache),
        lengths("query_starts", query_starts),
        lengths("context_lens", context_lens),
        pages("page_table", page_table),
    )
    optional = given(
        kv_start=None if kv_start is None else lengths("kv_start", kv_start),
        key_scale=key_scale,
        value_scale=value_scale,
        chosen_key_scale=chosen_key_scale,
        chosen_value_scale=chosen_value_scale,
        status=status,
    )
    return tuple(_append(operands, optional))


@jax.jit
def _append(operands: Sequence[jax.Array], optional: dict[str, jax.Array]) -> Sequence[jax.Array]:
    given = tuple(name for name in GIVEN if name in optional)
    arguments = [*operands, *(optional[name] for name in given)]
    return list(_primitive.varying_alike(arguments, append_p.bind(*arguments, given=given)))


def copy_pages(
    copies: jax.Array | Iterable[tuple[int, int, int]],
    key_cache: jax.Array,
    value_cache: jax.Array,
    *,
    key_scale: jax.Array | None = None,
    value_scale: jax.Array | None = None,
    status: jax.Array | None = None,
) -> tuple[jax.Array, ...]:
    """Caches in which the copies that `PageAllocator.append` asks for have been carried out, in
    their order; in place where they are donated, as in `append_kv`.

    Args:
        copies: (source, destination, num_slots) each, pages of the cache and how many slots of
            them; or int32 [num_copies, 3]. Other numbers compile nothing, another num_copies does:
            copies of 0 slots fill up.
        key_cache, value_cache: as in `append_kv`.
        key_scale, value_scale: float32 [num_kv_heads, total_num_pages, page_size]: scales a slot of
            a quantised cache, which move with the elements.
        status: int32 [4], zeros at first, for CUDA alone: code 6, copy, number and value of the
            first copy that is bad.

    Returns:
        (key_cache, value_cache), and behind them the scales, and status, that were given.

    Raises:
        As append_kv. On CUDA a copy of pages or slots that are not in the cache is not done, and
        `status` says so.
    """
    operands = (
        copies_of(copies),
        array("key_cache", key_cache),
        array("value_cache", value_cache),
    )
    optional = given(key_scale=key_scale, value_scale=value_scale, status=status)
    return tuple(copy(operands, optional))
