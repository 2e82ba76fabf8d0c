"""The inputs of one comparison, and the layouts in which the peers want them."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from .shapes import Dtypes, Shape

NUMPY_DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "int8": np.float32}


class Inputs:
    """Queries, keys and values of standard normal numbers, already rounded to their dtypes.

    query is [num_seqs, chunk, num_q_heads, head_dim]; keys and values are [num_seqs, context,
    num_kv_heads, head_dim]. For an int8 cache they stay float32: each peer quantises in its own way.
    """

    def __init__(self, shape: Shape, dtypes: Dtypes) -> None:
        self.shape = shape
        self.dtypes = dtypes
        self._random = np.random.default_rng(1)
        self.query = self._normal(shape.chunk, shape.num_q_heads, dtypes.query)
        self.keys = self._normal(shape.context, shape.num_kv_heads, dtypes.cache)
        self.values = self._normal(shape.context, shape.num_kv_heads, dtypes.cache)

    def _normal(self, tokens: int, heads: int, dtype: str) -> np.ndarray:
        shape = (self.shape.num_seqs, tokens, heads, self.shape.head_dim)
        return self._random.standard_normal(shape, np.float32).astype(
            NUMPY_DTYPES[dtype], copy=False
        )

    def page_table(self, page_size: int) -> np.ndarray:
        """int32 [num_seqs, num_pages]: physical pages, at random through the whole cache."""
        num_pages = -(-self.shape.context // page_size)
        pages = np.random.default_rng(page_size).permutation(self.shape.num_seqs * num_pages)
        return pages.reshape(self.shape.num_seqs, num_pages).astype(np.int32)

    def paged(self, tokens: np.ndarray, page_size: int) -> np.ndarray:
        """Keys or values as [total_num_pages, num_kv_heads, page_size, head_dim], by page_table."""
        table = self.page_table(page_size)
        num_seqs, context, heads, head_dim = tokens.shape
        padded = np.zeros((num_seqs, table.shape[1] * page_size, heads, head_dim), tokens.dtype)
        padded[:, :context] = tokens
        cache = np.empty((table.size, heads, page_size, head_dim), tokens.dtype)
        pages = padded.reshape(table.size, page_size, heads, head_dim)
        cache[table.reshape(-1)] = pages.swapaxes(1, 2)
        return cache
