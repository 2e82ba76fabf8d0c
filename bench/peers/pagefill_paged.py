"""pagefill's ragged_page_attention through its C interface."""

from __future__ import annotations

import ctypes

import numpy as np

from ..inputs import Inputs
from ..pagefill_c import (
    WORKSPACE_ALIGNMENT,
    AttentionOptions,
    CallReport,
    Context,
    Library,
    PagefillUnsupported,
)
from . import Call, Unsupported

PAGE_SIZE = 16


def _quantised(cache: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8, and a scale for each slot: [num_kv_heads, total_num_pages, page_size]; slots may be empty."""
    scale = np.maximum(np.abs(cache).max(axis=-1) / 127, np.finfo(np.float32).tiny)
    return np.rint(cache / scale[..., None]).astype(np.int8), scale


def prepare(inputs: Inputs, threads: int) -> Call:
    library = Library()
    shape = inputs.shape
    if inputs.dtypes.cache not in library.dtypes:
        raise Unsupported(f"pagefill has no dtype {inputs.dtypes.cache}")
    total_tokens = shape.num_seqs * shape.chunk
    query = inputs.query.reshape(total_tokens, shape.num_q_heads, shape.head_dim)
    output = np.full_like(query, np.nan)
    # [num_kv_heads, total_num_pages, page_size, head_dim], contiguous
    caches = [
        np.ascontiguousarray(inputs.paged(tokens, PAGE_SIZE).swapaxes(0, 1))
        for tokens in (inputs.keys, inputs.values)
    ]
    options, scales = AttentionOptions(struct_size=ctypes.sizeof(AttentionOptions)), []
    if inputs.dtypes.cache == "int8":
        caches, scales = zip(*map(_quantised, caches))
        views = [library.tensor(scale) for scale in scales]
        options.key_scale, options.value_scale = map(ctypes.pointer, views)
    query_starts = np.arange(0, total_tokens + 1, shape.chunk, dtype=np.int32)
    context_lens = np.full(shape.num_seqs, shape.context, np.int32)
    page_table = inputs.page_table(PAGE_SIZE)
    arrays = (query, *caches, query_starts, context_lens, page_table, output)

    *operands, result = [ctypes.byref(library.tensor(array)) for array in arrays]
    arguments = [*operands, ctypes.byref(options), result, None]  # no lse
    report = CallReport(struct_size=ctypes.sizeof(CallReport))
    context = Context(struct_size=ctypes.sizeof(Context), num_threads=threads)
    size = library.attention_workspace_size(arguments, context)
    memory = np.empty(size + WORKSPACE_ALIGNMENT, np.uint8)
    if size > 0:  # the reference backend needs none
        context.workspace = memory.ctypes.data + -memory.ctypes.data % WORKSPACE_ALIGNMENT
        context.workspace_size = size
    context.report = ctypes.pointer(report)
    pointed_to = (arrays, scales, memory)

    def run() -> None:
        library.ragged_page_attention(arguments, context)

    try:
        run()
    except PagefillUnsupported as error:
        raise Unsupported(str(error)) from error
    return Call(
        run,
        lambda: pointed_to[0][-1].astype(np.float64).reshape(inputs.query.shape),
        f"{report.target.decode()}, pages of {PAGE_SIZE}, {size / 1024:.0f} KiB of workspace",
    )
