"""What the tests of the JAX face share. Imported before jax: it asks XLA for eight CPU devices."""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from typing import Any

import jax
import numpy as np
from cases import Case, bits, random_case

RUN_TIME_ERRORS = (ValueError, jax.errors.JaxRuntimeError)
"""What a bad length or page number is: the first where XLA runs the call in the calling thread."""


def problem(
    chunk: int = 24,
    context: int = 100,
    heads: tuple[int, int] = (8, 2),
    head_dim: int = 64,
    page_size: int = 16,
    dtype: Any = np.float32,
    cache_dtype: Any = None,
    seed: int = 0,
) -> Case:
    """One sequence with pages at random; three of the cache are not its own."""
    case = random_case(chunk, context, *heads, head_dim, page_size, dtype, seed)
    case.key_cache = case.key_cache.astype(cache_dtype or dtype)
    case.value_cache = case.value_cache.astype(cache_dtype or dtype)
    return case


def operands_of(case: Case) -> list[Any]:
    return list(case.arguments)


def assert_same_bits(got: Any, want: Any) -> None:
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    assert bits(got) == bits(want)


def shard_map(function: Any, mesh: Any, in_specs: Any, out_specs: Any) -> Any:
    """jax.shard_map, or what it was before that was its name."""
    if hasattr(jax, "shard_map"):
        return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)
    from jax.experimental import shard_map as old

    return old.shard_map(function, mesh, in_specs, out_specs, check_rep=False)
