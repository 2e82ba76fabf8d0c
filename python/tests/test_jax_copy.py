"""copy_pages through the JAX face: bits, in place where donated, and errors."""

from __future__ import annotations

import jax_support as support  # before jax
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import pagefill
import pagefill.jax
from jax_support import assert_same_bits

COPIES = [(3, 5, 8), (5, 0, 3), (1, 5, 2)]  # the second copies what the first wrote


def arrays(dtype):
    """Caches; with a quantised dtype their scales too."""
    random = np.random.default_rng(0)
    caches = random.standard_normal((2, 2, 9, 8, 32), np.float32).astype(dtype)
    given = dict(key_cache=caches[0], value_cache=caches[1])
    if np.dtype(dtype).itemsize == 1:
        scales = random.random((2, 2, 9, 8), np.float32)
        given |= dict(key_scale=scales[0], value_scale=scales[1])
    return given


def by_numpy(given, copies=COPIES):
    """The same through the NumPy face, which writes in place."""
    written = {name: array.copy() for name, array in given.items()}
    pagefill.copy_pages(copies, **written)
    return list(written.values())


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.int8, ml_dtypes.float8_e5m2])
def test_pages_are_copied_in_their_order_with_the_bits_of_numpy(dtype):
    given = arrays(dtype)
    want = by_numpy(given)
    copies = [pagefill.PageCopy(*copy) for copy in COPIES]
    for listed in (copies, np.array(COPIES), jnp.array(COPIES, jnp.int32)):
        got = pagefill.jax.copy_pages(listed, **given)
        for array, expected in zip(got, want, strict=True):
            assert_same_bits(array, expected)
    for array, before in zip(pagefill.jax.copy_pages([], **given), given.values(), strict=True):
        assert_same_bits(array, before)


def test_donated_caches_and_scales_stay_where_they_are():
    given = {name: jnp.array(array) for name, array in arrays(np.int8).items()}
    places = [array.unsafe_buffer_pointer() for array in given.values()]
    copy = jax.jit(pagefill.jax.copy_pages, donate_argnames=tuple(given))
    for copies in (COPIES, [(1, 2, 8)] * 3):
        results = copy(jnp.array(copies, jnp.int32), **given)
        assert [array.unsafe_buffer_pointer() for array in results] == places
        given = dict(zip(given, results, strict=True))


def test_other_copies_compile_nothing():
    given, traces = arrays(np.float32), []

    @jax.jit
    def copy(copies):
        traces.append(copies)
        return pagefill.jax.copy_pages(copies, **given)

    for copies in (COPIES, COPIES[::-1], [(8, 7, 1), (0, 1, 0), (0, 1, 0)]):
        for array, want in zip(copy(np.array(copies, np.int32)), by_numpy(given, copies)):
            assert_same_bits(array, want)
    assert len(traces) == 1


def test_vmap_copies_in_each_cache():
    given = arrays(np.float32)
    keys = np.stack([given["key_cache"], given["key_cache"] + 1])
    values = given["value_cache"]
    got = jax.vmap(lambda keys: pagefill.jax.copy_pages(COPIES, keys, values))(keys)
    for i in range(2):
        want = pagefill.jax.copy_pages(COPIES, keys[i], values)
        assert_same_bits(got[0][i], want[0])
        assert_same_bits(got[1][i], want[1])


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"copies": np.zeros((2, 2), np.int32)}, ValueError, r"copies: .* \[num_copies, 3\], got"),
        ({"copies": np.zeros((2, 3), np.float32)}, TypeError, "copies: expected dtype int32"),
        ({"copies": 7}, TypeError, r"copies: expected \(source, destination, num_slots\) each"),
        ({"copies": [(0, 1)]}, ValueError, r"copies: expected \(source, destination, num_slots\)"),
        ({"copies": [(0, 1, 0.5)]}, TypeError, "copies: expected an integer, got 0.5"),
        ({"key_cache": np.zeros((2, 9, 8), np.float32)}, ValueError, "key_cache: expected shape"),
        (
            {"value_cache": np.zeros((2, 9, 8, 32), np.float16)},
            TypeError,
            "value_cache: expected dtype float32, got float16",
        ),
        ({"key_scale": np.zeros((2, 9, 8), np.float32)}, ValueError, "key_scale: expected none"),
        ({"status": np.zeros(4, np.int32)}, ValueError, "status: expected None in a computation"),
    ],
    ids=str,
)
def test_a_bad_argument_is_an_error_when_traced_or_lowered(changes, kind, message):
    with pytest.raises(kind, match=message):
        pagefill.jax.copy_pages(**{"copies": COPIES, **arrays(np.float32), **changes})


@pytest.mark.parametrize(
    ("copy", "message"),
    [
        ((9, 1, 1), "copies: expected a source from 0 to 8, got 9 in copy 1"),
        ((0, -1, 1), "copies: expected a destination from 0 to 8, got -1 in copy 1"),
        ((0, 1, 9), "copies: expected num_slots from 0 to 8, got 9 in copy 1"),
        ((2, 2, 1), "copies: expected a destination other than the source"),
    ],
)
def test_a_copy_that_cannot_be_is_an_error_when_it_runs(copy, message):
    with pytest.raises(support.RUN_TIME_ERRORS, match=message):
        jax.block_until_ready(pagefill.jax.copy_pages([(0, 1, 1), copy], **arrays(np.float32)))
