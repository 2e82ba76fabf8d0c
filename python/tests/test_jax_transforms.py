"""jit, vmap, shard_map, scan, while, AOT, export, and gradients that are refused."""

from __future__ import annotations

import re

import jax_support as support  # before jax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import pagefill.jax
from jax_support import assert_same_bits, operands_of, problem

TARGET = "pagefill_attention"


def calls_of(function, *operands) -> int:
    """How many FFI calls XLA runs."""
    return len(re.findall(rf'custom_call_target="{TARGET}"', compiled_text(function, *operands)))


def compiled_text(function, *operands) -> str:
    return jax.jit(function).lower(*operands).compile().as_text()


def test_a_new_length_or_table_does_not_trace_anew():
    traces = []

    @jax.jit
    def step(query, keys, values, length, pages):
        traces.append(1)
        return pagefill.jax.prefill_page_attention(query, keys, values, length, pages)

    operands = operands_of(problem())
    for length in (24, 50, 99, 100):
        operands[3] = np.array([length], np.int32)
        operands[4] = np.roll(operands[4], 1)
        want = pagefill.jax.prefill_page_attention(*operands)
        assert_same_bits(step(*operands), want)
    assert len(traces) == 1


def test_calls_outside_of_jit_do_not_compile_anew_for_a_new_length():
    from pagefill.jax._attention import _compiled

    operands = operands_of(problem())
    pagefill.jax.prefill_page_attention(*operands)
    before = _compiled._cache_size()
    for length in (24, 50, 99):
        operands[3] = length
        pagefill.jax.prefill_page_attention(*operands)
    assert _compiled._cache_size() == before


def batch_of_calls(size=3):
    cases = [problem(seed=seed) for seed in range(size)]
    queries = np.stack([case.query for case in cases])
    tables = np.stack([case.page_indices for case in cases])
    lengths = np.array([[100], [31], [77]][:size], np.int32)
    return queries, *cases[0].arguments[1:3], lengths, tables


def test_vmap_over_one_cache_is_one_ragged_call_with_the_bits_of_each():
    operands = batch_of_calls()

    def attend(*arguments):
        return pagefill.jax.prefill_page_attention(*arguments, return_lse=True)

    mapped = jax.vmap(attend, in_axes=(0, None, None, 0, 0))
    assert calls_of(mapped, *operands) == 1
    assert "while" not in compiled_text(mapped, *operands)
    output, lse = jax.jit(mapped)(*operands)
    for i in range(3):
        one = attend(operands[0][i], *operands[1:3], operands[3][i], operands[4][i])
        assert_same_bits(output[i], one[0])
        assert_same_bits(lse[i], one[1])


@pytest.mark.parametrize("mapped", [(0,), (3,), (4,), (3, 4)])
def test_vmap_over_some_of_query_length_and_table_is_one_call(mapped):
    operands = batch_of_calls()
    axes = tuple(0 if i in mapped else None for i in range(5))
    operands = [
        operand if i in mapped or i in (1, 2) else operand[0] for i, operand in enumerate(operands)
    ]
    function = jax.vmap(pagefill.jax.prefill_page_attention, in_axes=axes)
    assert calls_of(function, *operands) == 1
    got = function(*operands)
    for i in range(3):
        one = [op[i] if i_op in mapped else op for i_op, op in enumerate(operands)]
        assert_same_bits(got[i], pagefill.jax.prefill_page_attention(*one))


def test_vmap_of_another_axis_and_of_vmap_are_one_call():
    queries, keys, values, lengths, tables = batch_of_calls()
    queries = np.stack([queries, queries[::-1]], axis=2)  # [3, 24, 2, heads, dim]

    def attend(query, length, pages):
        return pagefill.jax.prefill_page_attention(query, keys, values, length, pages)

    inner = jax.vmap(attend, in_axes=(1, None, None))
    mapped = jax.vmap(inner, in_axes=(0, 0, 0))
    assert calls_of(mapped, queries, lengths, tables) == 1
    got = mapped(queries, lengths, tables)
    for i in range(3):
        for j in range(2):
            assert_same_bits(got[i, j], attend(queries[i, :, j], lengths[i], tables[i]))


