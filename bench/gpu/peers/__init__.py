"""Who is compared on a GPU. A peer is a row of PEERS and a module with prepare(inputs, ...)."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..shapes import ODD_PAGE_SIZES, PAGE_SIZE, Case

if TYPE_CHECKING:  # the report reads PEERS where there is no torch
    import torch

    from ..inputs import Inputs

CONTIGUOUS = 0


class Unsupported(Exception):
    """This peer does not do this case; the message says why."""


@dataclass(frozen=True)
class Call:
    """One attention call for each set of inputs, and what it gave for the first set, with the elements of
    [num_seqs, chunk, num_q_heads, head_dim]. outputs: where all calls write, for a peer that is told."""

    runs: list[Callable[[], object]]
    result: Callable[[], torch.Tensor]
    note: str = ""
    outputs: torch.Tensor | None = None

    def output(self, launch: Callable[[], object] | None = None) -> torch.Tensor:
        """Of one more call, or of that launch of calls; what it does not write is NaN."""
        if self.outputs is not None:
            self.outputs.fill_(math.nan)
        (launch or self.runs[0])()
        return self.result()


@dataclass(frozen=True)
class Peer:
    """package: the distribution whose version the report gives. page_size: 0 is contiguous memory."""

    name: str
    package: str
    module: str
    page_size: int
    options: dict[str, Any] = field(default_factory=dict)

    def candidates(self, inputs: Inputs) -> Iterator[Call]:
        """The ways to ask for it, the fastest first. The first one whose output is right counts."""
        module = importlib.import_module(f".{self.module}", __name__)
        return module.prepare(inputs, self.page_size, **self.options)

    def takes_part(self, case: Case) -> bool:
        return self.page_size not in ODD_PAGE_SIZES or case.odd_pages


def _pagefill(page_size: int) -> Peer:
    return Peer(f"pagefill, page {page_size}", "", "pagefill_paged", page_size)


PAGEFILL = _pagefill(PAGE_SIZE)
PEERS = (
    PAGEFILL,
    *map(_pagefill, ODD_PAGE_SIZES),
    Peer("cuDNN", "torch", "torch_sdpa", CONTIGUOUS, {"backend": "cudnn"}),
    Peer("FlashAttention-2", "torch", "torch_sdpa", CONTIGUOUS, {"backend": "flash"}),
    Peer("FlashAttention-3", "vllm", "flash_attention_3", CONTIGUOUS),
    Peer("FlashAttention-3, page 16", "vllm", "flash_attention_3", 16),
    Peer("FlashAttention-3, page 128", "vllm", "flash_attention_3", 128),
    Peer("FlashAttention-4", "flash-attn-4", "flash_attention_4", CONTIGUOUS),
    Peer("FlashAttention-4, page 16", "flash-attn-4", "flash_attention_4", 16),
    Peer("FlashInfer fa3, page 16", "flashinfer-python", "flashinfer_paged", 16, {"backend": "fa3"}),
    Peer("FlashInfer fa2, page 16", "flashinfer-python", "flashinfer_paged", 16, {"backend": "fa2"}),
    Peer("FlashInfer fmha_v2, page 64", "flashinfer-python", "flashinfer_fmha_v2", 64),
)


def selected(patterns: list[str] | None) -> list[Peer]:
    """pagefill, and the peers whose names hold one of the patterns; all without patterns."""
    if not patterns:
        return list(PEERS)
    return [
        peer for peer in PEERS if peer is PAGEFILL or any(re.search(p, peer.name) for p in patterns)
    ]
