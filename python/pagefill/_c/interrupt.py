"""Long calls that Ctrl-C ends.

Python runs signal handlers in the main thread, between its own instructions: never while that
thread is inside the library. So a long call of the main thread runs in another one, while the main
thread waits, which a signal interrupts; the flag that the C interface looks at then ends the call.
"""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable
from ctypes import addressof, byref, c_int32
from functools import lru_cache

from pagefill._c import structs
from pagefill._c.library import check, error, lib
from pagefill._c.outputs import NAMES

# Operations (4 a visible pair and element of the head) from which on a call is long: 0.05 s on a
# thread that does 0.2 TFLOP/s, the most that was measured, beside which starting a thread is
# nothing; and as much of the reference, which does 0.15 GFLOP/s.
_LONG_PER_THREAD = 1e10
_LONG_REFERENCE = 1e7

# A signal wakes the main thread at once; _thread.interrupt_main and the like do not: seconds until
# it looks by itself.
_PATIENCE = 0.05


@lru_cache(maxsize=256)
def _long(context: bytes | None) -> float:
    """From how many operations on a call is long. The environment of the first call counts: a
    matter of speed only."""
    choice = structs.BackendChoice()
    if lib.pagefill_choose_backend(context, byref(choice)):
        return float("inf")  # the call itself will say why
    if choice.backend == b"reference":
        return _LONG_REFERENCE
    return _LONG_PER_THREAD * float(choice.num_threads)


def run(
    function: Callable[..., int],
    arguments: tuple[bytes | None, ...],
    context: bytes | None,
    operations: float,
    owners: tuple[object, ...],
) -> None:
    """Calls function(*arguments, context) and raises what it answers. `owners` are all whose memory
    the arguments point to."""
    if (
        operations < _LONG_REFERENCE
        or operations < _long(context)
        or threading.current_thread() is not threading.main_thread()
    ):
        if status := function(*arguments, context):
            raise error(status, NAMES)
        return
    _run_apart(function, arguments, context, owners)


def _run_apart(
    function: Callable[..., int],
    arguments: tuple[bytes | None, ...],
    context: bytes | None,
    owners: tuple[object, ...],
) -> None:
    cancel = c_int32(0)
    # Who came first: the call, or what forestalls it, an interrupt or the want of a thread.
    order: list[str] = []
    done: list[BaseException | None] = []
    running = _thread.allocate_lock()
    running.acquire()

    def call() -> None:
        try:
            order.append("call")
            if order[0] == "call":
                cancellable = structs.of_one_call(context, cancel=addressof(cancel))
                status = function(*arguments, cancellable)
                done.append(error(status, NAMES) if status else None)
        except BaseException as exception:
            done.append(exception)  # else the main thread would wait for good
        finally:
            running.release()
            # Until here, should signals follow each other so closely that one ends the main
            # thread's wait below.
            _ = owners

    interrupt: BaseException | None = None
    try:
        if not _start(call, order):
            check(function(*arguments, context), NAMES)
            return
        while not running.acquire(timeout=_PATIENCE):
            pass
    except BaseException as exception:  # KeyboardInterrupt, or what another signal's handler raises
        interrupt = exception
    while interrupt is not None and not done:
        try:
            cancel.value = 1
            order.append("interrupt")
            if order[0] != "call":
                break
            # The outputs are written to until the call has come back.
            while not running.acquire(timeout=_PATIENCE):
                pass
        except BaseException as exception:
            interrupt = exception
    if interrupt is not None:
        raise interrupt
    if done[0] is not None:
        raise done[0]


def _start(call: Callable[[], None], order: list[str]) -> bool:
    """Whether there is a thread for it: a process may have too many, the interpreter may end."""
    try:
        _thread.start_new_thread(call, ())
    except RuntimeError:
        order.append("here")
        if order[0] == "call":
            raise  # it is of a signal's handler: the thread runs
        return False
    return True