def test_vmap_over_caches_runs_one_after_another():
    cases = [problem(seed=seed) for seed in range(3)]
    operands = [np.stack(arrays) for arrays in zip(*(case.arguments for case in cases))]
    got = jax.vmap(pagefill.jax.prefill_page_attention)(*operands)
    for i, case in enumerate(cases):
        assert_same_bits(got[i], pagefill.jax.prefill_page_attention(*case.arguments))


@pytest.mark.parametrize("with_sinks", [False, True])
def test_vmap_of_ragged_batches_with_padding_is_one_call_with_the_bits_of_each(with_sinks):
    case = problem(chunk=12)
    query, keys, values = case.arguments[:3]
    queries = np.stack([query, query[::-1], query + 1])
    starts = np.array([[0, 1, 6], [0, 0, 0], [0, 12, 12]], np.int32)
    lens = np.array([[7, 30], [3, 0], [40, 20]], np.int32)
    tables = np.random.default_rng(5).integers(0, 10, (3, 2, 3)).astype(np.int32)
    kv_start = np.array([[0, 2], [1, 0], [0, 16]], np.int32)
    sinks = np.linspace(-2, 2, 8, dtype=np.float32) if with_sinks else None

    def attend(query, starts, lens, table, kv_start):
        return pagefill.jax.ragged_page_attention(
            query,
            keys,
            values,
            starts,
            lens,
            table,
            kv_start=kv_start,
            sinks=sinks,
            return_lse=True,
        )

    operands = (queries, starts, lens, tables, kv_start)
    assert calls_of(jax.vmap(attend), *operands) == 1
    got = jax.vmap(attend)(*operands)
    for i in range(3):
        want = attend(*(operand[i] for operand in operands))
        assert_same_bits(got[0][i], want[0])
        assert_same_bits(got[1][i], want[1])


def test_vmap_of_a_ragged_batch_that_does_not_begin_with_0_stays_an_error():
    query, keys, values, _, pages = operands_of(problem())
    starts = np.array([[0, 24], [3, 24]], np.int32)
    lens, table = np.array([50], np.int32), pages[None]

    def attend(starts):
        return pagefill.jax.ragged_page_attention(query, keys, values, starts, lens, table)

    with pytest.raises(support.RUN_TIME_ERRORS, match="query_starts: expected 0 as its first"):
        jax.block_until_ready(jax.vmap(attend)(starts))


def test_vmap_of_merge_is_one_call():
    outputs = np.random.default_rng(0).standard_normal((3, 2, 5, 4, 16), np.float32)
    lses = np.random.default_rng(1).standard_normal((3, 2, 5, 4), np.float32)
    merge = pagefill.jax.merge_attention_states
    got = jax.vmap(merge, in_axes=(0, 0, None, 0))(
        outputs[:, 0], lses[:, 0], outputs[0, 1], lses[:, 1]
    )
    for i in range(3):
        want = merge(outputs[i, 0], lses[i, 0], outputs[0, 1], lses[i, 1])
        assert_same_bits(got[0][i], want[0])
        assert_same_bits(got[1][i], want[1])


def test_shard_map_over_kv_heads_on_eight_devices_has_the_bits_of_one():
    assert jax.device_count() == 8
    mesh = Mesh(np.array(jax.devices()), ("heads",))
    operands = operands_of(problem(heads=(16, 8)))
    sinks = np.linspace(-1, 1, 16, dtype=np.float32)

    def attend(query, keys, values, length, pages, sinks):
        return pagefill.jax.prefill_page_attention(
            query, keys, values, length, pages, sinks=sinks, return_lse=True
        )

    want = attend(*operands, sinks)
    sharded = support.shard_map(
        attend,
        mesh,
        (P(None, "heads"), P("heads"), P("heads"), P(), P(), P("heads")),
        (P(None, "heads"), P(None, "heads")),
    )
    for function in (sharded, jax.jit(sharded)):
        got = function(*operands, sinks)
        assert_same_bits(got[0], want[0])
        assert_same_bits(got[1], want[1])


