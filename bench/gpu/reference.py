"""The formula in float64 on the device, all rows, and how far an output is from it."""

from __future__ import annotations

import torch

from .inputs import Inputs

BLOCK_SCORES = 1 << 27  # of float64: 1 GiB at once


class Reference:
    """Causal attention of the first set; the chunk ends where the context does."""

    def __init__(self, inputs: Inputs) -> None:
        shape = self.shape = inputs.shape
        query = inputs.query[0].view(
            shape.num_seqs, shape.chunk, shape.num_kv_heads, shape.group, shape.head_dim
        )
        self.output = torch.empty(query.shape, device="cuda", dtype=torch.float64)
        rows = max(1, min(shape.chunk, BLOCK_SCORES // (shape.group * shape.context)))
        for sequence in range(shape.num_seqs):
            for head in range(shape.num_kv_heads):
                keys = inputs.keys[0, sequence, :, head].double()
                values = inputs.values[0, sequence, :, head].double()
                for begin in range(0, shape.chunk, rows):
                    block = query[sequence, begin : begin + rows, head]
                    attended = self._attend(block.double(), keys, values, begin)
                    self.output[sequence, begin : begin + rows, head] = attended

    def _attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, begin: int
    ) -> torch.Tensor:
        rows, group, head_dim = query.shape
        scores = (query.reshape(-1, head_dim) @ keys.T).view(rows, group, -1)
        scores /= head_dim**0.5
        first = self.shape.context - self.shape.chunk + begin
        positions = torch.arange(first, first + rows, device="cuda")
        hidden = torch.arange(self.shape.context, device="cuda") > positions[:, None]
        scores.masked_fill_(hidden[:, None], -torch.inf)
        weights = torch.softmax(scores, dim=-1).view(rows * group, -1)
        return (weights @ values).view(rows, group, head_dim)

    def error(self, output: torch.Tensor) -> float:
        """Of an output with the elements of [num_seqs, chunk, num_q_heads, head_dim], in that order."""
        difference = output.double().reshape(self.output.shape) - self.output
        return (difference.square().mean() / self.output.square().mean()).sqrt().item()
