"""ejkernel's XLA implementation of prefill_page_attention, the operator that pagefill implements."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from ejkernel.kernels._xla.prefill_page_attention import prefill_page_attention

from ..inputs import Inputs
from . import Call, Unsupported

PAGE_SIZE = 16


def prepare(inputs: Inputs, threads: int) -> Call:
    # XLA takes as many threads as the process may use cores, which measure.py has set.
    del threads
    if inputs.shape.num_seqs > 1:
        raise Unsupported("prefill_page_attention takes one sequence")
    if inputs.dtypes.cache != inputs.dtypes.query:
        raise Unsupported("query and cache have one dtype")
    return prepare_compiled(prefill_page_attention, inputs)


def prepare_compiled(attention: Callable[..., jax.Array], inputs: Inputs) -> Call:
    """A function with the arguments of ejkernel's, compiled for these inputs."""
    operands = [
        jax.device_put(array)
        for array in (
            inputs.query[0],
            inputs.paged(inputs.keys, PAGE_SIZE).swapaxes(0, 1),
            inputs.paged(inputs.values, PAGE_SIZE).swapaxes(0, 1),
            np.array([inputs.shape.context], np.int32),
            inputs.page_table(PAGE_SIZE)[0],
        )
    ]
    compiled = jax.jit(attention).lower(*operands).compile()
    result = []

    def run() -> None:
        result[:] = [jax.block_until_ready(compiled(*operands))]

    return Call(
        run,
        lambda: np.asarray(result[0]).astype(np.float64)[None],
        f"pages of {PAGE_SIZE}",
    )
