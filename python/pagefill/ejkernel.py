"""pagefill as ejkernel's own prefill_page_attention: `pagefill.ejkernel.register()`, nothing else.

ejkernel looks kernels up in a registry, by platform and backend, and takes the one of the highest
priority. On a CPU it asks for the platform XLA and the backend "any", so that is where pagefill
stands; on an NVIDIA GPU it asks for the platform CUDA where somebody has a kernel for it, so there
pagefill stands too, where it was built with CUDA. Where JAX's default backend is one that pagefill
does not run on, it hands the call on to what ejkernel would have taken.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ejkernel.kernels import Backend, Platform, kernel_registry

import pagefill.jax
from pagefill._c.options import DEFAULT_MASK_VALUE
from pagefill.jax._library import PLATFORMS
from pagefill.jax.attention import Options

__all__ = ["is_registered", "register", "unregister"]

ALGORITHM = "prefill_page_attention"
PRIORITY = 100
"""ejkernel's own have 0."""

_state: dict[str, Any] = {"on": False, "implementation": None}


def register() -> None:
    """From now on ejkernel's prefill_page_attention runs pagefill where JAX's default backend is
    the CPU; or NVIDIA's GPUs, where pagefill was built with CUDA.

    Calls that ejkernel refused by ValueError still get a ValueError, with pagefill's message, except
    for chunk_size, which need not be a multiple of page_size. Tuning parameters (block_k, num_warps,
    num_stages) have nothing to tune. Lengths and page numbers of other integers than int32 are
    converted. There is no gradient. What ejkernel has compiled before stays what it was. A second
    call changes nothing.
    """
    if _state["implementation"] is None:
        signature = inspect.signature(_ejkernels_own())
        prefill_page_attention.__signature__ = signature  # type: ignore[attr-defined]
        places = [(Platform.XLA, Backend.ANY)]
        if "cuda" in PLATFORMS:
            places.append((Platform.CUDA, Backend.GPU))
        for platform, backend in places:
            add = kernel_registry.register(ALGORITHM, platform, backend, priority=PRIORITY)
            _state["implementation"] = add(prefill_page_attention)
    _state["on"] = True


def unregister() -> None:
    """From now on ejkernel's own kernel runs again. The registry forgets nothing, so pagefill's
    entry stays in it and hands every call on."""
    _state["on"] = False


def is_registered() -> bool:
    """Whether register() was called, and unregister() was not after it."""
    return bool(_state["on"])


def prefill_page_attention(
    query: jax.Array,
    key_cache: jax.Array,
    value_cache: jax.Array,
    context_len: jax.Array,
    page_indices: jax.Array,
    *,
    softmax_scale: float | None = None,
    mask_value: float = DEFAULT_MASK_VALUE,
    attn_logits_soft_cap: float | None = None,
    sliding_window: int | None = None,
    block_k: int | None = None,
    num_warps: int | None = None,
    num_stages: int | None = None,
) -> jax.Array:
    """ejkernel's kernel, with its parameters: see pagefill.jax.prefill_page_attention."""
    options: Options = {
        "softmax_scale": softmax_scale,
        "mask_value": mask_value,
        "attn_logits_soft_cap": attn_logits_soft_cap,
        "sliding_window": sliding_window,
    }
    if not _state["on"] or not _runs_here():
        tuning = {"block_k": block_k, "num_warps": num_warps, "num_stages": num_stages}
        result: jax.Array = _ejkernels_own()(
            query, key_cache, value_cache, context_len, page_indices, **options, **tuning
        )
        return result
    return pagefill.jax.prefill_page_attention(
        query, key_cache, value_cache, _int32(context_len), _int32(page_indices), **options
    )


def _runs_here() -> bool:
    """Whether pagefill has a kernel for JAX's default backend."""
    backend = jax.default_backend()
    if backend in ("gpu", "cuda"):  # AMD's are called gpu as well
        backend = "cuda" if "NVIDIA" in jax.devices()[0].device_kind.upper() else "rocm"
    return backend in PLATFORMS


def _ejkernels_own() -> Callable[..., Any]:
    """What the registry would answer without pagefill."""
    for spec in kernel_registry.list_implementations(ALGORITHM):
        ours = inspect.unwrap(spec.implementation) is prefill_page_attention
        if not ours and (spec.platform, spec.backend) == (Platform.XLA, Backend.ANY):
            implementation: Callable[..., Any] = spec.implementation
            return implementation
    raise NotImplementedError(
        f"pagefill.ejkernel: expected ejkernel to have {ALGORITHM} for XLA and any backend, "
        "got none"
    )


def _int32(integers: Any) -> Any:
    """ejkernel takes JAX's integers of any width. What int32 cannot hold becomes -1, which is
    neither a length nor a page: an error where it matters, rather than another number."""
    if not isinstance(integers, jax.Array) or not jnp.issubdtype(integers.dtype, jnp.integer):
        return integers
    converted = integers.astype(jnp.int32)
    # Back again it is the same number; but uint32's -1 is as well.
    good = (converted.astype(integers.dtype) == integers) & ((integers < 0) == (converted < 0))
    return jnp.where(good, converted, -1)
