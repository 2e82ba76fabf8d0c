"""The measurements, as the report and the figures read them."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from . import shapes
from .peers import PAGEFILL
from .shapes import Dtypes, Shape

DTYPES = {dtypes.name: dtypes for dtypes in shapes.STANDARD_DTYPES}


@dataclass(frozen=True)
class PeerResult:
    peer: str
    status: str  # measured, or why not
    reason: str
    seconds: list[float]
    note: str = ""
    error_rms: float | None = None
    error_largest: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Result:
    """One shape with one set of dtypes."""

    part: str
    shape: Shape
    dtypes: Dtypes
    waited_share: float  # of the time, that threads were ready and had no core
    peak_flops: float
    peak_bandwidth: float
    peers: dict[str, PeerResult]

    def measured(self) -> dict[str, PeerResult]:
        return {name: peer for name, peer in self.peers.items() if peer.seconds}

    def flops(self, peer: str) -> float:
        return self.shape.useful_flops / self.peers[peer].median

    def share_of_peak(self, peer: str) -> float:
        return self.flops(peer) / self.peak_flops

    def bandwidth(self, peer: str) -> float:
        return self.shape.cache_bytes(self.dtypes.cache_element_size) / self.peers[peer].median

    def share_of_bandwidth(self, peer: str) -> float:
        return self.bandwidth(peer) / self.peak_bandwidth

    def best_peer(self) -> PeerResult | None:
        peers = [peer for name, peer in self.measured().items() if name != PAGEFILL.name]
        return min(peers, key=lambda peer: peer.median, default=None)

    def ratio(self) -> float | None:
        """How many times as long as pagefill the best peer takes."""
        best = self.best_peer()
        if best is None or PAGEFILL.name not in self.measured():
            return None
        return best.median / self.peers[PAGEFILL.name].median


@dataclass(frozen=True)
class Run:
    """All shapes with one number of threads."""

    threads: int
    quick: bool
    machine: dict[str, str]
    versions: dict[str, str]
    results: list[Result]

    def part(self, name: str, dtypes: str) -> list[Result]:
        return [r for r in self.results if r.part == name and r.dtypes.name == dtypes]


def load(path: Path) -> Run:
    run = json.loads(path.read_text())
    results = [
        Result(
            part=result["part"],
            shape=Shape(**result["shape"]),
            dtypes=DTYPES[result["dtypes"]],
            waited_share=result["waited_share"],
            peak_flops=result["peak_flops"],
            peak_bandwidth=result["peak_bandwidth"],
            peers={peer["peer"]: PeerResult(**peer) for peer in result["peers"]},
        )
        for result in run["results"]
    ]
    return Run(run["threads"], run["quick"], run["machine"], run["versions"], results)
