"""FlashAttention-4: compiled on first use by cutlass-dsl, for minutes where nothing is cached."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from flash_attn.cute import flash_attn_func, flash_attn_varlen_func

from ..inputs import Inputs
from . import CONTIGUOUS, Call


def prepare(inputs: Inputs, page_size: int) -> Iterator[Call]:
    shape = inputs.shape
    last: list[torch.Tensor] = []
    if page_size == CONTIGUOUS:
        query = inputs.query.unflatten(1, (shape.num_seqs, shape.chunk))
        keys, values = inputs.keys, inputs.values
        function, given = flash_attn_func, {}
    else:
        query = inputs.query
        keys, values = inputs.pages(page_size)
        function = flash_attn_varlen_func
        given = {
            "cu_seqlens_q": inputs.starts(shape.chunk),
            "max_seqlen_q": shape.chunk,
            "max_seqlen_k": shape.context,
            "seqused_k": inputs.lengths(),
            "page_table": inputs.page_table(page_size),
        }

    def run_of(index: int) -> Callable[[], None]:
        operands = (query[index], keys[index], values[index])

        def run() -> None:
            result = function(*operands, causal=True, **given)
            last[:] = [result[0] if isinstance(result, tuple) else result]

        return run

    runs = [run_of(index) for index in range(inputs.num_sets)]
    yield Call(runs, lambda: last[0])
