"""Times calls in turns: graphs of several calls each, between two events."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

WARM_UPS, ROUNDS = 5, 20
TURN_SECONDS = 2e-3  # a turn repeats its call until about then, so that events cost next to nothing
MAX_CALLS = 200

Runs = list[Callable[[], object]]


@dataclass
class Turn:
    """calls calls, of each set of inputs in turn. A graph does not keep what its calls read: runs do."""

    calls: int
    launch: Callable[[], object]
    how: str
    runs: Runs

    def seconds(self) -> float:
        """Of one call. An untimed launch goes before: the GPU never waits for the host, and caches hold
        what this peer leaves in them, not what the one before it left."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.launch()
        begin.record()
        self.launch()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3 / self.calls


def _one_by_one(runs: Runs, calls: int) -> Turn:
    def launch() -> None:
        for index in range(calls):
            runs[index % len(runs)]()

    return Turn(calls, launch, f"events around {calls} calls", runs)


def _captured(runs: Runs, calls: int) -> Turn:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _one_by_one(runs, calls).launch()
    return Turn(calls, graph.replay, f"a graph of {calls} calls", runs)


def _calls(turn: Turn, num_sets: int) -> int:
    wanted = min(max(math.ceil(TURN_SECONDS / turn.seconds()), 1), MAX_CALLS)
    return math.ceil(wanted / num_sets) * num_sets


def prepare_turn(runs: Runs) -> Turn:
    """Warms up, captures, and finds how many calls make a turn: by a first graph, because calls one by
    one may take the host longer than the GPU."""
    for run in runs:
        run()
    torch.cuda.synchronize()
    turn = _one_by_one(runs, len(runs))
    try:
        for _ in range(2):
            turn = _captured(runs, _calls(turn, len(runs)))
    except Exception as error:  # whatever keeps a peer from being captured
        torch.cuda.synchronize()
        turn = _one_by_one(runs, _calls(_one_by_one(runs, len(runs)), len(runs)))
        turn.how += f", no graph: {str(error).partition(chr(10))[0]}"
    return turn


def take_turns(turns: dict[str, Turn]) -> dict[str, list[float]]:
    """Each one's seconds a call, one a round, in rotating order."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    names = list(turns)
    for _ in range(WARM_UPS + ROUNDS):
        for name in names:
            seconds[name].append(turns[name].seconds())
        names = names[1:] + names[:1]
    return {name: values[WARM_UPS:] for name, values in seconds.items()}
