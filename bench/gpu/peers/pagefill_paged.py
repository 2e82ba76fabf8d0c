"""pagefill's ragged_page_attention through its C interface, on the device's memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

import torch
from pagefill._c import structs
from pagefill._c.library import check, lib
from pagefill.torch._views import view

from ..inputs import Inputs
from . import Call


def prepare(inputs: Inputs, page_size: int) -> Iterator[Call]:
    shape = inputs.shape
    keys, values = inputs.pages(page_size, heads_first=True)
    metadata = (inputs.starts(shape.chunk), inputs.lengths(), inputs.page_table(page_size))
    outputs = inputs.outputs()
    status = torch.zeros(4, device="cuda", dtype=torch.int32)
    maxima = {"max_chunk_size": shape.chunk, "max_context_len": shape.context}

    def arguments(index: int) -> tuple:
        """Its operands, options, output, and no lse."""
        operands = (inputs.query[index], keys[index], values[index], *metadata)
        views = [view("", tensor) for tensor in operands]
        return *views, None, view("", outputs[index]), None

    needed = ctypes.c_size_t()
    context = structs.on_cuda(None, 0, **maxima)
    check(lib.pagefill_attention_workspace_size(*arguments(0), context, ctypes.byref(needed)))
    workspace = torch.empty(max(needed.value, 1), device="cuda", dtype=torch.uint8)
    packed_status = view("", status)
    owners = keys, values, *metadata, status, workspace  # the structs hold addresses alone

    def run_of(index: int, report: int = 0) -> Callable[[], None]:
        packed = arguments(index)
        rest = {"workspace": workspace.data_ptr(), "workspace_size": needed.value, "report": report}

        def run(_owners: tuple = owners) -> None:
            stream = torch.cuda.current_stream().cuda_stream
            where = structs.on_cuda(None, stream, **maxima, status=packed_status, **rest)
            check(lib.pagefill_ragged_page_attention(*packed, where))

        return run

    def result() -> torch.Tensor:
        if status.any():
            raise RuntimeError(f"pagefill reports {status.tolist()}")
        return outputs[0]

    # The call's own report names the kernel.
    report = structs.CallReport()
    run_of(0, report=ctypes.addressof(report))()
    note = f"{report.target.decode()}, {needed.value / 2**20:.1f} MiB of workspace"
    yield Call([run_of(index) for index in range(inputs.num_sets)], result, note, outputs)
