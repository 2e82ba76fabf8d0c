"""The operator through the JAX face: values, options, promises, and the bits of the NumPy face."""

from __future__ import annotations

import jax_support  # noqa: F401, before jax
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import pagefill
import pagefill.jax
from cases import assert_close, bits, golden
from jax_support import assert_same_bits, operands_of, problem

RAGGED_STARTS = np.array([0, 5, 6, 6, 30], np.int32)
RAGGED_LENS = np.array([40, 17, 9, 24], np.int32)


def ragged_problem() -> list[np.ndarray]:
    """A chunk, a decode token, a sequence without rows, a whole prompt; and two rows of padding."""
    case = problem(chunk=32, context=100)
    table = np.random.default_rng(1).permutation(10)[: 4 * 3 - 2]
    table = np.resize(table, (4, 3)).astype(np.int32)
    return [case.query, case.key_cache, case.value_cache, RAGGED_STARTS, RAGGED_LENS, table]


def test_every_golden_case_is_within_rounding_and_has_the_bits_of_numpy(golden_file):
    case = golden(golden_file)
    got = pagefill.jax.prefill_page_attention(*case.arguments, **case.options, return_lse=True)
    assert got[0].dtype == case.query.dtype
    assert_close(case, *got)
    want = pagefill.prefill_page_attention(*case.arguments, **case.options, return_lse=True)
    for index in range(2):
        assert_same_bits(got[index], want[index])


