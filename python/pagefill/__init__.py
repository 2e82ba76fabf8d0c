"""Attention over a paged KV cache, for NumPy arrays."""

from pagefill._c.library import VERSION as __version__

__all__ = ["__version__"]
