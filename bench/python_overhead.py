"""What a call costs beyond the C interface, for each Python face that is installed.

    python bench/python_overhead.py [--device cpu|cuda] [--json]

One token at context 1, 32/8 heads, head dim 128: next to no work. The C interface is called through
ctypes with arguments that are prepared once, on the same device. Blocks of calls of the C interface
and of a face take turns; a face's overhead is the median over the turns of the difference. On the
CPU float32 on one thread; on CUDA, where a call only enqueues, bfloat16, and the time until a call
comes back: the device is waited for between blocks, which are short, so that no queue fills up.
Wall time: run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

os.environ["PAGEFILL_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402

import pagefill  # noqa: E402
from pagefill._c import structs, views  # noqa: E402
from pagefill._c.library import DTYPES, check, lib  # noqa: E402

TURNS, CALLS, WARM_UP = 400, 50, 500
CUDA_WORKSPACE = 64 << 20
Call = Callable[[], object]

QUERY = np.ones((1, 32, 128), np.float32)
CACHE = np.ones((8, 1, 16, 128), np.float32)
CONTEXT_LEN, PAGE_INDICES = np.ones(1, np.int32), np.zeros(1, np.int32)
OUTPUT = np.empty_like(QUERY)
ARGUMENTS = (QUERY, CACHE, CACHE, CONTEXT_LEN, PAGE_INDICES)


def no_wait() -> None:
    """On the CPU a call is done when it comes back."""


class Pair(NamedTuple):
    """A face's call, the C interface's on the same device, what waits for both, and whose memory
    the second one works on."""

    face: Call
    c_interface: Call
    wait: Call = no_wait
    owners: object = None


def c_call(arguments: Sequence[bytes], output: bytes, where: bytes | None) -> Call:
    """The bare call."""
    function = lib.pagefill_prefill_page_attention
    check(function(*arguments, None, output, None, where))
    return lambda: function(*arguments, None, output, None, where)


def c_on_cpu() -> Call:
    """Over NumPy's arrays."""
    inputs = [views.read("", array) for array in ARGUMENTS]
    return c_call(inputs, views.write("", OUTPUT), None)


class OnCuda(NamedTuple):
    """An array of a face, as the C interface takes it."""

    pointer: int
    dtype: str
    shape: tuple[int, ...]

    def packed(self) -> bytes:
        strides = structs.row_major(self.shape)
        code = DTYPES[self.dtype]
        layout = structs.tensor_layout(code, self.shape, strides, structs.CUDA, 0)
        return structs.tensor(self.pointer, layout)


def c_on_cuda(inputs: Sequence[OnCuda], output: OnCuda, workspace: OnCuda, stream: int) -> Call:
    """Over arrays of a face on the first device. They have to outlive it."""
    place = {"workspace": workspace.pointer, "workspace_size": CUDA_WORKSPACE}
    where = structs.on_cuda(None, stream, **place)
    return c_call([array.packed() for array in inputs], output.packed(), where)


def wait_for_cuda() -> None:
    """For all that was enqueued, on whatever stream."""
    if status := ctypes.CDLL("libcuda.so.1").cuCtxSynchronize():
        raise RuntimeError(f"cuCtxSynchronize: expected 0, got {status}")


def numpy_call(*, context_len: object = CONTEXT_LEN, **options: Any) -> Callable[[str], Pair]:
    """NumPy, on the CPU alone."""
    arguments = (QUERY, CACHE, CACHE, context_len, PAGE_INDICES)

    def make(device: str) -> Pair:
        if device != "cpu":
            raise ImportError("takes memory of the CPU")
        return Pair(lambda: pagefill.prefill_page_attention(*arguments, **options), c_on_cpu())

    return make


def jax_call(function: str, **options: Any) -> Callable[[str], Pair]:
    """JAX: "jit", as models call it, "eager", or "nothing", one addition to a length, which is what
    JAX itself takes. On the CPU the result is waited for."""

    def make(device: str) -> Pair:
        import jax
        import jax.numpy as jnp

        import pagefill.jax

        attention = pagefill.jax.prefill_page_attention
        try:
            where = jax.devices(device)[0]
        except RuntimeError as error:
            raise ImportError(str(error)) from None
        dtype = jnp.float32 if device == "cpu" else jnp.bfloat16
        query, cache = (jax.device_put(jnp.asarray(x, dtype), where) for x in (QUERY, CACHE))
        length, pages = (jax.device_put(x, where) for x in (CONTEXT_LEN, PAGE_INDICES))
        arguments = (query, cache, cache, length, pages)
        call: Callable[..., Any] = {
            "jit": jax.jit(attention),
            "eager": lambda *arrays: attention(*arrays, **options),
            "nothing": jax.jit(lambda query, keys, values, length, pages: length + 1),
        }[function]
        if device == "cpu":
            return Pair(lambda: call(*arguments).block_until_ready(), c_on_cpu())

        def on_cuda(array: Any) -> OnCuda:
            return OnCuda(array.unsafe_buffer_pointer(), array.dtype.name, array.shape)

        kept = [jax.device_put(jnp.zeros_like(query), where)]
        kept.append(jax.device_put(jnp.zeros(CUDA_WORKSPACE, jnp.uint8), where))
        jax.block_until_ready([*arguments, *kept])
        last: list[Any] = []
        bare = c_on_cuda([on_cuda(a) for a in arguments], *map(on_cuda, kept), stream=0)

        def face() -> None:
            last[:] = [call(*arguments)]

        def wait() -> None:
            jax.block_until_ready(last)
            wait_for_cuda()

        return Pair(face, bare, wait, (arguments, kept))

    return make


