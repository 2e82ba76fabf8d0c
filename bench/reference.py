"""The formula in float64, and how far an output is from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .inputs import Inputs

# More (query, key) pairs than that, and rows spread over the chunk stand for all: float64 takes seconds.
MAX_PAIRS = 1 << 22
SPREAD_ROWS = 64


@dataclass(frozen=True)
class Error:
    """rms: of the difference, over that of the reference. largest: of the absolute differences."""

    rms: float
    largest: float


class Reference:
    """Causal attention of each checked row of the chunks; the chunk ends where the context does."""

    def __init__(self, inputs: Inputs) -> None:
        shape = inputs.shape
        pairs = shape.num_seqs * shape.chunk * shape.context
        count = shape.chunk if pairs <= MAX_PAIRS else SPREAD_ROWS
        self.rows = np.unique(np.linspace(0, shape.chunk - 1, count).round().astype(int))
        self.output = np.empty((shape.num_seqs, len(self.rows), shape.num_q_heads, shape.head_dim))
        positions = shape.context - shape.chunk + self.rows
        hidden = np.arange(shape.context) > positions[:, None]
        for sequence in range(shape.num_seqs):
            for kv_head in range(shape.num_kv_heads):
                self._attend(inputs, sequence, kv_head, hidden)

    def _attend(self, inputs: Inputs, sequence: int, kv_head: int, hidden: np.ndarray) -> None:
        group = inputs.shape.group
        keys = inputs.keys[sequence, :, kv_head].astype(np.float64)
        values = inputs.values[sequence, :, kv_head].astype(np.float64)
        for head in range(kv_head * group, (kv_head + 1) * group):
            query = inputs.query[sequence, self.rows, head].astype(np.float64)
            scores = query @ keys.T / np.sqrt(inputs.shape.head_dim)
            scores[hidden] = -np.inf
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            self.output[sequence, :, head] = weights @ values

    def error(self, output: np.ndarray) -> Error:
        """output: float64 [num_seqs, chunk, num_q_heads, head_dim]."""
        difference = output[:, self.rows] - self.output
        rms = np.sqrt(np.mean(difference**2) / np.mean(self.output**2))
        return Error(float(rms), float(np.abs(difference).max()))
