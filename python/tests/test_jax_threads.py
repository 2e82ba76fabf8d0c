"""XLA's own threads: no others, no deadlock, and the default mode of floating point in all of
them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax_support as support  # before jax
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import pagefill
import pagefill.jax
from jax_support import assert_same_bits, operands_of, problem


def threads_of_this_process() -> set[str]:
    return {path.name for path in Path("/proc/self/task").iterdir()}


def test_a_long_call_starts_no_threads_of_its_own():
    operands = operands_of(problem(chunk=256, context=1024, heads=(16, 4)))
    attend = jax.jit(pagefill.jax.prefill_page_attention).lower(*operands).compile()
    jax.block_until_ready(jax.jit(lambda x: x @ x)(jnp.ones((512, 512))))  # XLA's are up
    before = threads_of_this_process()
    output = jax.block_until_ready(attend(*operands))
    assert threads_of_this_process() <= before
    assert_same_bits(output, pagefill.prefill_page_attention(*operands))


def test_eight_devices_that_share_the_pool_at_once_do_not_lock():
    mesh = Mesh(np.array(jax.devices()), ("calls",))
    query, keys, values, length, pages = operands_of(problem(chunk=64, context=2048, heads=(8, 8)))
    queries = np.stack([query + i for i in range(8)])

    def two_calls(queries):
        def attend(query):
            return pagefill.jax.prefill_page_attention(query, keys, values, length, pages)

        # Two that do not wait for each other, and one behind them.
        first, second = attend(queries[0]), attend(queries[0] * 2)
        return (attend(first + second))[None]

    function = jax.jit(support.shard_map(two_calls, mesh, (P("calls"),), P("calls")))
    want = [np.asarray(two_calls(queries[i : i + 1])) for i in range(8)]
    for _ in range(5):
        assert_same_bits(function(queries), np.concatenate(want))


def test_calls_from_many_python_threads_do_not_lock_and_do_not_mix():
    cases = [operands_of(problem(chunk=32, context=512, seed=seed)) for seed in range(4)]
    want = [pagefill.prefill_page_attention(*operands) for operands in cases]
    attend = jax.jit(pagefill.jax.prefill_page_attention)

    def run(index: int) -> None:
        for _ in range(10):
            assert_same_bits(attend(*cases[index % 4]), want[index % 4])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, range(8)))


def test_a_call_of_the_numpy_face_from_inside_of_a_jax_computation_does_not_lock():
    operands = operands_of(problem(chunk=64, context=512))
    want = pagefill.prefill_page_attention(*operands)

    def inside(query):
        return pagefill.prefill_page_attention(np.asarray(query), *operands[1:])

    @jax.jit
    def nested(query):
        shape = jax.ShapeDtypeStruct(query.shape, query.dtype)
        first = jax.pure_callback(inside, shape, query)
        return first, pagefill.jax.prefill_page_attention(query, *operands[1:])

    for got in nested(operands[0]):
        assert_same_bits(got, want)


def test_denormal_numbers_count_although_xla_flushes_them():
    operands = operands_of(problem(chunk=200, context=1000, heads=(8, 4)))
    operands[2] = operands[2] * np.float32(1e-40)
    assert (np.abs(operands[2][operands[2] != 0]) < np.finfo(np.float32).tiny).all()
    got = jax.jit(pagefill.jax.prefill_page_attention)(*operands)
    assert np.asarray(got).any()
    assert_same_bits(got, pagefill.prefill_page_attention(*operands))


def test_the_gil_is_free_while_a_call_computes():
    operands = operands_of(problem(chunk=512, context=4096, heads=(8, 2)))
    attend = jax.jit(pagefill.jax.prefill_page_attention).lower(*operands).compile()
    counted, done = [0], threading.Event()

    def count() -> None:
        while not done.is_set():
            counted[0] += 1

    counter = threading.Thread(target=count)
    counter.start()
    jax.block_until_ready(attend(*operands))
    done.set()
    counter.join()
    assert counted[0] > 100
