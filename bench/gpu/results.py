"""The measurements of python -m bench.gpu, as the report and the figures read them."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..shapes import Shape
from .peers import CONTIGUOUS, PAGEFILL, PEERS, Peer
from .shapes import CASES, PAGE_SIZE, Case

ROWS = {peer.name: peer for peer in PEERS}
OURS = [peer for peer in PEERS if peer.module == PAGEFILL.module]
OTHERS = [peer for peer in PEERS if peer.module != PAGEFILL.module]

# The peers in whose company pagefill's pages of 16 are seen.
LAYOUTS = {
    "contiguous memory": [peer for peer in OTHERS if peer.page_size == CONTIGUOUS],
    f"pages of {PAGE_SIZE}": [peer for peer in OTHERS if peer.page_size == PAGE_SIZE],
    "larger pages": [peer for peer in OTHERS if peer.page_size > PAGE_SIZE],
}


class NotResults(Exception):
    """This file is not what python -m bench.gpu writes; the message says why."""


@dataclass(frozen=True)
class PeerResult:
    peer: Peer
    status: str  # measured, or why not
    seconds: list[float]
    reason: str = ""
    note: str = ""
    how: str = ""
    error: float | None = None
    rejected: tuple[str, ...] = ()  # ways to ask that were tried before

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Result:
    case: Case
    state: dict[str, str]
    peers: dict[str, PeerResult]

    def measured(self, peers: Iterable[Peer]) -> list[PeerResult]:
        found = (self.peers[peer.name] for peer in peers if peer.name in self.peers)
        return [result for result in found if result.seconds]

    def best(self, peers: Iterable[Peer]) -> PeerResult | None:
        return min(self.measured(peers), key=lambda result: result.median, default=None)

    def ratio(self, peer: PeerResult | None, to: Peer = PAGEFILL) -> float | None:
        """The peer's time over that of the other one."""
        base = self.best([to])
        return peer.median / base.median if peer and base else None


@dataclass(frozen=True)
class Run:
    gpu: dict[str, str]
    versions: dict[str, str]
    matrix_flops: float  # a second, of torch's matrix product
    copy_bytes: float  # a second, read and written
    results: list[Result]
    missing: dict[str, str]  # cases without a result, and why

    def of(self, kind: str) -> list[Result]:
        return [result for result in self.results if result.case.kind == kind]


def without_paths(value: object) -> object:
    """The same with files' names for paths in all texts: a peer's reasons tell the machine's folders."""
    if isinstance(value, str):
        return re.sub(r"(?<![\w/])(?!//)/(?:[\w.+@~-]+/)+", "", value)
    if isinstance(value, list):
        return [without_paths(part) for part in value]
    if isinstance(value, dict):
        return {key: without_paths(part) for key, part in value.items()}
    return value


def _peer(record: dict) -> PeerResult:
    if record["peer"] not in ROWS:
        raise NotResults(f"expected a peer of {'; '.join(ROWS)}, got {record['peer']}")
    known = {"status", "seconds", "reason", "note", "how", "error"}
    values = {key: record[key] for key in known & record.keys()}
    result = PeerResult(peer=ROWS[record["peer"]], **values)
    return replace(result, rejected=tuple(record.get("rejected", ())))


def _result(record: dict) -> Result:
    kinds = dict.fromkeys(case.kind for case in CASES)
    if record["kind"] not in kinds:
        raise NotResults(f"expected a kind of {', '.join(kinds)}, got {record['kind']}")
    peers = {peer["peer"]: _peer(peer) for peer in record["peers"]}
    return Result(Case(record["kind"], Shape(**record["shape"])), record["state"], peers)


def load(path: Path) -> Run:
    try:
        run: Any = without_paths(json.loads(path.read_text()))
        results = [_result(record) for record in run["results"]]
        gpu, versions, peaks = run["gpu"], run["versions"], run["peaks"]
        matrix_flops, copy_bytes = peaks["matrix_flops"], peaks["copy_bytes"]
        lost = run.get("cases_lost", {})
    except (OSError, ValueError) as error:
        raise NotResults(f"expected JSON of python -m bench.gpu, got {error}") from error
    except (KeyError, TypeError) as error:
        raise NotResults(f"expected JSON of python -m bench.gpu, got none with {error}") from error
    if not any(result.measured(PEERS) for result in results):
        raise NotResults("expected measurements, got none")
    names = {result.case.name for result in results}
    missing = {
        case.text: lost.get(case.name, "not asked for") for case in CASES if case.name not in names
    }
    texts = {case.name: case.text for case in CASES}
    missing |= {name: reason for name, reason in lost.items() if name not in texts}
    return Run(gpu, versions, matrix_flops, copy_bytes, results, missing)