OPTIONS = {
    "softmax_scale": {"softmax_scale": 0.2},
    "negative softmax_scale": {"softmax_scale": -0.2},
    "attn_logits_soft_cap": {"attn_logits_soft_cap": 2.0},
    "sliding_window": {"sliding_window": 20},
    "mask_value": {"mask_value": -3.0},
    "sinks": {"sinks": np.linspace(-1, 3, 8, dtype=np.float32)},
    "kv_start": {"kv_start": np.array([16], np.int32)},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_changes_the_result_and_has_the_bits_of_numpy(name):
    operands, options = operands_of(problem(context=80)), OPTIONS[name]
    got = pagefill.jax.prefill_page_attention(*operands, **options, return_lse=True)
    plain = pagefill.jax.prefill_page_attention(*operands, return_lse=True)
    want = pagefill.prefill_page_attention(*operands, **options, return_lse=True)
    for index in range(2):
        assert bits(got[index]) != bits(plain[index])
        assert_same_bits(got[index], want[index])


@pytest.mark.parametrize("which", ["key_scale", "value_scale"])
@pytest.mark.parametrize("shape", [(1,), (2,), (2, 10, 16)])
@pytest.mark.parametrize("dtype", [np.int8, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_scales_of_a_quantised_cache_change_the_result_and_have_the_bits_of_numpy(
    which, shape, dtype
):
    operands = operands_of(problem(cache_dtype=dtype))
    scale = {which: np.random.default_rng(2).uniform(0.5, 2, shape).astype(np.float32)}
    got = pagefill.jax.prefill_page_attention(*operands, **scale)
    assert bits(got) != bits(pagefill.jax.prefill_page_attention(*operands))
    assert_same_bits(got, pagefill.prefill_page_attention(*operands, **scale))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("cache_dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_query_and_cache_may_have_any_float_dtype(dtype, cache_dtype):
    operands = operands_of(problem(dtype=dtype, cache_dtype=cache_dtype))
    got = pagefill.jax.prefill_page_attention(*operands)
    assert got.dtype == dtype
    assert_same_bits(got, pagefill.prefill_page_attention(*operands))


def test_context_len_may_be_an_array_of_one_a_scalar_or_an_integer():
    operands = operands_of(problem())
    want = pagefill.jax.prefill_page_attention(*operands)
    for length in (100, np.int64(100), jnp.int32(100), jnp.array([100], jnp.int32)):
        operands[3] = length
        assert_same_bits(pagefill.jax.prefill_page_attention(*operands), want)


def test_a_value_head_dim_of_its_own_gives_the_output_its_shape():
    operands = operands_of(problem())
    operands[2] = operands[2][..., :24].copy()
    got = pagefill.jax.prefill_page_attention(*operands)
    assert got.shape == (24, 8, 24)
    assert_same_bits(got, pagefill.prefill_page_attention(*operands))


def test_an_empty_chunk_and_an_empty_context_are_calls_like_others():
    case = problem()
    operands = operands_of(case)
    operands[0] = operands[0][:0]
    assert pagefill.jax.prefill_page_attention(*operands).shape == (0, 8, 64)
    operands = operands_of(case)
    operands[3] = 0
    output, lse = pagefill.jax.prefill_page_attention(*operands, return_lse=True)
    assert not np.asarray(output).any() and np.isneginf(lse).all()


def test_a_ragged_batch_has_the_bits_of_its_sequences_one_by_one():
    operands = ragged_problem()
    query, keys, values, starts, lens, table = operands
    output, lse = pagefill.jax.ragged_page_attention(*operands, return_lse=True)
    for s in range(len(lens)):
        rows = slice(starts[s], starts[s + 1])
        one = pagefill.jax.prefill_page_attention(
            query[rows], keys, values, lens[s], table[s], return_lse=True
        )
        assert_same_bits(output[rows], one[0])
        assert_same_bits(lse[rows], one[1])


def test_padding_behind_the_last_sequence_is_the_empty_state():
    operands = ragged_problem()
    sinks = np.ones(8, np.float32)
    output, lse = pagefill.jax.ragged_page_attention(*operands, sinks=sinks, return_lse=True)
    assert not np.asarray(output[30:]).any() and np.isneginf(lse[30:]).all()
    assert np.isfinite(lse[:30]).all()


def test_memory_that_no_visible_key_needs_never_matters():
    case = problem(context=90)
    want = pagefill.jax.prefill_page_attention(*case.arguments, sliding_window=30)
    first_seen = 90 - 24 - 30 + 1
    used = np.zeros(case.key_cache.shape[1:3], bool)
    for position in range(first_seen, 90):
        used[case.page_indices[position // 16], position % 16] = True
    for name in ("key_cache", "value_cache"):
        getattr(case, name)[:, ~used] = np.nan
    case.page_indices = np.append(case.page_indices, [-1, 2**31 - 1]).astype(np.int32)
    case.page_indices[: first_seen // 16] = -1
    assert_same_bits(pagefill.jax.prefill_page_attention(*case.arguments, sliding_window=30), want)


@pytest.mark.parametrize("page_size", [1, 3, 528])
def test_the_bits_do_not_depend_on_page_size_and_placement(page_size):
    case = problem()
    want = pagefill.jax.prefill_page_attention(*case.arguments)
    num_pages = -(-100 // page_size)
    table = np.random.default_rng(3).permutation(num_pages + 2)[:num_pages].astype(np.int32)
    for name in ("key_cache", "value_cache"):
        old = getattr(case, name)
        tokens = old[:, case.page_indices].reshape(2, -1, 64)[:, :100]
        new = np.full((2, num_pages + 2, page_size, 64), np.nan, np.float32)
        for position in range(100):
            new[:, table[position // page_size], position % page_size] = tokens[:, position]
        setattr(case, name, new)
    case.page_indices = table
    assert_same_bits(pagefill.jax.prefill_page_attention(*case.arguments), want)


def test_the_bits_do_not_depend_on_how_the_prompt_is_cut():
    query, *rest = operands_of(problem(chunk=100))
    whole = np.asarray(pagefill.jax.prefill_page_attention(query, *rest))
    rest[2] = None
    for begin, end in [(0, 1), (1, 34), (34, 99), (99, 100)]:
        rest[2] = end
        part = pagefill.jax.prefill_page_attention(query[begin:end], *rest)
        assert_same_bits(part, whole[begin:end])


def test_merged_shards_of_a_context_are_the_whole():
    case = problem(context=96)
    query, keys, values, _, pages = case.arguments
    whole = pagefill.jax.prefill_page_attention(*case.arguments, return_lse=True)
    # The chunk's rows stand at 72 to 95; a shard ends where its keys end, so it shares their
    # positions.
    right = pagefill.jax.prefill_page_attention(
        query, keys, values, 96, pages[2:], kv_start=32, return_lse=True
    )
    left = pagefill.jax.ragged_page_attention(
        np.concatenate([query, np.zeros_like(query)[:8]]),
        keys,
        values,
        np.arange(25, dtype=np.int32),
        np.full(24, 32, np.int32),
        np.broadcast_to(pages[:2], (24, 2)),
        return_lse=True,
    )
    left = (left[0][:24], left[1][:24])
    output, lse = pagefill.jax.merge_attention_states(*left, *right)
    np.testing.assert_allclose(output, whole[0], atol=1e-6)
    np.testing.assert_allclose(lse, whole[1], rtol=1e-6)
    numpy_states = [np.asarray(array) for array in (*left, *right)]
    merged = pagefill.merge_attention_states(*numpy_states)
    assert_same_bits(output, merged[0])
    assert_same_bits(lse, merged[1])


def test_the_empty_state_is_the_identity_of_merging():
    state = pagefill.jax.prefill_page_attention(*operands_of(problem()), return_lse=True)
    empty = (jnp.zeros_like(state[0]), jnp.full_like(state[1], -jnp.inf))
    for merged in (
        pagefill.jax.merge_attention_states(*state, *empty),
        pagefill.jax.merge_attention_states(*empty, *state),
    ):
        assert_same_bits(merged[0], state[0])
        assert_same_bits(merged[1], state[1])


def test_arrays_of_any_layout_give_the_bits_of_their_elements():
    operands = operands_of(problem())
    want = pagefill.jax.prefill_page_attention(*operands)

    @jax.jit
    def transposed(query, keys, values, length, pages):
        keys, values = (jnp.transpose(cache, (1, 2, 0, 3)) for cache in (keys, values))
        keys, values = (jnp.transpose(cache, (2, 0, 1, 3)) for cache in (keys + 0, values + 0))
        return pagefill.jax.prefill_page_attention(query, keys, values, length, pages)

    assert_same_bits(transposed(*operands), want)
