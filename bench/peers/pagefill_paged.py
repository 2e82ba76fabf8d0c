"""pagefill's ragged_page_attention through its C interface."""

from __future__ import annotations

import ctypes

import numpy as np

from ..inputs import Inputs
from ..pagefill_c import WORKSPACE_ALIGNMENT, CallReport, Context, Library
from . import Call, Unsupported

PAGE_SIZE = 16


def prepare(inputs: Inputs, threads: int) -> Call:
    library = Library()
    shape = inputs.shape
    if inputs.dtypes.cache not in library.dtypes:
        raise Unsupported(f"pagefill's C interface has no {inputs.dtypes.cache} cache yet")
    if inputs.dtypes.cache == "int8":
        raise Unsupported("the comparison does not hand over scales yet")
    total_tokens = shape.num_seqs * shape.chunk
    query = inputs.query.reshape(total_tokens, shape.num_q_heads, shape.head_dim)
    output = np.full_like(query, np.nan)
    # [num_kv_heads, total_num_pages, page_size, head_dim], contiguous
    key_cache, value_cache = (
        np.ascontiguousarray(inputs.paged(tokens, PAGE_SIZE).swapaxes(0, 1))
        for tokens in (inputs.keys, inputs.values)
    )
    query_starts = np.arange(0, total_tokens + 1, shape.chunk, dtype=np.int32)
    context_lens = np.full(shape.num_seqs, shape.context, np.int32)
    page_table = inputs.page_table(PAGE_SIZE)
    arrays = (query, key_cache, value_cache, query_starts, context_lens, page_table, output)

    *operands, result = [ctypes.byref(library.tensor(array)) for array in arrays]
    arguments = [*operands, None, result, None]  # no options, no lse
    report = CallReport(struct_size=ctypes.sizeof(CallReport))
    context = Context(struct_size=ctypes.sizeof(Context), num_threads=threads)
    size = library.attention_workspace_size(arguments, context)
    memory = np.empty(size + WORKSPACE_ALIGNMENT, np.uint8)
    context.workspace = memory.ctypes.data + -memory.ctypes.data % WORKSPACE_ALIGNMENT
    context.workspace_size = size
    context.report = ctypes.pointer(report)

    def run() -> None:
        library.ragged_page_attention(arguments, context)

    run()
    keep = (arrays, memory)  # what the pointers point to
    return Call(
        run,
        lambda: keep[0][-1].astype(np.float64).reshape(inputs.query.shape),
        f"{report.target.decode()}, pages of {PAGE_SIZE}, {size / 1024:.0f} KiB of workspace",
    )