def test_shard_map_of_append_and_merge_has_the_bits_of_one_device():
    mesh = Mesh(np.array(jax.devices()), ("heads",))
    case = problem(chunk=4, heads=(8, 8))
    query, keys, values, length, pages = case.arguments
    starts, table = np.array([0, 4], np.int32), pages[None]
    new = np.random.default_rng(4).standard_normal((2, 4, 8, 64), np.float32)
    operands = (query, *new, keys, values, starts, length, table)

    def step(query, new_keys, new_values, keys, values, starts, lens, table):
        keys, values = pagefill.jax.append_kv(
            new_keys, new_values, keys, values, starts, lens, table
        )
        state = pagefill.jax.ragged_page_attention(
            query, keys, values, starts, lens, table, return_lse=True
        )
        return *pagefill.jax.merge_attention_states(*state, *state), keys, values

    tokens, caches = P(None, "heads"), P("heads")
    sharded = support.shard_map(
        step,
        mesh,
        (tokens, tokens, tokens, caches, caches, P(), P(), P()),
        (tokens, tokens, caches, caches),
    )
    for got, want in zip(jax.jit(sharded)(*operands), step(*operands), strict=True):
        assert_same_bits(got, want)


def test_scan_and_while_decode_with_the_bits_of_one_prefill():
    case = problem(chunk=20, context=60)
    query, keys, values, _, pages = case.arguments
    want = pagefill.jax.prefill_page_attention(*case.arguments)

    def decode(length, row):
        out = pagefill.jax.prefill_page_attention(row[None], keys, values, length, pages)
        return length + 1, out[0]

    scanned = jax.jit(lambda: jax.lax.scan(decode, jnp.int32(41), query)[1])()
    assert_same_bits(scanned, want)

    def body(state):
        i, outputs = state
        row = jax.lax.dynamic_index_in_dim(query_array, i, keepdims=False)
        return i + 1, outputs.at[i].set(decode(41 + i, row)[1])

    query_array = jnp.asarray(query)
    _, looped = jax.jit(
        lambda: jax.lax.while_loop(lambda s: s[0] < 20, body, (0, jnp.zeros_like(query_array)))
    )()
    assert_same_bits(looped, want)


def test_cond_and_remat_take_it():
    operands = operands_of(problem())
    want = pagefill.jax.prefill_page_attention(*operands)
    attend = jax.checkpoint(pagefill.jax.prefill_page_attention)
    got = jax.jit(lambda flag: jax.lax.cond(flag, lambda: attend(*operands), lambda: 0 * want))(
        True
    )
    assert_same_bits(got, want)


def test_it_is_lowered_and_compiled_ahead_of_time():
    operands = operands_of(problem())
    shapes = [jax.ShapeDtypeStruct(operand.shape, operand.dtype) for operand in operands]
    compiled = jax.jit(pagefill.jax.prefill_page_attention).lower(*shapes).compile()
    assert_same_bits(compiled(*operands), pagefill.jax.prefill_page_attention(*operands))


@pytest.mark.parametrize("pages", ["7", "n"])
def test_it_is_exported_and_runs_after_serialising(pages):
    from jax import export

    operands = operands_of(problem())
    shapes = [jax.ShapeDtypeStruct(operand.shape, operand.dtype) for operand in operands]
    shapes[4] = jax.ShapeDtypeStruct(export.symbolic_shape(pages), np.int32)
    check = export.DisabledSafetyCheck.custom_call(TARGET)
    exported = export.export(jax.jit(pagefill.jax.prefill_page_attention), disabled_checks=[check])(
        *shapes
    )
    again = export.deserialize(exported.serialize())
    assert_same_bits(again.call(*operands), pagefill.jax.prefill_page_attention(*operands))


