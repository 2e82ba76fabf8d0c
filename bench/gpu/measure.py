"""python -m bench.gpu.measure: times the cases it is given in this process, one JSON event a line.

A process of its own, because a peer can leave the device unusable or never come back. python -m bench.gpu
reads the events, and goes on without a peer that ended this.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
import traceback
from collections.abc import Iterator

import torch

from . import machine
from .inputs import Inputs
from .peers import PEERS, Call, Peer, Unsupported, selected
from .reference import Reference
from .shapes import CASES, ERROR_LIMIT, Case
from .timing import Turn, prepare_turn, take_turns

_events = os.fdopen(os.dup(1), "w", buffering=1)


def say(event: str, **values: object) -> None:
    print(json.dumps({"event": event, **values}), file=_events, flush=True)


def checked_turn(
    peer: Peer, inputs: Inputs, reference: Reference, record: dict
) -> tuple[Call, Turn] | None:
    """The first of the peer's ways to do this that is right; the record says what was wrong else."""
    rejected = []
    candidates: Iterator[Call] | None = None
    while True:
        try:
            if candidates is None:
                candidates = peer.candidates(inputs)
            call = next(candidates, None)
            if call is None:
                break
            turn = prepare_turn(call.runs)
            error = _error(call, turn, reference)
        except (Unsupported, ImportError) as problem:
            traceback.print_exc()
            unsupported = isinstance(problem, Unsupported)
            rejected.append(("unsupported" if unsupported else "not installed", str(problem)))
            break
        except Exception as problem:  # whatever a peer raises is its result
            traceback.print_exc()
            rejected.append(("failed", f"{type(problem).__name__}: {problem}"))
            _end_where_the_device_is_lost(peer, rejected[-1][1])
            if candidates is None:
                break
            continue
        if error <= ERROR_LIMIT:  # false for NaN as well
            record.update(status="measured", note=call.note, how=turn.how, error=error)
            record["rejected"] = [": ".join(text) for text in rejected]
            return call, turn
        rejected.append(("wrong", f"error {error:.1e}, more than {ERROR_LIMIT:.0e} ({call.note})"))
    status, reason = rejected[0] if rejected else ("unsupported", "")
    record.update(status=status, reason="; ".join([reason, *(": ".join(r) for r in rejected[1:])]))
    return None


def _error(call: Call, turn: Turn, reference: Reference) -> float:
    """Of one more call, after all those before; and of a whole turn, whose last outputs may be the graph's
    own where the peer is not told where to write."""
    error = reference.error(call.output())
    if call.outputs is None or not error <= ERROR_LIMIT:
        return error
    return reference.error(call.output(turn.launch))


def _end_where_the_device_is_lost(peer: Peer, reason: str) -> None:
    """After an illegal access every later call fails: the next process does without this peer."""
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device="cuda").item()
    except Exception:
        say("lost", peer=peer.name, reason=reason)
        os._exit(1)


def measure(case: Case, peers: list[Peer], failed: dict[str, str]) -> dict:
    inputs = Inputs(case)
    reference = Reference(inputs)
    records: dict[str, dict] = {}
    ready: dict[str, tuple[Call, Turn]] = {}
    for peer in peers:
        if not peer.takes_part(case):
            continue
        record = records[peer.name] = {"peer": peer.name, "seconds": []}
        if peer.name in failed:
            record.update(status="failed", reason=failed[peer.name])
            continue
        say("peer", case=case.name, peer=peer.name)
        begin = time.perf_counter()
        pair = checked_turn(peer, inputs, reference, record)
        record["prepare_seconds"] = time.perf_counter() - begin
        if pair is not None:
            ready[peer.name] = pair
    say("turns", case=case.name)
    seconds = take_turns({name: turn for name, (_, turn) in ready.items()})
    state = machine.state()
    for name, (call, turn) in ready.items():
        record = records[name]
        record["seconds"] = seconds[name]
        if not (error := _error(call, turn, reference)) <= ERROR_LIMIT:
            reason = f"error {error:.1e} after the turns, {record['error']:.1e} before"
            record.update(status="wrong", reason=reason, seconds=[])
    shape = vars(case.shape)
    return {"kind": case.kind, "shape": shape, "state": state, "peers": list(records.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", required=True)
    parser.add_argument("--peers", nargs="+")
    parser.add_argument("--failed", type=json.loads, default={}, help="reasons by peers' names")
    parser.add_argument("--describe", action="store_true")
    arguments = parser.parse_args()
    os.dup2(2, 1)  # what peers print is no event
    say("start")
    torch.cuda.init()
    torch.set_grad_enabled(False)
    if arguments.describe:
        gpu, versions = machine.describe_gpu(), machine.describe_versions()
        say("machine", gpu=gpu, versions=versions, peaks=machine.measure_peaks())
    for case in CASES:
        if case.name not in arguments.cases:
            continue
        say("case", case=case.name)
        result = measure(case, selected(arguments.peers), arguments.failed)
        say("result", case=case.name, result=result)
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
