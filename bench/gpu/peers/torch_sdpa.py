"""torch's own operators behind scaled_dot_product_attention, on contiguous memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from ..inputs import Inputs
from . import Call

MAX_MASK_BYTES = 1 << 30


def _cudnn(bias: torch.Tensor | None, causal: bool) -> Callable[..., torch.Tensor]:
    operator = torch.ops.aten._scaled_dot_product_cudnn_attention
    return lambda q, k, v: operator(q, k, v, bias, False, 0.0, causal)[0]


def _flash(causal: bool) -> Callable[..., torch.Tensor]:
    operator = torch.ops.aten._scaled_dot_product_flash_attention
    return lambda q, k, v: operator(q, k, v, 0.0, causal)[0]


def _mask(inputs: Inputs) -> torch.Tensor:
    """A bias that hides what lies after each query, where is_causal means another corner."""
    shape = inputs.shape
    size = (shape.chunk, shape.context)
    mask = torch.full(size, -torch.inf, device="cuda", dtype=torch.bfloat16)
    mask = mask.triu_(shape.context - shape.chunk + 1)
    return mask.expand(shape.num_seqs, shape.num_q_heads, *size)


def prepare(inputs: Inputs, page_size: int, backend: str) -> Iterator[Call]:
    """The operators themselves, because scaled_dot_product_attention refuses is_causal for a chunk that
    ends a longer context; some mean the context's end by it, as is wanted here."""
    shape = inputs.shape
    causal = shape.chunk > 1

    def call(operator: Callable[..., torch.Tensor], note: str) -> Call:
        query = inputs.query.unflatten(1, (shape.num_seqs, shape.chunk)).transpose(2, 3)
        keys, values = (tokens.transpose(2, 3) for tokens in (inputs.keys, inputs.values))
        last: list[torch.Tensor] = []

        def run_of(index: int) -> Callable[[], None]:
            operands = (query[index], keys[index], values[index])

            def run() -> None:
                last[:] = [operator(*operands)]

            return run

        runs = [run_of(index) for index in range(inputs.num_sets)]
        return Call(runs, lambda: last[0].transpose(1, 2), note)

    if backend == "flash":
        yield call(_flash(causal), "is_causal" if causal else "")
        return
    yield call(_cudnn(None, causal), "is_causal" if causal else "")
    if causal and 2 * shape.chunk * shape.context <= MAX_MASK_BYTES:
        yield call(_cudnn(_mask(inputs), False), "with a mask")
