"""What can run here, and what will."""

from __future__ import annotations

from ctypes import byref, c_int32
from typing import TYPE_CHECKING, NamedTuple

from pagefill._c import options, structs
from pagefill._c.library import check, lib
from pagefill._typing import Where

if TYPE_CHECKING:
    from pagefill._typing import Unpack


class Target(NamedTuple):
    """An instruction set of a backend."""

    name: str
    description: str
    available: bool


class Backend(NamedTuple):
    """A backend that was compiled in. `reason`: why it is not available; else "". `memory`: whose
    it works on, "cpu" or "cuda"."""

    name: str
    description: str
    available: bool
    reason: str
    targets: tuple[Target, ...]
    memory: str


class BackendChoice(NamedTuple):
    """What a call runs on. `reason`: who asked for it, or why it is the best."""

    backend: str
    target: str
    num_threads: int
    reason: str


def list_backends() -> list[Backend]:
    """The backends that were compiled in, best first, and their instruction sets, best first."""
    count = c_int32()
    check(lib.pagefill_get_num_backends(byref(count)))
    return [_backend(index) for index in range(count.value)]


def choose_backend(**where: Unpack[Where]) -> BackendChoice:
    """What a call with these arguments (num_threads, backend, cpu_target) would run on.

    Raises:
        ValueError: unknown, here or in the environment. NotImplementedError: not available here.
    """
    choice = structs.BackendChoice()
    check(lib.pagefill_choose_backend(options.where(where), byref(choice)))
    return BackendChoice(
        choice.backend.decode(), choice.target.decode(), choice.num_threads, choice.reason.decode()
    )


def _backend(index: int) -> Backend:
    info = structs.BackendInfo()
    check(lib.pagefill_get_backend_info(index, byref(info)))
    targets = tuple(_target(index, i) for i in range(info.num_targets))
    return Backend(
        info.name.decode(),
        info.description.decode(),
        bool(info.available),
        info.reason.decode(),
        targets,
        "cuda" if info.memory == structs.CUDA else "cpu",
    )


def _target(backend: int, index: int) -> Target:
    info = structs.TargetInfo()
    check(lib.pagefill_get_target_info(backend, index, byref(info)))
    return Target(info.name.decode(), info.description.decode(), bool(info.available))
