"""Attention over a paged KV cache, for NumPy arrays. pagefill.jax, pagefill.torch and
pagefill.ejkernel are imported by themselves."""

from pagefill._c.library import VERSION as __version__
from pagefill._c.options import DEFAULT_MASK_VALUE
from pagefill.attention import (
    merge_attention_states,
    prefill_page_attention,
    ragged_page_attention,
)
from pagefill.backends import Backend, BackendChoice, Target, choose_backend, list_backends
from pagefill.kv_cache import PageAllocator, PageCopy, append_kv, copy_pages

__all__ = [
    "DEFAULT_MASK_VALUE",
    "Backend",
    "BackendChoice",
    "PageAllocator",
    "PageCopy",
    "Target",
    "__version__",
    "append_kv",
    "choose_backend",
    "copy_pages",
    "list_backends",
    "merge_attention_states",
    "prefill_page_attention",
    "ragged_page_attention",
]