def torch_call(*, context_len: int | None = None, **options: Any) -> Callable[[str], Pair]:
    """PyTorch, eager."""

    def make(device: str) -> Pair:
        import torch

        from pagefill.torch import prefill_page_attention

        if device == "cuda" and not torch.cuda.is_available():
            raise ImportError("torch sees no CUDA device")
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        query, cache = (torch.from_numpy(x).to(device, dtype) for x in (QUERY, CACHE))
        length, pages = (torch.from_numpy(x).to(device) for x in (CONTEXT_LEN, PAGE_INDICES))
        tensors = (query, cache, cache, length, pages)
        arguments = (*tensors[:3], length if context_len is None else context_len, pages)
        given = dict(options)
        if given.pop("out", False):
            given["out"] = torch.empty_like(query)

        def face() -> object:
            return prefill_page_attention(*arguments, **given)

        if device == "cpu":
            return Pair(face, c_on_cpu())

        def on_cuda(tensor: torch.Tensor) -> OnCuda:
            name = str(tensor.dtype).removeprefix("torch.")
            return OnCuda(tensor.data_ptr(), name, tuple(tensor.shape))

        kept = [torch.empty_like(query)]
        kept.append(torch.empty(CUDA_WORKSPACE, dtype=torch.uint8, device=device))
        stream = torch.cuda.current_stream().cuda_stream
        bare = c_on_cuda([on_cuda(t) for t in tensors], *map(on_cuda, kept), stream=stream)

        return Pair(face, bare, wait_for_cuda, (tensors, kept))

    return make


OPTIONS = {"softmax_scale": 0.1, "sliding_window": 512, "return_lse": True}

FACES: dict[str, Callable[[str], Pair]] = {
    "numpy": numpy_call(),
    "numpy, out": numpy_call(out=OUTPUT),
    "numpy, options": numpy_call(context_len=1, **OPTIONS),
    "jax, jit": jax_call("jit"),
    "jax, no jit": jax_call("eager", sliding_window=512),
    "jax, length + 1": jax_call("nothing"),
    "torch": torch_call(),
    "torch, out": torch_call(out=True),
    "torch, lse": torch_call(return_lse=True),
    "torch, options": torch_call(context_len=1, **OPTIONS),
}


def seconds(call: Call, wait: Call) -> float:
    """Of one call, the mean of a block."""
    begin = time.perf_counter()
    for _ in range(CALLS):
        call()
    elapsed = (time.perf_counter() - begin) / CALLS
    wait()
    return elapsed


def measure(pair: Pair) -> dict[str, float]:
    """Microseconds: of the C interface, of the face, and between them."""
    for _ in range(WARM_UP // CALLS):
        seconds(pair.face, pair.wait)
        seconds(pair.c_interface, pair.wait)
    turns = [
        (seconds(pair.c_interface, pair.wait), seconds(pair.face, pair.wait)) for _ in range(TURNS)
    ]
    return {
        "c_interface": statistics.median(b for b, _ in turns) * 1e6,
        "face": statistics.median(c for _, c in turns) * 1e6,
        "overhead": statistics.median(c - b for b, c in turns) * 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", action="store_true", help="one object a line")
    arguments = parser.parse_args()
    if not arguments.json:
        print(f"{'microseconds a call':24}{'C interface':>14}{'face':>10}{'overhead':>10}")
    for name, make in FACES.items():
        try:
            pair = make(arguments.device)
        except ImportError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        result = measure(pair)
        if arguments.json:
            print(json.dumps({"call": name, "device": arguments.device, **result}))
        else:
            print(f"{name:24}" + "{c_interface:14.1f}{face:10.1f}{overhead:10.1f}".format(**result))


if __name__ == "__main__":
    main()
