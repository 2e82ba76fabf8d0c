"""append_kv through the JAX face: bits, in place where donated, and inside of jitted loops."""

from __future__ import annotations

import jax_support as support  # before jax
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import pagefill
import pagefill.jax
from cases import bits
from jax_support import assert_same_bits, problem

STARTS = np.array([0, 3, 4, 9], np.int32)
LENS = np.array([5, 17, 40], np.int32)
TABLE = np.array([[8, 0, 0], [3, 5, 0], [1, 7, 2]], np.int32)
CACHES = ("key_cache", "value_cache")


def operands(dtype=np.float32, cache_dtype=np.float32) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    tokens = random.standard_normal((2, 9, 2, 32), np.float32).astype(dtype)
    caches = random.standard_normal((2, 2, 9, 16, 32), np.float32).astype(cache_dtype)
    return dict(
        keys=tokens[0],
        values=tokens[1],
        key_cache=caches[0],
        value_cache=caches[1],
        query_starts=STARTS,
        context_lens=LENS,
        page_table=TABLE,
    )


def by_numpy(arguments, **options):
    """The same through the NumPy face, which writes in place."""
    arguments = {name: array.copy() for name, array in arguments.items()}
    pagefill.append_kv(**arguments, **options)
    return [arguments[name] for name in CACHES]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("cache_dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_new_tokens_get_into_their_slots_with_the_bits_of_numpy(dtype, cache_dtype):
    arguments = operands(dtype, cache_dtype)
    got = pagefill.jax.append_kv(**arguments)
    for array, want, before in zip(
        got, by_numpy(arguments), (arguments[name] for name in CACHES), strict=True
    ):
        assert_same_bits(array, want)
        assert bits(array) != bits(before)


def test_kv_start_moves_the_tokens():
    arguments = operands()
    kv_start = np.array([0, 12, 16], np.int32)
    got = pagefill.jax.append_kv(**arguments, kv_start=kv_start)
    for array, want, plain in zip(
        got,
        by_numpy(arguments, kv_start=kv_start),
        pagefill.jax.append_kv(**arguments),
        strict=True,
    ):
        assert_same_bits(array, want)
        assert bits(array) != bits(plain)


@pytest.mark.parametrize("cache_dtype", [np.int8, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_a_quantised_cache_takes_given_scales(cache_dtype):
    arguments = operands(cache_dtype=cache_dtype)
    scales = {
        "key_scale": np.array([0.01, 0.02], np.float32),
        "value_scale": np.array([0.03], np.float32),
    }
    got = pagefill.jax.append_kv(**arguments, **scales)
    for array, want, plain in zip(
        got, by_numpy(arguments, **scales), pagefill.jax.append_kv(**arguments), strict=True
    ):
        assert_same_bits(array, want)
        assert bits(array) != bits(plain)


@pytest.mark.parametrize("which", [("key",), ("value",), ("key", "value")])
def test_chosen_scales_come_back_behind_the_caches(which):
    arguments = operands(cache_dtype=np.int8)
    chosen = {f"chosen_{kind}_scale": np.full((2, 9, 16), 7, np.float32) for kind in which}
    got = pagefill.jax.append_kv(**arguments, **chosen)
    assert len(got) == 2 + len(which)
    written = {name: scale.copy() for name, scale in chosen.items()}
    want = by_numpy(arguments, **written)
    for array, expected in zip(got, [*want, *written.values()], strict=True):
        assert_same_bits(array, expected)
    assert (np.asarray(got[2]) != 7).sum() == 2 * 9  # a scale a new slot and head


def test_donated_caches_stay_where_they_are():
    arguments = {name: jnp.array(array) for name, array in operands(cache_dtype=np.int8).items()}
    scales = {"chosen_key_scale": jnp.ones((2, 9, 16)), "chosen_value_scale": jnp.ones((2, 9, 16))}
    donated = (*CACHES, *scales)
    places = [{**arguments, **scales}[name].unsafe_buffer_pointer() for name in donated]
    append = jax.jit(pagefill.jax.append_kv, donate_argnames=donated)
    for _ in range(2):
        results = append(**arguments, **scales)
        assert [array.unsafe_buffer_pointer() for array in results] == places
        arguments |= dict(zip(CACHES, results[:2]))
        scales = dict(zip(scales, results[2:]))


def test_without_donation_the_caches_of_the_caller_do_not_change():
    arguments = {name: jnp.array(array) for name, array in operands().items()}
    before = [np.array(arguments[name]) for name in CACHES]
    jax.block_until_ready(pagefill.jax.append_kv(**arguments))
    for name, want in zip(CACHES, before, strict=True):
        assert_same_bits(arguments[name], want)


def test_a_decode_loop_of_append_and_attention_copies_no_cache():
    query, keys, values, _, pages = map(jnp.asarray, problem(chunk=20, context=60).arguments)
    keys, values = (jnp.pad(cache, ((0, 0), (0, 400), (0, 0), (0, 0))) for cache in (keys, values))
    tokens = jnp.asarray(np.random.default_rng(1).standard_normal((2, 20, 2, 64), np.float32))
    starts = jnp.array([0, 1], jnp.int32)

    def step(carry, token):
        key_cache, value_cache, length = carry
        row, new_key, new_value = token
        key_cache, value_cache = pagefill.jax.append_kv(
            new_key[None],
            new_value[None],
            key_cache,
            value_cache,
            starts,
            length[None],
            pages[None],
        )
        out = pagefill.jax.prefill_page_attention(row[None], key_cache, value_cache, length, pages)
        return (key_cache, value_cache, length + 1), out[0]

    def decode(key_cache, value_cache):
        carry = (key_cache, value_cache, jnp.int32(41))
        (key_cache, value_cache, _), outputs = jax.lax.scan(step, carry, (query, *tokens))
        return key_cache, value_cache, outputs

    compiled = jax.jit(decode, donate_argnums=(0, 1)).lower(keys, values).compile()
    memory = compiled.memory_analysis()
    if memory is not None:
        assert memory.temp_size_in_bytes < keys.nbytes / 2
    whole = np.arange(20)  # all at once: append, then one prefill
    new_keys, new_values = by_numpy(
        dict(
            keys=np.asarray(tokens[0]),
            values=np.asarray(tokens[1]),
            key_cache=np.asarray(keys),
            value_cache=np.asarray(values),
            query_starts=np.array([0, len(whole)], np.int32),
            context_lens=np.array([60], np.int32),
            page_table=np.asarray(pages)[None],
        )
    )
    want = pagefill.prefill_page_attention(
        np.asarray(query), new_keys, new_values, 60, np.asarray(pages)
    )
    key_cache, value_cache, outputs = compiled(keys, values)
    assert_same_bits(outputs, want)
    assert_same_bits(key_cache, new_keys)
    assert_same_bits(value_cache, new_values)


def test_vmap_appends_to_each_cache():
    arguments = operands()
    keys = np.stack([arguments["keys"], arguments["keys"] + 1])

    def append(keys):
        return pagefill.jax.append_kv(**{**arguments, "keys": keys})

    got = jax.vmap(append)(keys)
    for i in range(2):
        for array, want in zip(got, append(keys[i]), strict=True):
            assert_same_bits(array[i], want)


def test_a_token_in_a_page_that_is_not_there_is_an_error():
    arguments = operands()
    arguments["page_table"] = TABLE + 5
    with pytest.raises(support.RUN_TIME_ERRORS, match="page_table: expected pages from 0 to 8"):
        jax.block_until_ready(pagefill.jax.append_kv(**arguments))
