"""The JAX face on a GPU: `pytest -m gpu`, with JAX_PLATFORMS=cuda,cpu."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import jax_support as support  # before jax
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import pagefill
import pagefill.jax
from cases import bits, golden
from jax_support import problem
from pagefill.jax import _attention
from pagefill.jax._library import PLATFORMS


def _has_gpu() -> bool:
    try:
        return "cuda" in PLATFORMS and bool(jax.devices("cuda"))
    except RuntimeError:
        return False


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not _has_gpu(), reason="no GPU that JAX and pagefill see (JAX_PLATFORMS=cuda,cpu)"
    ),
]

# Of the largest value: rounded weights and results, and sums of some hundred terms.
TOLERANCE = {"float32": 2.0**-16, "bfloat16": 2.0**-6, "float16": 2.0**-9}
STARTS = np.array([0, 5, 6, 6, 30], np.int32)
LENS = np.array([40, 17, 9, 24], np.int32)


def on_gpu(arrays):
    return [jax.device_put(array, jax.devices("cuda")[0]) for array in arrays]


def ragged_problem():
    case = problem(chunk=32, context=100)
    table = np.resize(np.random.default_rng(1).permutation(10), (4, 3)).astype(np.int32)
    return [case.query, case.key_cache, case.value_cache, STARTS, LENS, table]


def assert_close(got, want):
    got, want = np.asarray(got), np.asarray(want)
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    exact = want.astype(np.float64)
    finite = np.isfinite(exact)
    largest = max(1.0, np.abs(exact[finite]).max(initial=0))
    error = np.abs(got.astype(np.float64)[finite] - exact[finite]).max(initial=0)
    assert error <= TOLERANCE[want.dtype.name] * largest
    assert (got.astype(np.float64)[~finite] == exact[~finite]).all()


def test_golden_cases_are_those_of_the_cpu_within_rounding(golden_file):
    case = golden(golden_file)
    got = pagefill.jax.prefill_page_attention(
        *on_gpu(case.arguments), **case.options, return_lse=True
    )
    assert got[0].devices() == {jax.devices("cuda")[0]}
    want = pagefill.prefill_page_attention(*case.arguments, **case.options, return_lse=True)
    for index in range(2):
        assert_close(got[index], want[index])


def test_a_ragged_batch_is_that_of_the_cpu_and_padding_is_the_empty_state():
    operands = ragged_problem()
    want = pagefill.ragged_page_attention(*operands, return_lse=True)
    attend = pagefill.jax.ragged_page_attention
    got = attend(*on_gpu(operands), return_lse=True)
    for index in range(2):
        assert_close(got[index], want[index])
    assert not np.asarray(got[0][30:]).any()
    assert np.isneginf(got[1][30:]).all()
    planned = attend(*on_gpu(operands), return_lse=True, max_chunk_size=24, max_context_len=40)
    assert [bits(a) for a in planned] == [bits(a) for a in got]
    alone = attend(*on_gpu(operands))
    assert bits(alone) == bits(got[0])


def test_scratch_memory_gives_the_same_bits(monkeypatch):
    operands = on_gpu(ragged_problem())
    single = on_gpu(problem(context=5000, page_size=528).arguments)
    window = {"sliding_window": 4321}  # compiled for this test alone
    want = (
        pagefill.jax.ragged_page_attention(*operands),
        pagefill.jax.prefill_page_attention(*single),
    )
    monkeypatch.setattr(_attention, "cuda_workspace", lambda *arguments: None)
    got = pagefill.jax.ragged_page_attention(*operands, **window)
    assert bits(got) == bits(want[0])
    attend = jax.jit(lambda *a: pagefill.jax.prefill_page_attention(*a, sliding_window=5001))
    text = attend.lower(*single).as_text()
    assert "pagefill_attention_scratch" in text
    assert bits(attend(*single)) == bits(want[1])


def test_another_choice_of_kernels_gets_a_workspace_of_its_size(monkeypatch):
    case = problem(chunk=300, context=5000, dtype=np.float16)
    want = pagefill.prefill_page_attention(*case.arguments)
    arguments = on_gpu(case.arguments)
    for target in ("auto", "portable", "auto"):
        monkeypatch.setenv("PAGEFILL_CUDA_TARGET", target)
        assert_close(pagefill.jax.prefill_page_attention(*arguments), want)


def test_another_length_compiles_nothing():
    query, keys, values, _, pages = on_gpu(problem(context=100).arguments)
    traces = []

    @jax.jit
    def attend(length):
        traces.append(length)
        return pagefill.jax.prefill_page_attention(query, keys, values, length, pages)

    for length in (24, 57, 99, 100):
        got = attend(jnp.array([length], jnp.int32))
        arguments = map(np.asarray, (query, keys, values))
        want = pagefill.prefill_page_attention(*arguments, length, np.asarray(pages))
        assert_close(got, want)
    assert len(traces) == 1


def decode(query, keys, values, tokens, table):
    """A loop of append and attention, which carries the caches."""
    starts = jnp.array([0, 1], jnp.int32)

    def step(carry, token):
        key_cache, value_cache, length = carry
        row, new_key, new_value = token
        place = (starts, length[None], table[None])
        caches = pagefill.jax.append_kv(
            new_key[None], new_value[None], key_cache, value_cache, *place
        )
        output = pagefill.jax.ragged_page_attention(row[None], *caches, *place, max_chunk_size=1)
        return (*caches, length + 1), output[0]

    carry, outputs = jax.lax.scan(step, (keys, values, jnp.int32(41)), (query, *tokens))
    return outputs, carry[0], carry[1]


def test_a_decode_loop_gives_what_prefill_gives():
    query, keys, values, _, pages = on_gpu(problem(chunk=20, context=60).arguments)
    tokens = jnp.asarray(np.random.default_rng(1).standard_normal((2, 20, 2, 64), np.float32))
    outputs, new_keys, new_values = jax.jit(decode)(query, keys, values, tokens, pages)
    whole = pagefill.jax.prefill_page_attention(query, new_keys, new_values, 60, pages)
    assert bits(outputs) == bits(whole)


@pytest.mark.parametrize("cache_dtype", [np.float32, ml_dtypes.bfloat16, np.int8])
def test_append_kv_writes_the_bits_of_the_cpu_in_place(cache_dtype):
    random = np.random.default_rng(0)
    tokens = random.standard_normal((2, 9, 2, 32), np.float32)
    caches = random.standard_normal((2, 2, 9, 16, 32), np.float32).astype(cache_dtype)
    table = np.array([[8, 0, 0], [3, 5, 0], [1, 7, 2]], np.int32)
    place = (np.array([0, 3, 4, 9], np.int32), np.array([5, 17, 40], np.int32), table)
    options, names = {}, ["key_cache", "value_cache"]
    if cache_dtype == np.int8:
        options = {f"chosen_{k}_scale": np.ones((2, 9, 16), np.float32) for k in ("key", "value")}
        names += options
    append = jax.jit(pagefill.jax.append_kv, donate_argnames=names)
    keys, values, *there = on_gpu([*tokens, *caches])
    given = dict(zip(options, on_gpu(options.values()), strict=True))
    places = [array.unsafe_buffer_pointer() for array in (*there, *given.values())]
    got = append(keys, values, *there, *on_gpu(place), **given)
    assert [array.unsafe_buffer_pointer() for array in got] == places
    here = [cache.copy() for cache in caches]
    pagefill.append_kv(*tokens, *here, *place, **options)
    assert [bits(array) for array in got] == [bits(a) for a in (*here, *options.values())]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.int8])
def test_copy_pages_writes_the_bits_of_the_cpu_in_place(dtype):
    random = np.random.default_rng(0)
    caches = random.standard_normal((2, 2, 9, 16, 32), np.float32).astype(dtype)
    options, names = {}, ["key_cache", "value_cache"]
    if dtype == np.int8:
        options = {f"{k}_scale": random.random((2, 9, 16), np.float32) for k in ("key", "value")}
        names += options
    copy = jax.jit(pagefill.jax.copy_pages, donate_argnames=names)
    there, given = on_gpu(caches), dict(zip(options, on_gpu(options.values()), strict=True))
    places = [array.unsafe_buffer_pointer() for array in (*there, *given.values())]
    for copies in ([(3, 5, 16), (5, 0, 3), (1, 5, 2)], [(0, 8, 1), (8, 7, 16), (0, 1, 0)]):
        (numbers,) = on_gpu([np.array(copies, np.int32)])
        got = copy(numbers, *there, **given)
        assert [array.unsafe_buffer_pointer() for array in got] == places
        pagefill.copy_pages(copies, *caches, **options)
        assert [bits(array) for array in got] == [bits(a) for a in (*caches, *options.values())]
        there, given = got[:2], dict(zip(options, got[2:], strict=True))


def test_a_bad_copy_is_not_done_and_status_says_so():
    _, keys, values, *_ = ragged_problem()
    copies, none = [(0, 1, 16), (0, 10, 1), (1, 2, 17)], jnp.zeros(4, jnp.int32)
    *got, status = pagefill.jax.copy_pages(copies, *on_gpu([keys, values]), status=none)
    assert status.tolist() == [6, 1, 1, 10]
    pagefill.copy_pages(copies[:1], keys, values)
    assert [bits(array) for array in got] == [bits(keys), bits(values)]


def test_merged_states_are_those_of_the_cpu_within_rounding():
    operands = ragged_problem()
    a = pagefill.ragged_page_attention(*operands, return_lse=True)
    b = pagefill.ragged_page_attention(*operands, softmax_scale=0.1, return_lse=True)
    want = pagefill.merge_attention_states(*a, *b)
    got = pagefill.jax.merge_attention_states(*on_gpu((*a, *b)))
    for index in range(2):
        assert_close(got[index], want[index])


def test_vmap_of_queries_and_lengths_is_one_call_for_all():
    query, keys, values, _, pages = on_gpu(problem(context=100).arguments)
    queries = jnp.stack([query, query * 2, -query])
    lengths = jnp.array([[100], [57], [24]], jnp.int32)
    attend = pagefill.jax.prefill_page_attention
    got = jax.vmap(lambda q, n: attend(q, keys, values, n, pages))(queries, lengths)
    for i in range(3):
        assert bits(got[i]) == bits(attend(queries[i], keys, values, lengths[i], pages))


def test_what_is_bad_on_the_device_comes_out_as_nan():
    query, keys, values, starts, lens, table = ragged_problem()
    good = pagefill.jax.ragged_page_attention(*on_gpu((query, keys, values, starts, lens, table)))
    bad = table.copy()
    bad[0, 1] = 10
    got = pagefill.jax.ragged_page_attention(*on_gpu((query, keys, values, starts, lens, bad)))
    assert np.isnan(got[:5]).all()
    assert bits(got[5:]) == bits(good[5:])
    got = pagefill.jax.ragged_page_attention(
        *on_gpu((query, keys, values, starts, lens, table)), max_chunk_size=5
    )
    assert np.isnan(got[6:30]).all()
    assert bits(got[:6]) == bits(good[:6])


def test_a_status_says_what_was_found_bad_first():
    query, keys, values, starts, lens, table = ragged_problem()
    arrays = on_gpu((query, keys, values, starts, lens, table))
    none = jnp.zeros(4, jnp.int32)
    attend = pagefill.jax.ragged_page_attention
    want = attend(*arrays, return_lse=True)
    output, lse, status = attend(*arrays, return_lse=True, status=none)
    assert [bits(a) for a in (output, lse)] == [bits(a) for a in want]
    assert status.tolist() == [0, 0, 0, 0]
    bad = table.copy()
    bad[0, 1] = 12
    output, status = attend(*arrays[:-1], *on_gpu([bad]), status=none)
    assert status.tolist() == [4, 0, 1, 12]
    assert np.isnan(output[:5]).all()
    assert none.tolist() == [0, 0, 0, 0]
    _, status = attend(*arrays, max_chunk_size=5, status=status)  # the first report stays
    assert status.tolist() == [4, 0, 1, 12]
    _, status = attend(*arrays, max_chunk_size=5, status=none)
    assert status.tolist()[:2] == [5, 3]
    one = problem(context=100)
    _, status = jax.jit(pagefill.jax.prefill_page_attention)(
        *on_gpu([*one.arguments[:3], np.array([5000], np.int32), one.arguments[4]]), status=none
    )
    assert status.tolist() == [2, 0, 0, 5000]


def test_append_kv_has_a_status_too():
    query, keys, values, starts, lens, table = ragged_problem()
    tokens = np.ones((2, len(query), 2, 64), np.float32)
    table[3, 1] = -7  # of the last sequence's 24 tokens the 8 behind the first page
    append = jax.jit(pagefill.jax.append_kv)
    arrays = on_gpu([*tokens, keys, values, starts, lens, table])
    *caches, status = append(*arrays, status=jnp.zeros(4, jnp.int32))
    assert status.tolist() == [4, 3, 1, -7]
    assert [bits(a) for a in caches] == [bits(a) for a in append(*arrays)]


def test_vmap_gives_each_call_its_status():
    query, keys, values, _, pages = on_gpu(problem(context=100).arguments)
    lengths = jnp.array([[100], [5000], [24]], jnp.int32)
    attend = pagefill.jax.prefill_page_attention
    none = jnp.zeros(4, jnp.int32)
    outputs, status = jax.vmap(lambda n: attend(query, keys, values, n, pages, status=none))(
        lengths
    )
    assert status.tolist() == [[0, 0, 0, 0], [2, 0, 0, 5000], [0, 0, 0, 0]]
    assert np.isnan(outputs[1]).all()


def test_the_cpu_beside_the_gpu_is_as_it_was():
    case = problem()
    cpu = jax.devices("cpu")[0]
    arrays = [jax.device_put(array, cpu) for array in case.arguments]
    got = pagefill.jax.prefill_page_attention(*arrays)
    assert bits(got) == bits(pagefill.prefill_page_attention(*case.arguments))
    arrays[3] = jax.device_put(np.array([1000], np.int32), cpu)
    with pytest.raises(support.RUN_TIME_ERRORS, match="context_len: expected at most"):
        jax.block_until_ready(pagefill.jax.prefill_page_attention(*arrays))
    with pytest.raises(NotImplementedError, match="inference"):
        jax.grad(lambda q: pagefill.jax.prefill_page_attention(q, *arrays[1:]).sum())(arrays[0])


IN_COMMAND_BUFFERS = """
import hashlib
import numpy as np, jax, jax.numpy as jnp
import pagefill.jax
from jax_support import problem
from cases import bits
case = problem(chunk=1, context=5000, page_size=528)
query, keys, values, _, pages = map(jnp.asarray, case.arguments)
starts = jnp.array([0, 1], jnp.int32)
tokens = jnp.ones((2, 1, 2, 64))

