"""Attention over a paged KV cache, for PyTorch tensors on the CPU or a CUDA device.

The operators are in torch's own registry too, as torch.ops.pagefill: torch.compile and torch.export
trace through these functions. Inference only.
"""

from pagefill.torch._attention import prefill_page_attention, ragged_page_attention
from pagefill.torch._copy_pages import copy_pages
from pagefill.torch._kv_cache import append_kv
from pagefill.torch._merge import merge_attention_states

__all__ = [
    "append_kv",
    "copy_pages",
    "merge_attention_states",
    "prefill_page_attention",
    "ragged_page_attention",
]
