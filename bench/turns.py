"""Times calls in turns, so that what changes on the machine over the seconds changes for all."""

from __future__ import annotations

import statistics
import time

import numpy as np

from .peers import Call

MIN_ROUNDS = 3
TURN_SECONDS = 0.1  # short calls are repeated within a turn, whose time is their median
TURN_CALLS = 5
PAUSE_SECONDS = 0.02  # threads of the one before that still spin have stopped
FLUSH_BYTES = 256 << 20


class Flush:
    """Takes the operands out of the caches, as the other layers of a model do between two steps."""

    def __init__(self) -> None:
        self._memory = np.zeros(FLUSH_BYTES // 8)

    def __call__(self) -> None:
        self._memory += 1


def _turn(call: Call, flush: Flush | None) -> float:
    times: list[float] = []
    while sum(times) < TURN_SECONDS and len(times) < TURN_CALLS:
        if flush is not None:
            flush()
        start = time.perf_counter()
        call.run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def take_turns(
    calls: dict[str, Call], rounds: int, seconds: float, flush: Flush | None
) -> dict[str, list[float]]:
    """Each call's times, one a round. One that has had its seconds leaves after MIN_ROUNDS."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for _ in range(rounds):
        for name in names:
            if len(times[name]) >= MIN_ROUNDS and sum(times[name]) > seconds:
                continue
            time.sleep(PAUSE_SECONDS)
            times[name].append(_turn(calls[name], flush))
        names = names[1:] + names[:1]
    return times
