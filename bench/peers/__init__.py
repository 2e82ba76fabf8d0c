"""Who is compared. A peer is a row of PEERS and a module with the function that the row names."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..inputs import Inputs


class Unsupported(Exception):
    """This peer does not do this shape or dtype; the message says why."""


@dataclass(frozen=True)
class Call:
    """One attention call with inputs that lie ready."""

    run: Callable[[], object]
    output: Callable[[], np.ndarray]  # float64 [num_seqs, chunk, num_q_heads, head_dim]
    note: str = ""


@dataclass(frozen=True)
class Peer:
    """package: the distribution whose version the report gives."""

    name: str
    package: str
    module: str
    function: str = "prepare"

    def prepare(self, inputs: Inputs, threads: int) -> Call:
        module = importlib.import_module(f".{self.module}", __name__)
        return getattr(module, self.function)(inputs, threads)


PAGEFILL = Peer("pagefill", "", "pagefill_paged")
PEERS = (
    PAGEFILL,
    Peer("OpenVINO", "openvino", "openvino_paged"),
    Peer("ONNX Runtime", "onnxruntime", "onnxruntime_gqa"),
    Peer("torch", "torch", "torch_sdpa"),
    Peer("torch, gather", "torch", "torch_sdpa", "prepare_gather"),
    Peer("ejkernel", "ejkernel", "ejkernel_xla"),
)
