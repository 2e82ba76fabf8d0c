"""FlashInfer's BatchPrefillWithPagedKVCacheWrapper, planned ahead. Its kernels are compiled on first use
by nvcc, for minutes where nothing is cached."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from flashinfer import BatchPrefillWithPagedKVCacheWrapper

from ..inputs import Inputs
from . import Call

WORKSPACE_BYTES = 512 << 20


def prepare(inputs: Inputs, page_size: int, backend: str) -> Iterator[Call]:
    shape = inputs.shape
    outputs = inputs.outputs()
    keys, values = inputs.pages(page_size)
    table = inputs.page_table(page_size)
    last_page = torch.full_like(inputs.lengths(), (shape.context - 1) % page_size + 1)
    workspace = torch.empty(WORKSPACE_BYTES, device="cuda", dtype=torch.uint8)
    wrapper = BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD", backend=backend)
    wrapper.plan(
        inputs.starts(shape.chunk),
        inputs.starts(table.shape[1]),
        table.view(-1),
        last_page,
        shape.num_q_heads,
        shape.num_kv_heads,
        shape.head_dim,
        page_size,
        causal=True,
        q_data_type=torch.bfloat16,
        kv_data_type=torch.bfloat16,
    )

    def run_of(index: int) -> Callable[[], None]:
        query, out, cache = inputs.query[index], outputs[index], (keys[index], values[index])
        return lambda: wrapper.run(query, cache, out=out)

    runs = [run_of(index) for index in range(inputs.num_sets)]
    yield Call(runs, lambda: outputs[0], "planned ahead", outputs)