def differentiations():
    operands = [jnp.asarray(operand) for operand in operands_of(problem())]

    def attend(query):
        return pagefill.jax.prefill_page_attention(query, *operands[1:]).sum()

    query = operands[0]
    return {
        "grad": lambda: jax.grad(attend)(query),
        "grad of jit": lambda: jax.jit(jax.grad(attend))(query),
        "jvp": lambda: jax.jvp(attend, (query,), (query,)),
        "vjp": lambda: jax.vjp(attend, query),
        "linearize": lambda: jax.linearize(attend, query),
        "grad of merge": lambda: jax.grad(
            lambda q: pagefill.jax.merge_attention_states(q, q[..., 0], q, q[..., 0])[0].sum()
        )(query),
        "grad of append": lambda: jax.grad(
            lambda k: pagefill.jax.append_kv(
                k, k, *operands[1:3], np.array([0, 3], np.int32), operands[3], operands[4][None]
            )[0].sum()
        )(query[:3, :2]),
    }


@pytest.mark.parametrize("name", differentiations())
def test_a_gradient_is_refused_by_name(name):
    with pytest.raises(NotImplementedError, match="pagefill.*no gradient"):
        differentiations()[name]()


def test_a_gradient_that_does_not_pass_through_is_fine():
    operands = operands_of(problem())

    def loss(weight):
        out = pagefill.jax.prefill_page_attention(*operands)
        stopped = jax.lax.stop_gradient(weight) * operands[0]
        out += pagefill.jax.prefill_page_attention(stopped, *operands[1:])
        return (weight * out).sum()

    assert np.isfinite(jax.jit(jax.grad(loss))(jnp.float32(2)))


def test_sharded_arrays_outside_of_shard_map_give_the_same_bits():
    mesh = Mesh(np.array(jax.devices()), ("heads",))
    operands = operands_of(problem(heads=(16, 8)))
    want = pagefill.jax.prefill_page_attention(*operands)
    specs = (P(None, "heads"), P("heads"), P("heads"), P(), P())
    sharded = [
        jax.device_put(operand, NamedSharding(mesh, spec))
        for operand, spec in zip(operands, specs, strict=True)
    ]
    assert_same_bits(jax.jit(pagefill.jax.prefill_page_attention)(*sharded), want)


def all_calls(operands):
    """Attention, merge, copy_pages and append_kv, of one step."""
    starts, table = np.array([0, len(operands[0])], np.int32), operands[4][None]
    tokens = operands[0][:, : operands[1].shape[0]]
    caches = pagefill.jax.append_kv(tokens, tokens, *operands[1:3], starts, operands[3], table)
    caches = pagefill.jax.copy_pages([(0, 1, 16), (1, 2, 5)], *caches)
    state = pagefill.jax.prefill_page_attention(
        operands[0], *caches, *operands[3:], sliding_window=30, return_lse=True
    )
    return pagefill.jax.merge_attention_states(*state, *state)


EVALUATIONS = {
    "disable_jit": lambda function: function,
    "checkpoint": jax.checkpoint,
    "make_jaxpr": lambda function: (
        lambda operands: jax.core.eval_jaxpr(
            (closed := jax.make_jaxpr(function)(operands)).jaxpr, closed.consts, *operands
        )
    ),
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_outside_of_jit_the_primitives_have_the_bits_of_jit(name):
    operands = list(map(jnp.asarray, operands_of(problem())))
    want = jax.jit(all_calls)(operands)
    with jax.disable_jit(name == "disable_jit"):
        got = EVALUATIONS[name](all_calls)(operands)
    for index in range(2):
        assert_same_bits(got[index], want[index])
