"""Attention over a paged KV cache, for JAX arrays, inside jit, vmap, shard_map, scan and AOT
compilation.

Runs on the CPU, in XLA's own threads, and on CUDA devices, on XLA's streams, where pagefill was
built with CUDA. Inference only: there is no gradient.
"""

from pagefill.jax._library import register_handlers
from pagefill.jax.attention import (
    merge_attention_states,
    prefill_page_attention,
    ragged_page_attention,
)
from pagefill.jax.kv_cache import append_kv, copy_pages

__all__ = [
    "append_kv",
    "copy_pages",
    "merge_attention_states",
    "prefill_page_attention",
    "ragged_page_attention",
]

register_handlers()