def step(query, keys, values, length):
    place = (starts, length, pages[None])
    keys, values = pagefill.jax.append_kv(*(tokens * 0.5), keys, values, *place)
    state = pagefill.jax.ragged_page_attention(query * 2, keys, values, *place, return_lse=True)
    other = pagefill.jax.ragged_page_attention(
        query, keys, values, *place, return_lse=True, max_chunk_size=1)
    return *pagefill.jax.merge_attention_states(*state, *other), keys, values

compiled = jax.jit(step).lower(query, keys, values, jnp.array([5000], jnp.int32)).compile()
results = []
for turn in range(4):
    for length in (5000, 17, 1, 4999):
        out = compiled(query, keys, values, jnp.array([length], jnp.int32))
        other = jnp.full((64, 1 << 20), jnp.nan)  # whoever gets memory that was given back
        results.append([bits(a) for a in out])
        del other
print("same:", all(results[i] == results[i % 4] for i in range(len(results))))
print("bits:", hashlib.sha256(repr(results).encode()).hexdigest())
"""


def run_apart(folder: Path, flags: str) -> dict[str, str]:
    """What it prints, and the program as XLA runs it."""
    flags += f" --xla_dump_to={folder} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=jit_step"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cuda,cpu"}
    done = subprocess.run(
        [sys.executable, "-c", IN_COMMAND_BUFFERS],
        cwd=Path(__file__).parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    thunks = "".join(file.read_text() for file in folder.glob("*thunk*"))
    return dict(line.split(": ") for line in done.stdout.splitlines()) | {"thunks": thunks}


def test_command_buffers_have_the_bits_of_plain_launches(tmp_path):
    without = run_apart(tmp_path / "without", "--xla_gpu_enable_command_buffer=")
    within = run_apart(
        tmp_path / "within",
        "--xla_gpu_enable_command_buffer=CUSTOM_CALL --xla_gpu_graph_min_graph_size=1",
    )
    assert without["same"] == within["same"] == "True"
    assert within["bits"] == without["bits"]
    in_buffer = r"kCommandBuffer.*\n +\d+: kCustomCall"
    assert re.search(in_buffer, within["thunks"])
    assert "kCustomCall" in without["thunks"]
    assert not re.search(in_buffer, without["thunks"])
