"""pagefill's ragged_page_attention through its C interface."""

from __future__ import annotations

import ctypes

import numpy as np
from pagefill._c import structs, views
from pagefill._c.library import DTYPES, check, lib

from ..inputs import Inputs
from . import Call, Unsupported

PAGE_SIZE = 16
WORKSPACE_ALIGNMENT = 64  # PAGEFILL_WORKSPACE_ALIGNMENT


def _quantised(cache: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8, and a scale for each slot: [num_kv_heads, total_num_pages, page_size]; slots may be
    empty."""
    scale = np.maximum(np.abs(cache).max(axis=-1) / 127, np.finfo(np.float32).tiny)
    return np.rint(cache / scale[..., None]).astype(np.int8), scale


def prepare(inputs: Inputs, threads: int) -> Call:
    shape = inputs.shape
    if inputs.dtypes.cache not in DTYPES:
        raise Unsupported(f"pagefill has no dtype {inputs.dtypes.cache}")
    total_tokens = shape.num_seqs * shape.chunk
    query = inputs.query.reshape(total_tokens, shape.num_q_heads, shape.head_dim)
    output = np.full_like(query, np.nan)
    # [num_kv_heads, total_num_pages, page_size, head_dim], contiguous
    caches = [
        np.ascontiguousarray(inputs.paged(tokens, PAGE_SIZE).swapaxes(0, 1))
        for tokens in (inputs.keys, inputs.values)
    ]
    scales: list[np.ndarray] = []
    if inputs.dtypes.cache == "int8":
        caches, scales = map(list, zip(*map(_quantised, caches)))
    query_starts = np.arange(0, total_tokens + 1, shape.chunk, dtype=np.int32)
    context_lens = np.full(shape.num_seqs, shape.context, np.int32)
    page_table = inputs.page_table(PAGE_SIZE)
    arrays = (query, *caches, query_starts, context_lens, page_table)

    names = ("key_scale", "value_scale")
    options = structs.attention_options(
        **{name: views.read(name, scale) for name, scale in zip(names, scales)}
    )
    operands = [views.read("", array) for array in arrays]
    arguments = (*operands, options, views.write("output", output), None)  # no lse
    context = structs.context(threads)
    needed = ctypes.c_size_t()
    check(lib.pagefill_attention_workspace_size(*arguments, context, ctypes.byref(needed)))
    memory = np.empty(needed.value + WORKSPACE_ALIGNMENT, np.uint8)
    workspace = 0
    if needed.value > 0:  # the reference backend needs none
        workspace = memory.ctypes.data + -memory.ctypes.data % WORKSPACE_ALIGNMENT
    report = structs.CallReport()
    context = structs.of_one_call(
        context,
        workspace=workspace,
        workspace_size=needed.value,
        report=ctypes.addressof(report),
    )
    pointed_to = (arrays, scales, memory, report, output)

    def run() -> None:
        check(lib.pagefill_ragged_page_attention(*arguments, context))

    try:
        run()
    except NotImplementedError as error:
        raise Unsupported(str(error)) from error
    return Call(
        run,
        lambda: pointed_to[-1].astype(np.float64).reshape(inputs.query.shape),
        f"{report.target.decode()}, pages of {PAGE_SIZE}, "
        f"{needed.value / 1024:.0f} KiB of workspace",
    )
