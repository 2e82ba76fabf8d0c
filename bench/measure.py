"""python -m bench.measure: one number of threads, all shapes, into a JSON file.

A process of its own, because some peers decide on their threads once, by the cores they may use.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from . import shapes
from .inputs import Inputs
from .machine import describe_machine, describe_versions, measure_peaks, waited_seconds
from .peers import PAGEFILL, PEERS, Call, Peer, Unsupported
from .reference import Error, Reference
from .shapes import Dtypes, Shape
from .turns import Flush, take_turns

ROUNDS, SECONDS = 9, 10.0
QUICK_ROUNDS, QUICK_SECONDS = 3, 1.0


# The report's parts: name, shapes, those of a quick run, dtypes, peers.
PARTS = (
    ("standard", shapes.STANDARD, shapes.QUICK, shapes.STANDARD_DTYPES, PEERS),
    ("context", shapes.CONTEXTS, shapes.QUICK_CONTEXTS, shapes.CONTEXT_DTYPES, PEERS),
    ("context", shapes.LONG_CONTEXTS, (), shapes.CONTEXT_DTYPES, (PAGEFILL,)),
    ("decode", shapes.DECODE, shapes.QUICK_DECODE, shapes.DECODE_DTYPES, PEERS),
    ("rows", shapes.ROWS, shapes.QUICK_ROWS, shapes.ROWS_DTYPES, (PAGEFILL,)),
    ("head dims", shapes.HEAD_DIMS, shapes.QUICK_HEAD_DIMS, shapes.HEAD_DIMS_DTYPES, (PAGEFILL,)),
)


def combinations(quick: bool) -> Iterator[tuple[str, Shape, Dtypes, tuple[Peer, ...]]]:
    """The part of the report, shape, dtypes and peers of each comparison."""
    for part, all_shapes, quick_shapes, all_dtypes, peers in PARTS:
        for shape in quick_shapes if quick else all_shapes:
            for dtypes in all_dtypes:
                yield part, shape, dtypes, peers


def short_reason(error: BaseException) -> str:
    """One line of a message, without the folders of whoever built the library."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    plain = [line for line in lines if not re.search(r"/\w+/|\.cpp:\d+", line)]
    return (plain or [type(error).__name__])[-1]


class Comparison:
    """One shape with one set of dtypes: prepares the peers, checks them, times those that are right."""

    def __init__(self, shape: Shape, dtypes: Dtypes, threads: int) -> None:
        self.shape, self.dtypes, self.threads = shape, dtypes, threads
        self.inputs = Inputs(shape, dtypes)
        self.reference = Reference(self.inputs)
        self.records: list[dict] = []
        self.calls: dict[str, Call] = {}

    def add(self, peer: Peer) -> None:
        record = {"peer": peer.name, "status": "measured", "reason": "", "seconds": []}
        self.records.append(record)
        try:
            call = peer.prepare(self.inputs, self.threads)
            call.run()
            error = self.reference.error(call.output())
        except (Unsupported, ImportError) as problem:
            status = "unsupported" if isinstance(problem, Unsupported) else "not installed"
            record.update(status=status, reason=short_reason(problem))
            return
        except Exception as problem:  # whatever a peer raises is its result
            record.update(status="failed", reason=short_reason(problem))
            return
        record.update(note=call.note, error_rms=error.rms, error_largest=error.largest)
        if self._is_right(error):
            self.calls[peer.name] = call
        else:
            limit = self.dtypes.error_limit
            record.update(status="wrong", reason=f"error {error.rms:.1e}, more than {limit:.0e}")

    def _is_right(self, error: Error) -> bool:
        return error.rms <= self.dtypes.error_limit  # false for NaN as well

    def measure(self, rounds: int, seconds: float, flush: Flush) -> dict:
        peaks = [measure_peaks(self.threads)]
        start, waited = time.perf_counter(), waited_seconds()
        times = take_turns(self.calls, rounds, seconds, flush if self.shape.is_decode else None)
        waited = (waited_seconds() - waited) / (time.perf_counter() - start) / self.threads
        peaks.append(measure_peaks(self.threads))
        for record in self.records:
            record["seconds"] = times.get(record["peer"], [])
        return {
            "shape": vars(self.shape),
            "dtypes": self.dtypes.name,
            "waited_share": waited,
            "peak_flops": max(flops for flops, _ in peaks),
            "peak_bandwidth": max(bandwidth for _, bandwidth in peaks),
            "peers": self.records,
        }


def restrict_to_cores(threads: int) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if threads > len(cores):
        sys.exit(
            f"--threads: expected at most {len(cores)}, the cores that there are, got {threads}"
        )
    os.sched_setaffinity(0, cores[:threads])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--only", nargs="+", metavar="SHAPE")
    parser.add_argument("--peers", nargs="+", metavar="PEER")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    restrict_to_cores(arguments.threads)
    rounds = arguments.rounds or (QUICK_ROUNDS if arguments.quick else ROUNDS)
    seconds = QUICK_SECONDS if arguments.quick else SECONDS
    run = {
        "threads": arguments.threads,
        "quick": arguments.quick,
        "machine": describe_machine(),
        "versions": describe_versions(),
        "results": [],
    }
    flush = Flush()
    for part, shape, dtypes, peers in combinations(arguments.quick):
        if arguments.only and shape.name not in arguments.only:
            continue
        print(f"{shape.name} {dtypes.name}", end="", file=sys.stderr, flush=True)
        comparison = Comparison(shape, dtypes, arguments.threads)
        for peer in peers:
            if peer is PAGEFILL or not arguments.peers or peer.name in arguments.peers:
                comparison.add(peer)
        result = comparison.measure(rounds, seconds, flush)
        for record in result["peers"]:
            best = (
                f"{min(record['seconds']) * 1e3:.2f} ms" if record["seconds"] else record["status"]
            )
            print(f"; {record['peer']} {best}", end="", file=sys.stderr)
        print(file=sys.stderr, flush=True)
        run["results"].append({"part": part, **result})
        arguments.output.write_text(json.dumps(run, indent=1))  # each time: a crash leaves the rest
        del comparison
        gc.collect()


if __name__ == "__main__":
    main()
