"""The primitive of merge_attention_states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pagefill.jax import _primitive
from pagefill.jax._check import expect

FLOATS = ("float32", "bfloat16", "float16")


def _abstract(
    output_a: jax.core.ShapedArray,
    lse_a: jax.core.ShapedArray,
    output_b: jax.core.ShapedArray,
    lse_b: jax.core.ShapedArray,
) -> list[jax.core.ShapedArray]:
    # The library has no merge without memory that could say this, as attention and append_kv have.
    shape = "[total_tokens, num_q_heads, v_head_dim]"
    expect("output_a", output_a, shape, (None,) * 3, *FLOATS)
    rows = output_a.shape[:2]
    expect("lse_a", lse_a, f"{list(rows)}", rows, "float32")
    expect("output_b", output_b, f"{list(output_a.shape)}", output_a.shape, output_a.dtype.name)
    expect("lse_b", lse_b, f"{list(rows)}", rows, "float32")
    return [
        jax.core.ShapedArray(output_a.shape, output_a.dtype),
        jax.core.ShapedArray(lse_a.shape, lse_a.dtype),
    ]


def _batch(
    args: Sequence[jax.Array], dims: Sequence[int | None], **params: Any
) -> tuple[Sequence[jax.Array], Sequence[int]]:
    """All calls of vmap are one with more tokens."""
    size = next(arg.shape[dim] for arg, dim in zip(args, dims, strict=True) if dim is not None)
    whole = [
        arg if dim is not None else jnp.broadcast_to(arg, (size, *arg.shape))
        for arg, dim in zip(_primitive.to_front(args, dims), dims, strict=True)
    ]
    results = merge_p.bind(
        *(arg.reshape(size * arg.shape[1], *arg.shape[2:]) for arg in whole), **params
    )
    results = [
        result.reshape(size, result.shape[0] // size if size else 0, *result.shape[1:])
        for result in results
    ]
    return results, [0, 0]


merge_p = _primitive.define(
    "merge_attention_states", "pagefill_merge", _abstract, _batch, lambda platform: {}
)


@jax.jit
def merge(
    output_a: jax.Array, lse_a: jax.Array, output_b: jax.Array, lse_b: jax.Array
) -> Sequence[jax.Array]:
    arguments = (output_a, lse_a, output_b, lse_b)
    return list(_primitive.varying_alike(arguments, merge_p.bind(*arguments)))
