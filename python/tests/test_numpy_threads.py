"""Threads and interrupts."""

from __future__ import annotations

import _thread
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from cases import bits, random_case

import pagefill
from pagefill._c import interrupt


def long_call(backend: str) -> dict[str, Any]:
    """Seconds of work for one thread: 3e11 operations, 9e9 for the slow reference."""
    rows, keys = (4096, 4096) if backend == "cpu" else (256, 2048)
    random = np.random.default_rng(0)
    cache = random.standard_normal((8, 1, keys, 128), np.float32)
    return {
        "query": random.standard_normal((rows, 32, 128), np.float32),
        "key_cache": cache,
        "value_cache": cache,
        "context_len": keys,
        "page_indices": [0],
        "backend": backend,
        "num_threads": 1,
    }


@pytest.fixture(autouse=True)
def signals_arrive() -> Iterator[None]:
    """Python's own handler of Ctrl-C, which a shell's background jobs do without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_ctrl_c_ends_a_long_call(backend: str) -> None:
    arguments = long_call(backend)
    timer = threading.Timer(0.2, _thread.interrupt_main)
    timer.start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        pagefill.prefill_page_attention(**arguments)
    assert time.monotonic() - begin < 1.5
    case = random_case()  # and the next call is as good as ever
    assert np.isfinite(pagefill.prefill_page_attention(*case.arguments)).all()


def test_an_interrupted_call_writes_no_more_once_it_has_raised() -> None:
    arguments = long_call("cpu")
    out = np.zeros_like(arguments["query"])
    threading.Timer(0.2, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        pagefill.prefill_page_attention(**arguments, out=out)
    before = out.copy()
    time.sleep(0.3)
    assert bits(out) == bits(before)


def test_the_exception_of_any_signals_handler_ends_a_long_call() -> None:
    class Enough(Exception):
        pass

    def handler(*_: object) -> None:
        raise Enough

    old = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Enough):
            pagefill.prefill_page_attention(**long_call("cpu"))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_a_handler_that_returns_lets_a_long_call_go_on() -> None:
    calls: list[int] = []
    old = signal.signal(signal.SIGALRM, lambda *_: calls.append(1))
    arguments = long_call("cpu")
    arguments["query"] = arguments["query"][:512]
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        output = pagefill.prefill_page_attention(**arguments)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert calls
    assert np.isfinite(output).all()


def test_errors_of_a_long_call_are_those_of_a_short_one() -> None:
    arguments = long_call("cpu")
    arguments["page_indices"] = [5]
    with pytest.raises(ValueError, match="page_indices: expected pages from 0 to 0"):
        pagefill.prefill_page_attention(**arguments)


def short_of_threads(*_: object) -> None:
    raise RuntimeError("can't start new thread")


def test_a_long_call_needs_no_thread_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = long_call("cpu")
    arguments["query"] = arguments["query"][:256]
    wanted = pagefill.prefill_page_attention(**arguments)
    monkeypatch.setattr(_thread, "start_new_thread", short_of_threads)
    assert bits(pagefill.prefill_page_attention(**arguments)) == bits(wanted)
    arguments["page_indices"] = [5]
    with pytest.raises(ValueError, match="page_indices: expected pages from 0 to 0"):
        pagefill.prefill_page_attention(**arguments)


def test_what_goes_wrong_in_the_thread_of_a_long_call_arrives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no frame")

    arguments = long_call("cpu")
    arguments["page_indices"] = [5]
    monkeypatch.setattr(interrupt, "error", fail)
    faulthandler.dump_traceback_later(20, exit=True)  # rather than to wait for good
    try:
        with pytest.raises(MemoryError, match="no frame"):
            pagefill.prefill_page_attention(**arguments)
    finally:
        faulthandler.cancel_dump_traceback_later()


def test_a_message_in_no_encoding_is_still_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = long_call("cpu")
    del arguments["backend"], arguments["num_threads"]
    arguments["query"] = arguments["query"][:64]
    monkeypatch.setenv("PAGEFILL_NUM_THREADS", "1")
    pagefill.prefill_page_attention(**arguments)  # that such calls are long is known from here on
    monkeypatch.setitem(os.environb, b"PAGEFILL_BACKEND", b"\xff")
    for rows in (1, 64):
        part = arguments | {"query": arguments["query"][:rows]}
        with pytest.raises(ValueError, match=r'PAGEFILL_BACKEND: expected .*, got "\\xff"'):
            pagefill.prefill_page_attention(**part)


def test_long_and_short_calls_have_the_same_bits() -> None:
    arguments = long_call("cpu")
    arguments["query"] = arguments["query"][:512]
    output = pagefill.prefill_page_attention(**arguments)
    arguments["query"] = arguments["query"][-1:]  # 4 MiB of keys: done where it is called
    assert bits(pagefill.prefill_page_attention(**arguments)) == bits(output[-1])


def test_many_threads_may_call_at_once() -> None:
    cases = [random_case(chunk_size=i % 7 + 1, context_len=200 + i, seed=i) for i in range(16)]
    wanted = [bits(pagefill.prefill_page_attention(*case.arguments)) for case in cases]

    def attend(index: int) -> bool:
        return all(
            bits(pagefill.prefill_page_attention(*cases[index].arguments)) == wanted[index]
            for _ in range(20)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(attend, range(16)))


def test_errors_stay_with_their_threads() -> None:
    def fail(page: int) -> str:
        case = random_case()
        case.page_indices[0] = page
        with pytest.raises(ValueError, match="page_indices") as raised:
            pagefill.prefill_page_attention(*case.arguments)
        return str(raised.value)

    with ThreadPoolExecutor(4) as pool:
        for page, message in zip(range(100, 200), pool.map(fail, range(100, 200)), strict=True):
            assert f"got {page} in" in message


def test_the_gil_is_released_while_a_call_runs() -> None:
    arguments = long_call("cpu")
    arguments["query"] = arguments["query"][:256]
    ticks: list[float] = []
    done = threading.Event()

    def tick() -> None:
        while not done.wait(0.001):
            ticks.append(time.monotonic())

    def attend() -> None:
        pagefill.prefill_page_attention(**arguments)
        done.set()

    ticker, worker = threading.Thread(target=tick), threading.Thread(target=attend)
    ticker.start()
    worker.start()
    worker.join()
    ticker.join()
    assert len(ticks) > 10


def test_a_signal_handler_that_makes_arrays_and_capsules_disturbs_no_call() -> None:
    case, other, kept = random_case(), np.full((4, 4, 16, 16), 7, np.float32), []

    def handler(*_: object) -> None:
        kept[:] = [other.__array_struct__ for _ in range(3)]

    wanted = bits(pagefill.prefill_page_attention(*case.arguments))
    old = signal.signal(signal.SIGALRM, handler)
    end = time.monotonic() + 4
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-4, 1.3e-4)
        while time.monotonic() < end:
            assert bits(pagefill.prefill_page_attention(*case.arguments)) == wanted
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert kept
