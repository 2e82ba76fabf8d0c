"""Where a call runs: threads or stream, from what an operator takes behind all else."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, NoReturn

import torch
from torch import Tensor

from pagefill._c import options, structs
from pagefill._c.environment import variable
from pagefill.torch._views import view

# An operator's last parameters, and of attention what plans a call.
CHOICE = {"num_threads": "int?", "backend": "str?", "cpu_target": "str?"}
MAXIMA = {"max_chunk_size": "SymInt?", "max_context_len": "SymInt?"}

WHERE = (*CHOICE, *MAXIMA, "status")
"""What `context` takes behind the workspace."""

where_of = attrgetter(*WHERE)
"""The same, of an operator's arguments."""

CPU = -1
"""As Tensor.get_device says."""

_raw_stream: Any = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # as Inductor's programs do


def context(
    device: int,
    workspace: Tensor | None = None,
    num_threads: int | None = None,
    backend: str | None = None,
    cpu_target: str | None = None,
    max_chunk_size: int | None = None,
    max_context_len: int | None = None,
    status: Tensor | None = None,
) -> bytes | None:
    """On the device of that index, on torch's current stream of it; or, at -1, on the CPU: unless
    told otherwise on as many threads as torch's own operators use. PAGEFILL_NUM_THREADS, where set,
    decides instead."""
    if device >= 0:
        if num_threads is not None:
            refuse_threads(num_threads)
        chosen = (
            None if backend is cpu_target is None else options.context(None, backend, cpu_target)
        )
        return structs.on_cuda(
            chosen,
            _raw_stream(device),
            max_chunk_size or 0,
            max_context_len or 0,
            None if status is None else view("status", status),
            *(() if workspace is None else (workspace.data_ptr(), workspace.nbytes)),
        )
    if max_chunk_size is not None or max_context_len is not None or status is not None:
        refuse_cuda_settings(max_chunk_size, max_context_len, status)
    if num_threads is None and variable(b"PAGEFILL_NUM_THREADS") is None:
        num_threads = torch.get_num_threads()
        if num_threads > structs.MAX_THREADS:
            num_threads = structs.MAX_THREADS
        if backend is None and cpu_target is None:
            return structs.context(num_threads)
    return options.context(num_threads, backend, cpu_target)


def refuse_threads(num_threads: int) -> NoReturn:
    raise ValueError(
        f"num_threads: expected None with tensors on a CUDA device, got {num_threads}"
    )


def refuse_cuda_settings(
    max_chunk_size: int | None, max_context_len: int | None, status: Tensor | None
) -> None:
    """On the CPU lengths are read by the call, so that there is nothing to plan or to report."""
    settings: dict[str, object] = {
        "max_chunk_size": max_chunk_size,
        "max_context_len": max_context_len,
        "status": None if status is None else "a tensor",
    }
    for name, value in settings.items():
        if value is not None:
            raise ValueError(
                f"{name}: expected None with tensors in memory of the CPU, got {value}"
            )
