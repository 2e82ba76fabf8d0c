"""What a call on a GPU costs its thread beyond the C interface, called through ctypes with
arguments prepared once. A call only enqueues, so the time is that until it comes back; the GPU is
waited for between blocks. `python bench/python_overhead_cuda.py`, with pagefill built with CUDA."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

CALLS, TURNS, WARM_UP = 40, 100, 50
HEADS, KV_HEADS, HEAD_DIM, PAGE_SIZE = 32, 8, 128, 16

Call = Callable[[], object]


def torch_calls() -> tuple[dict[str, Call], Call]:
    """One token at context 1, through the face and through the C interface; and how to wait."""
    import torch

    from pagefill._c.library import check, lib
    from pagefill._c.structs import on_cuda
    from pagefill.torch import prefill_page_attention
    from pagefill.torch._views import view

    def ones(*shape: int) -> torch.Tensor:
        return torch.ones(shape, device="cuda", dtype=torch.bfloat16)

    query, cache = ones(1, HEADS, HEAD_DIM), ones(KV_HEADS, 4, PAGE_SIZE, HEAD_DIM)
    length = torch.ones(1, device="cuda", dtype=torch.int32)
    pages = torch.zeros(1, device="cuda", dtype=torch.int32)
    arguments, out = (query, cache, cache, length, pages), torch.empty_like(query)
    workspace = torch.empty(1 << 26, device="cuda", dtype=torch.uint8)
    stream = torch.cuda.current_stream().cuda_stream
    where = on_cuda(None, stream, workspace=workspace.data_ptr(), workspace_size=workspace.numel())
    packed = [view("", tensor) for tensor in arguments]
    result = view("", out)

    def c_interface() -> None:
        check(lib.pagefill_prefill_page_attention(*packed, None, result, None, where))

    calls: dict[str, Call] = {
        "C interface": c_interface,
        "torch": lambda: prefill_page_attention(*arguments),
        "torch, out": lambda: prefill_page_attention(*arguments, out=out),
        "torch, lse": lambda: prefill_page_attention(*arguments, return_lse=True),
    }
    return calls, torch.cuda.synchronize


def jax_calls() -> tuple[dict[str, Call], Call]:
    """The same inside of jit, beside a jitted function that does next to nothing."""
    import jax
    import jax.numpy as jnp

    from pagefill.jax import prefill_page_attention

    query = jnp.ones((1, HEADS, HEAD_DIM), jnp.bfloat16)
    cache = jnp.ones((KV_HEADS, 4, PAGE_SIZE, HEAD_DIM), jnp.bfloat16)
    length, pages = jnp.ones(1, jnp.int32), jnp.zeros(1, jnp.int32)
    attend, nothing = jax.jit(prefill_page_attention), jax.jit(lambda *a: a[3] + 1)
    arguments = (query, cache, cache, length, pages)
    last: list[jax.Array] = []

    def kept(call: Callable[..., jax.Array]) -> Call:
        def run() -> None:
            last[:] = [call(*arguments)]

        return run

    calls = {"jax, length + 1": kept(nothing), "jax, jit": kept(attend)}
    return calls, lambda: jax.block_until_ready(last)


def main() -> None:
    for make in (torch_calls, jax_calls):
        try:
            calls, wait = make()
        except ImportError as error:
            print(error)
            continue
        times: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(WARM_UP + TURNS):
            for name, call in calls.items():
                call()
                wait()
                begin = time.perf_counter()
                for _ in range(CALLS):
                    call()
                times[name].append((time.perf_counter() - begin) / CALLS * 1e6)
                wait()
        for name, values in times.items():
            print(f"{name:20}{statistics.median(values[WARM_UP:]):8.1f} us a call")


if __name__ == "__main__":
    main()
