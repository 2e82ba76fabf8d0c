"""torch's scaled_dot_product_attention: on a contiguous cache, and on pages that it must gather first."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from ..inputs import Inputs
from . import Call, Unsupported

PAGE_SIZE = 16

Attention = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _tensor(array: np.ndarray) -> torch.Tensor:
    """The array's memory as a tensor; NumPy and torch call bfloat16 different things."""
    array = np.ascontiguousarray(array)
    if array.dtype == np.float32:
        return torch.from_numpy(array)
    return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)


def _attention(inputs: Inputs, threads: int) -> Attention:
    """The fastest way to ask for it: of keys and values [num_seqs, num_kv_heads, context, head_dim].

    A whole prompt: is_causal skips what is masked; the KV heads are repeated as views. Otherwise the
    query heads of a KV head become rows, so that its keys are read once (enable_gqa copies them for each
    query head, which doubles the time of a decode step and takes nine times it in bfloat16), and a mask
    says what they see.
    """
    if inputs.dtypes.cache != inputs.dtypes.query:
        raise Unsupported("query and cache have one dtype")
    torch.set_num_threads(threads)
    shape = inputs.shape
    query = _tensor(inputs.query.swapaxes(1, 2))
    if shape.chunk == shape.context:
        pair = (shape.num_seqs * shape.num_kv_heads, shape.group, shape.context, shape.head_dim)

        def causal(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            repeated = [t.view(-1, 1, *pair[2:]).expand(pair) for t in (keys, values)]
            return scaled_dot_product_attention(query.view(pair), *repeated, is_causal=True)

        return causal

    rows = query.view(shape.num_seqs, shape.num_kv_heads, -1, shape.head_dim)
    mask = None
    if shape.chunk > 1:
        mask = torch.full((shape.chunk, shape.context), -torch.inf, dtype=query.dtype)
        mask = mask.triu_(shape.context - shape.chunk + 1).repeat(shape.group, 1)
    return lambda keys, values: scaled_dot_product_attention(rows, keys, values, attn_mask=mask)


def _call(inputs: Inputs, run_once: Callable[[], torch.Tensor], note: str) -> Call:
    result = []

    def run() -> None:
        with torch.inference_mode():
            result[:] = [run_once()]

    def output() -> np.ndarray:
        shape = inputs.shape
        heads_first = (
            result[0]
            .double()
            .numpy()
            .reshape(shape.num_seqs, shape.num_q_heads, shape.chunk, shape.head_dim)
        )
        return heads_first.swapaxes(1, 2)

    return Call(run, output, note)


def prepare(inputs: Inputs, threads: int) -> Call:
    attention = _attention(inputs, threads)
    keys, values = (_tensor(tokens.swapaxes(1, 2)) for tokens in (inputs.keys, inputs.values))
    return _call(inputs, lambda: attention(keys, values), "contiguous cache")


def prepare_gather(inputs: Inputs, threads: int) -> Call:
    attention = _attention(inputs, threads)
    shape = inputs.shape
    # [num_kv_heads, total_num_pages, page_size, head_dim]
    caches = [
        _tensor(inputs.paged(tokens, PAGE_SIZE).swapaxes(0, 1))
        for tokens in (inputs.keys, inputs.values)
    ]
    table = torch.from_numpy(inputs.page_table(PAGE_SIZE)).long()

    def gather(cache: torch.Tensor) -> torch.Tensor:
        pages = cache.index_select(1, table.view(-1))
        by_sequence = pages.view(shape.num_kv_heads, shape.num_seqs, -1, shape.head_dim)
        return by_sequence[:, :, : shape.context].swapaxes(0, 1).contiguous()

    return _call(
        inputs, lambda: attention(*map(gather, caches)), f"gathers pages of {PAGE_SIZE} first"
    )
