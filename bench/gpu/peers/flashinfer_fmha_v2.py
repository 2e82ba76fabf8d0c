"""FlashInfer's trtllm_fmha_v2_prefill: kernels of TensorRT-LLM, compiled on first use by nvcc."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from flashinfer.prefill import trtllm_fmha_v2_prefill

from ..inputs import Inputs
from . import Call

WORKSPACE_BYTES = 256 << 20


def prepare(inputs: Inputs, page_size: int) -> Iterator[Call]:
    shape = inputs.shape
    outputs = inputs.outputs()
    # [num_sets, total_num_pages, 2, page_size, num_kv_heads, head_dim]
    cache = torch.stack(inputs.pages(page_size), dim=2)
    workspace = torch.zeros(WORKSPACE_BYTES, device="cuda", dtype=torch.uint8)
    lengths, table = inputs.lengths(), inputs.page_table(page_size)
    query_starts, key_starts = inputs.starts(shape.chunk), inputs.starts(shape.context)

    def run_of(index: int) -> Callable[[], None]:
        operands = (inputs.query[index], cache[index])
        out = outputs[index]
        return lambda: trtllm_fmha_v2_prefill(
            operands,
            "Q_PAGED_KV_NHD",
            workspace,
            lengths,
            shape.chunk,
            shape.context,
            shape.head_dim**-0.5,
            1.0,
            shape.num_seqs,
            query_starts,
            key_starts,
            block_tables=table,
            out=out,
        )

    runs = [run_of(index) for index in range(inputs.num_sets)]
    yield Call(runs, lambda: outputs[0], outputs=outputs)
