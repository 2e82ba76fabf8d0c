"""What a call costs beyond the C interface, for each Python face that is installed.

    python bench/python_overhead.py [--json]

One token at context 1, 32/8 heads, head dim 128, float32, one thread: next to no work. The C
interface is called through ctypes with arguments that are prepared once. Blocks of calls of the C
interface and of a face take turns; a face's overhead is the median over the turns of the difference.
Wall time: run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable

os.environ["PAGEFILL_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402

import pagefill  # noqa: E402
from pagefill._c import views  # noqa: E402
from pagefill._c.library import check, lib  # noqa: E402

TURNS, CALLS, WARM_UP = 400, 50, 500
Call = Callable[[], object]

QUERY = np.ones((1, 32, 128), np.float32)
CACHE = np.ones((8, 1, 16, 128), np.float32)
CONTEXT_LEN, PAGE_INDICES = np.ones(1, np.int32), np.zeros(1, np.int32)
OUTPUT = np.empty_like(QUERY)


def c_interface() -> Call:
    """The bare call."""
    inputs = (QUERY, CACHE, CACHE, CONTEXT_LEN, PAGE_INDICES)
    arguments = (*(views.read("", array) for array in inputs), None, views.write("", OUTPUT))
    function = lib.pagefill_prefill_page_attention
    check(function(*arguments, None, None))
    return lambda: function(*arguments, None, None)


def numpy_new() -> Call:
    """NumPy, as most will call it."""
    arguments = (QUERY, CACHE, CACHE, CONTEXT_LEN, PAGE_INDICES)
    return lambda: pagefill.prefill_page_attention(*arguments)


def numpy_out() -> Call:
    """NumPy, into an array that is there."""
    arguments = (QUERY, CACHE, CACHE, CONTEXT_LEN, PAGE_INDICES)
    return lambda: pagefill.prefill_page_attention(*arguments, out=OUTPUT)


def numpy_options() -> Call:
    """NumPy with options, the context's length as an integer, and lse."""
    arguments = (QUERY, CACHE, CACHE, 1, PAGE_INDICES)
    options = {"softmax_scale": 0.1, "sliding_window": 512, "return_lse": True}
    return lambda: pagefill.prefill_page_attention(*arguments, **options)


def jax_function(function: Callable[..., object]) -> Call:
    """Compiled by jax.jit, its arguments on JAX's device; the result is waited for."""
    import jax

    arguments = [jax.device_put(x) for x in (QUERY, CACHE, CACHE, CONTEXT_LEN, PAGE_INDICES)]
    compiled = jax.jit(function)
    return lambda: compiled(*arguments).block_until_ready()


def jax_jit() -> Call:
    """JAX, inside of jit, as models call it."""
    import pagefill.jax

    return jax_function(pagefill.jax.prefill_page_attention)


def jax_eager() -> Call:
    """JAX, outside of jit, with an option."""
    import jax

    import pagefill.jax

    arguments = [jax.device_put(x) for x in (QUERY, CACHE, CACHE, CONTEXT_LEN, PAGE_INDICES)]
    attention = pagefill.jax.prefill_page_attention
    return lambda: attention(*arguments, sliding_window=512).block_until_ready()


def jax_nothing() -> Call:
    """What JAX itself takes: the same arguments, and one addition to a length."""
    return jax_function(lambda query, keys, values, length, pages: length + 1)


def torch_call(*, context_len: object = None, **options: object) -> Call:
    """PyTorch, eager."""
    import torch

    from pagefill.torch import prefill_page_attention

    query, cache, length, pages = map(
        torch.from_numpy, (QUERY, CACHE, CONTEXT_LEN, PAGE_INDICES)
    )
    if options.pop("out", False):
        options["out"] = torch.empty_like(query)
    arguments = (query, cache, cache, length if context_len is None else context_len, pages)

    def call() -> object:
        return prefill_page_attention(*arguments, **options)

    return call


def torch_new() -> Call:
    """PyTorch, as most will call it."""
    return torch_call()


def torch_out() -> Call:
    """PyTorch, into a tensor that is there."""
    return torch_call(out=True)


def torch_lse() -> Call:
    """PyTorch with lse."""
    return torch_call(return_lse=True)


def torch_options() -> Call:
    """PyTorch with what numpy_options has."""
    return torch_call(context_len=1, softmax_scale=0.1, sliding_window=512, return_lse=True)


FACES = {
    "numpy": numpy_new,
    "numpy, out": numpy_out,
    "numpy, options": numpy_options,
    "jax, jit": jax_jit,
    "jax, no jit": jax_eager,
    "jax, length + 1": jax_nothing,
    "torch": torch_new,
    "torch, out": torch_out,
    "torch, lse": torch_lse,
    "torch, options": torch_options,
}


def seconds(call: Call) -> float:
    """Of one call, the mean of a block."""
    begin = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - begin) / CALLS


def measure(call: Call, base: Call) -> dict[str, float]:
    """Microseconds: of the C interface, of the face, and between them."""
    for _ in range(WARM_UP):
        call()
        base()
    turns = [(seconds(base), seconds(call)) for _ in range(TURNS)]
    return {
        "c_interface": statistics.median(b for b, _ in turns) * 1e6,
        "face": statistics.median(c for _, c in turns) * 1e6,
        "overhead": statistics.median(c - b for b, c in turns) * 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one object a line")
    arguments = parser.parse_args()
    if not arguments.json:
        print(f"{'microseconds a call':24}{'C interface':>14}{'face':>10}{'overhead':>10}")
    for name, make in FACES.items():
        try:
            call = make()
        except ImportError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        result = measure(call, c_interface())
        if arguments.json:
            print(json.dumps({"call": name, **result}))
        else:
            print(f"{name:24}" + "{c_interface:14.1f}{face:10.1f}{overhead:10.1f}".format(**result))


if __name__ == "__main__":
    main()
