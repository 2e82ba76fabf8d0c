"""python -m bench.jax_beside_ejkernel: pagefill.jax beside ejkernel's XLA kernel, in one run.

Both compiled by jax.jit for the same inputs, called in turns, checked against the formula in
float64. Then the memory that one call needs beyond its arguments and its result, by context, each in
a process of its own. Needs pagefill's wheel and ejkernel in one environment.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import subprocess
import sys
from pathlib import Path

from .inputs import Inputs
from .machine import describe_machine
from .measure import restrict_to_cores
from .peers import Call
from .reference import Reference
from .shapes import BFLOAT16, FLOAT32, Dtypes, Shape
from .turns import take_turns

DTYPES = {dtypes.name: dtypes for dtypes in (FLOAT32, BFLOAT16)}
CONTEXTS = (1024, 2048, 4096, 8192)
ROUNDS, SECONDS = 9, 30.0


def prepare(who: str, inputs: Inputs) -> Call:
    from .peers import ejkernel_xla

    if who == "ejkernel":
        return ejkernel_xla.prepare_compiled(ejkernel_xla.prefill_page_attention, inputs)
    from pagefill.jax import prefill_page_attention

    return ejkernel_xla.prepare_compiled(prefill_page_attention, inputs)


def time_both(shape: Shape, dtypes: Dtypes, rounds: int) -> None:
    inputs = Inputs(shape, dtypes)
    reference = Reference(inputs)
    calls = {who: prepare(who, inputs) for who in ("pagefill", "ejkernel")}
    errors = {}
    for who, call in calls.items():
        call.run()
        errors[who] = reference.error(call.output()).rms
        if not errors[who] <= dtypes.error_limit:
            sys.exit(f"{who}: error {errors[who]:.1e}, more than {dtypes.error_limit:.0e}")
    times = take_turns(calls, rounds, SECONDS, None)
    median = {who: statistics.median(seconds) for who, seconds in times.items()}
    for who, seconds in times.items():
        print(
            f"{shape.name} {dtypes.name:9} {who:9} {median[who] * 1e3:9.1f} ms"
            f" ({min(seconds) * 1e3:.1f} to {max(seconds) * 1e3:.1f}, {len(seconds)} rounds),"
            f" {shape.useful_flops / median[who] / 1e9:6.1f} GFLOP/s, error {errors[who]:.0e}"
        )
    print(
        f"{shape.name} {dtypes.name:9} pagefill is {median['ejkernel'] / median['pagefill']:.1f}"
        " times as fast"
    )


def kibibytes(field: str) -> int:
    """A line of the process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def measure_memory(who: str, shape: Shape, dtypes: Dtypes) -> None:
    """Prints the KiB by which the resident memory rose during one call, the result not counted."""
    call = prepare(who, Inputs(shape, dtypes))
    call.run()  # XLA's code is loaded, its threads are up
    call.output()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before = kibibytes("VmRSS")
    call.run()
    size = {"float32": 4, "bfloat16": 2}[dtypes.query]
    result = shape.chunk * shape.num_q_heads * shape.head_dim * size // 1024
    print(max(0, kibibytes("VmHWM") - before - result))


def compare_memory(dtypes: Dtypes, threads: int) -> None:
    for context in CONTEXTS:
        extra = {}
        for who in ("pagefill", "ejkernel"):
            command = [sys.executable, "-m", "bench.jax_beside_ejkernel", "--memory-of", who]
            command += ["--context", str(context), "--dtype", dtypes.name]
            command += ["--threads", str(threads)]
            extra[who] = int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        print(
            f"512@{context} {dtypes.name:9} extra memory: pagefill {extra['pagefill'] / 1024:7.1f}"
            f" MiB, ejkernel {extra['ejkernel'] / 1024:7.1f} MiB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--memory-of", choices=("pagefill", "ejkernel"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    restrict_to_cores(arguments.threads)
    shape = Shape(512, arguments.context)
    if arguments.memory_of is not None:
        measure_memory(arguments.memory_of, shape, DTYPES[arguments.dtype])
        return
    machine = describe_machine()
    print(f"{machine['processor']}, {arguments.threads} threads")
    chosen = [DTYPES[arguments.dtype]] if arguments.dtype else list(DTYPES.values())
    for dtypes in chosen:
        time_both(shape, dtypes, arguments.rounds)
    for dtypes in chosen:
        compare_memory(dtypes, arguments.threads)


if __name__ == "__main__":
    main()
