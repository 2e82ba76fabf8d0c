"""The arrays that an attention call writes: the caller's, or new ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from pagefill._c import dtypes, structs, views
from pagefill._c.views import Array

NAMES = {
    "output": "out",
    "lse": "out_lse",
    "merged_output": "out",
    "merged_lse": "out_lse",
    "cuda.max_chunk_size": "max_chunk_size",
    "cuda.max_context_len": "max_context_len",
    "cuda.status": "status",
}
"""What the library's messages call the outputs and settings, and what Python does."""


class Outputs:
    """Makes them of the shape and dtype that follow from query and value_cache. Shapes that make no
    sense are left to the call to refuse: it names query or value_cache first."""

    __slots__ = ("_dtype", "_padded", "_shape")

    def __init__(
        self,
        query_shape: tuple[int, ...],
        query: Array,
        query_view: bytes,
        value_cache: Array,
        value_view: bytes,
        padded: bool = False,
    ) -> None:
        self._shape = query_shape[:-1] + views.shape(value_cache, value_view)[-1:]
        self._dtype = query.dtype if type(query) is np.ndarray else query_view
        self._padded = padded

    def output(self, out: Array | None) -> tuple[Any, bytes]:
        """`out`, or a new array; padding rows, which no call writes, are 0."""
        if out is None:
            dtype = self._dtype
            if type(dtype) is bytes or isinstance(dtype, bytes):
                dtype = dtypes.numpy_dtype(structs.described(dtype)[0])
            new = np.zeros if self._padded else np.empty
            out = new(self._shape, dtype)
        return out, views.write("out", out)

    def lse(self, out_lse: Array | None, wanted: bool) -> tuple[Any, bytes | None]:
        """`out_lse`, or a new array where it is wanted; padding rows are -inf."""
        if out_lse is None:
            if not wanted:
                return None, None
            out_lse = np.empty(self._shape[:-1], np.float32)
            if self._padded:
                out_lse.fill(-np.inf)
        return out_lse, views.write("out_lse", out_lse)
