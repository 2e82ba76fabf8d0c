"""The attention primitive: what is static of a call, its rule of vmap, and its FFI call."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import mlir

from pagefill._c.environment import CUDA_TARGET, variable
from pagefill._c.structs import INT32_MAX, OptionFlag
from pagefill.jax import _primitive
from pagefill.jax._check import check_attention, cuda_workspace, is_known

GIVEN = {
    "query_starts": 1,
    "sinks": 2,
    "kv_start": 4,
    "key_scale": 8,
    "value_scale": 16,
    "chosen_key_scale": 32,
    "chosen_value_scale": 64,
    "status": 128,
}
"""Optional operands, in their order, by the bits that name them in python/src/jax_call.h."""

NUM_OPERANDS = 5  # before those

Array = jax.Array
Batched = tuple[Sequence[Array], Sequence[int]]


class Maxima(NamedTuple):
    """What no sequence exceeds, which plans a call for CUDA; 0 is the default, all that there may
    be."""

    max_chunk_size: int = 0
    max_context_len: int = 0


class Numbers(NamedTuple):
    """The options that are numbers, as _c.options has checked them; None is the default."""

    softmax_scale: float | None
    attn_logits_soft_cap: float | None
    sliding_window: int | None
    mask_value: float | None


FLAGS = {
    "softmax_scale": OptionFlag.SOFTMAX_SCALE,
    "attn_logits_soft_cap": OptionFlag.SOFT_CAP,
    "sliding_window": OptionFlag.SLIDING_WINDOW,
    "mask_value": OptionFlag.MASK_VALUE,
}


def given_bits(given: Sequence[str]) -> np.int32:
    return np.int32(sum(GIVEN[name] for name in given))


def _abstract(
    query: jax.core.ShapedArray,
    key_cache: jax.core.ShapedArray,
    value_cache: jax.core.ShapedArray,
    context_lens: jax.core.ShapedArray,
    page_table: jax.core.ShapedArray,
    *optional: jax.core.ShapedArray,
    given: tuple[str, ...],
    numbers: Numbers,
    with_lse: bool,
    maxima: Maxima,
) -> list[jax.core.ShapedArray]:
    operands = (query, key_cache, value_cache, context_lens, page_table)
    output = (*query.shape[:2], *value_cache.shape[3:4])
    if is_known(*operands, *optional):
        named = dict(zip(given, optional, strict=True))
        check_attention(*operands, named, numbers._asdict(), output)
    results = [jax.core.ShapedArray(output, query.dtype)]
    if with_lse:
        results.append(jax.core.ShapedArray(query.shape[:2], np.dtype(np.float32)))
    if "status" in given:
        results.append(jax.core.ShapedArray((4,), np.dtype(np.int32)))
    return results


def _attributes(
    platform: str, given: tuple[str, ...], numbers: Numbers, with_lse: bool, maxima: Maxima
) -> dict[str, Any]:
    del with_lse  # the number of results says it
    refuse_on_the_cpu(platform, given, **maxima._asdict())
    return _options_as_attributes(given, numbers)


def refuse_on_the_cpu(platform: str, given: Sequence[str], **maxima: int) -> None:
    """What is for CUDA alone, where a call does not read lengths."""
    values: dict[str, Any] = {**maxima, "status": "an array" if "status" in given else None}
    for name, value in values.items():
        if value and platform == "cpu":
            raise ValueError(
                f"{name}: expected None in a computation for the CPU, which reads lengths, "
                f"got {value}"
            )


def _options_as_attributes(given: tuple[str, ...], numbers: Numbers) -> dict[str, Any]:
    return {
        "given": given_bits(given),
        "flags": np.int32(sum(FLAGS[name] for name in FLAGS if getattr(numbers, name) is not None)),
        "softmax_scale": np.float32(numbers.softmax_scale or 0),
        "attn_logits_soft_cap": np.float32(numbers.attn_logits_soft_cap or 0),
        "mask_value": np.float32(numbers.mask_value or 0),
        "sliding_window": np.int64(numbers.sliding_window or 0),
    }


def _on_cuda(
    context: Any,
    *operands: Any,
    given: tuple[str, ...],
    numbers: Numbers,
    with_lse: bool,
    maxima: Maxima,
) -> Any:
    """The FFI call for CUDA. Its workspace is one more result, which XLA places as it does all
    memory of a program: scratch memory of the handler's would be given to others while a command
    buffer that was captured still uses it. Only where the size cannot be known here, without a GPU
    or with open dimensions, it is scratch memory, and the call stays out of command buffers."""
    ins, outs = list(context.avals_in), list(context.avals_out)
    size = None
    if is_known(*ins, *outs):
        named = dict(zip(given, ins[NUM_OPERANDS:], strict=True))
        output = outs[0].shape
        size = cuda_workspace(
            ins[:NUM_OPERANDS], named, numbers._asdict(), output, with_lse, maxima
        )
    aliases = {}
    values = list(operands)
    if "status" in given:
        aliases[NUM_OPERANDS + given.index("status")] = len(outs) - 1
    if "query_starts" in given:  # rows of no sequence, which the call does not write
        state = outs[: 1 + with_lse]
        for result, (aval, rest) in enumerate(zip(state, (0, -np.inf), strict=False)):
            aliases[len(values)] = result
            fill = mlir.lower_fun(
                functools.partial(jnp.full, aval.shape, rest, aval.dtype), multiple_results=False
            )
            values += fill(context.replace(avals_in=[], avals_out=[aval]))
        ins += state
    workspace = jax.core.ShapedArray((size or 0,), np.dtype(np.uint8))
    target = "pagefill_attention_scratch" if size is None else "pagefill_attention"
    rule = jax.ffi.ffi_lowering(target, operand_output_aliases=aliases)
    results = rule(
        context.replace(avals_in=ins, avals_out=[*outs, workspace]),
        *values,
        **_options_as_attributes(given, numbers),
        max_chunk_size=np.int64(maxima.max_chunk_size),
        max_context_len=np.int64(maxima.max_context_len),
    )
    return list(results)[:-1]


def _batch(args: Sequence[Array], dims: Sequence[int | None], **params: Any) -> Batched:
    """vmap of queries, lengths and tables over one cache is one ragged call; else, and where each
    call has its status, a loop."""
    given: tuple[str, ...] = params["given"]
    names = ("query", "key_cache", "value_cache", "context_lens", "page_table", *given)
    per_sequence = {"query", "context_lens", "page_table", "query_starts", "kv_start"}
    mapped = {name for name, dim in zip(names, dims, strict=True) if dim is not None}
    if not mapped <= per_sequence or "status" in given:
        return _primitive.one_after_another(attention_p, args, dims, **params)

    size = next(arg.shape[dim] for arg, dim in zip(args, dims, strict=True) if dim is not None)
    operands = dict(zip(names, _primitive.to_front(args, dims), strict=True))
    for name in per_sequence & set(names) - mapped:
        operands[name] = jnp.broadcast_to(operands[name], (size, *operands[name].shape))
    return _fold(operands, size, **params)


def _fold(
    operands: dict[str, Array],
    size: int,
    given: tuple[str, ...],
    numbers: Numbers,
    with_lse: bool,
    maxima: Maxima,
) -> Batched:
    """One ragged call for `size` calls; all that is a sequence's has the mapped dimension in
    front."""
    query, lengths, table = (operands[name] for name in ("query", "context_lens", "page_table"))
    tokens = query.shape[1]
    if size * tokens > INT32_MAX:
        raise ValueError(
            f"query: expected at most {INT32_MAX} tokens in all calls of vmap, got {size * tokens}"
        )
    first_rows = jnp.arange(size, dtype=jnp.int32) * tokens
    end = jnp.full(1, size * tokens, jnp.int32)
    kv_start = operands.get("kv_start")
    padding = None
    if "query_starts" not in given:  # chunks: a sequence a call
        starts = first_rows
        table = table[:, None]
    else:
        # Each call's rows behind its last sequence become a sequence without keys.
        own = operands["query_starts"]
        starts = (own + first_rows[:, None]).reshape(-1)
        # A call that does not begin with 0 must stay an error in the whole.
        wrong = jnp.max(jnp.abs(own[:, 0]), initial=0)
        starts = jnp.where(wrong == 0, starts, starts.at[:1].set(wrong))
        if maxima.max_chunk_size:  # that sequence has more rows, where there is much padding
            maxima = maxima._replace(max_chunk_size=tokens)
        lengths = jnp.pad(lengths, ((0, 0), (0, 1)))
        table = jnp.pad(table, ((0, 0), (0, 1), (0, 0)))
        if kv_start is not None:
            kv_start = jnp.pad(kv_start, ((0, 0), (0, 1)))
        padding = jnp.arange(tokens, dtype=jnp.int32) >= own[:, -1:]
    optional = {
        "query_starts": jnp.concatenate([starts, end]),
        "sinks": operands.get("sinks"),
        "kv_start": None if kv_start is None else kv_start.reshape(-1),
        "key_scale": operands.get("key_scale"),
        "value_scale": operands.get("value_scale"),
    }
    results = bind(
        query.reshape(size * tokens, *query.shape[2:]),
        operands["key_cache"],
        operands["value_cache"],
        lengths.reshape(-1),
        table.reshape(table.shape[0] * table.shape[1], table.shape[2]),
        optional,
        numbers,
        with_lse,
        maxima,
    )
    results = [result.reshape(size, tokens, *result.shape[1:]) for result in results]
    if padding is not None and with_lse and "sinks" in given:
        # A row without keys has the sink as its lse; one of no sequence has none.
        results[1] = jnp.where(padding[:, :, None], -jnp.inf, results[1])
    return results, [0] * len(results)


attention_p = _primitive.define(
    "pagefill_attention", "pagefill_attention", _abstract, _batch, _attributes, on_cuda=_on_cuda
)


def bind(
    query: Array,
    key_cache: Array,
    value_cache: Array,
    context_lens: Array,
    page_table: Array,
    optional: dict[str, Array | None],
    numbers: Numbers,
    with_lse: bool,
    maxima: Maxima,
) -> list[Array]:
    """[output], or [output, lse]. Without query_starts the batch of one: context_len,
    page_indices."""
    given = {name: array for name in GIVEN if (array := optional.get(name)) is not None}
    arguments = [query, key_cache, value_cache, context_lens, page_table, *given.values()]
    results = attention_p.bind(
        *arguments, given=tuple(given), numbers=numbers, with_lse=with_lse, maxima=maxima
    )
    return list(_primitive.varying_alike(arguments, results))


@functools.partial(
    jax.jit, static_argnames=("numbers", "with_lse", "maxima", "cuda_target"), inline=True
)
def _compiled(*operands: Any, cuda_target: bytes | None, **params: Any) -> list[Array]:
    return bind(*operands, **params)


def attend(*operands: Any, **params: Any) -> list[Array]:
    """bind for calls outside of jit as well: compiled once for each combination of shapes and
    options, and of what says which kernels CUDA devices run, and with that a workspace's size."""
    results: list[Array] = _compiled(*operands, **params, cuda_target=variable(CUDA_TARGET))
    return results
