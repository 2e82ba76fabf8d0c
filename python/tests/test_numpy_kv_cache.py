"""Appending, copying pages, and the allocator."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import pagefill

LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}


def new_tokens(dtype: Any = np.float32) -> list[Any]:
    """Keys and values of 6 tokens for two sequences, which get 4 and 2 of them."""
    random = np.random.default_rng(5)
    return [random.standard_normal((6, 2, 8), np.float32).astype(dtype) for _ in range(2)]


PLACES = ([0, 4, 6], [5, 2], [[3, 0], [1, -1]])
SLOTS = [(3, 1), (3, 2), (3, 3), (0, 0), (1, 0), (1, 1)]  # (page, slot) of each token, 4 a page


def caches(dtype: Any) -> tuple[Any, Any]:
    return np.zeros((2, 4, 4, 8), dtype), np.zeros((2, 4, 4, 8), dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_tokens_get_into_their_slots_rounded_to_the_caches_dtype(dtype: Any) -> None:
    keys, values = new_tokens()
    key_cache, value_cache = caches(dtype)
    pagefill.append_kv(keys, values, key_cache, value_cache, *PLACES)
    for token, (page, slot) in enumerate(SLOTS):
        assert (key_cache[:, page, slot] == keys[token].astype(dtype)).all()
        assert (value_cache[:, page, slot] == values[token].astype(dtype)).all()
    assert np.count_nonzero(key_cache) == keys.size


@pytest.mark.parametrize("name", LARGEST)
def test_chosen_scales_bound_the_error(name: str) -> None:
    dtype = np.int8 if name == "int8" else getattr(ml_dtypes, name)
    keys, values = new_tokens()
    key_cache, value_cache = caches(dtype)
    key_scale, value_scale = np.zeros((2, 2, 4, 4), np.float32)
    pagefill.append_kv(
        keys,
        values,
        key_cache,
        value_cache,
        *PLACES,
        chosen_key_scale=key_scale,
        chosen_value_scale=value_scale,
    )
    for new, cache, scale in ((keys, key_cache, key_scale), (values, value_cache, value_scale)):
        for token, (page, slot) in enumerate(SLOTS):
            largest = np.abs(new[token]).max(axis=-1)
            np.testing.assert_allclose(scale[:, page, slot], largest / LARGEST[name], rtol=1e-6)
            read = cache[:, page, slot].astype(np.float32) * scale[:, page, slot, None]
            assert (np.abs(read - new[token]) <= 2.0**-3 * largest[:, None]).all()
    query = np.ones((1, 2, 8), np.float32)
    output = pagefill.prefill_page_attention(
        query, key_cache, value_cache, 5, [3, 0], key_scale=key_scale, value_scale=value_scale
    )
    assert np.isfinite(output).all()


def test_given_scales_divide() -> None:
    keys, values = new_tokens()
    key_cache, value_cache = caches(np.int8)
    scale = np.full(1, 0.05, np.float32)
    pagefill.append_kv(
        keys, values, key_cache, value_cache, *PLACES, key_scale=scale, value_scale=scale
    )
    page, slot = SLOTS[2]
    wanted = np.clip(np.rint(keys[2].astype(np.float64) / np.float32(0.05)), -127, 127)
    assert (key_cache[:, page, slot] == wanted).all()


def test_a_bad_append_writes_nothing() -> None:
    keys, values = new_tokens()
    key_cache, value_cache = caches(np.float32)
    with pytest.raises(ValueError, match="page_table: expected"):
        pagefill.append_kv(keys, values, key_cache, value_cache, *PLACES[:2], [[3, 0], [9, -1]])
    fixed = key_cache.copy()
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match="key_cache: expected an array that may be written"):
        pagefill.append_kv(keys, values, fixed, value_cache, *PLACES)
    assert not key_cache.any()
    assert not value_cache.any()


def test_pages_are_copied_with_their_scales() -> None:
    random = np.random.default_rng(1)
    key_cache, value_cache = random.integers(-100, 100, (2, 2, 4, 4, 8), np.int8)
    key_scale, value_scale = random.random((2, 2, 4, 4), np.float32)
    before = key_cache.copy()
    pagefill.copy_pages(
        [(2, 0, 3), (0, 1, 1)], key_cache, value_cache, key_scale=key_scale, value_scale=value_scale
    )
    assert (key_cache[:, 0, :3] == before[:, 2, :3]).all()
    assert (key_cache[:, 0, 3] == before[:, 0, 3]).all()
    assert (value_cache[:, 1, 0] == value_cache[:, 2, 0]).all()
    assert (key_scale[:, 1, 0] == key_scale[:, 2, 0]).all()
    pagefill.copy_pages([], key_cache, value_cache)
    with pytest.raises(ValueError, match="copies"):
        pagefill.copy_pages([(0, 4, 1)], key_cache, value_cache)
    with pytest.raises(ValueError, match="copies: expected \\(source"):
        pagefill.copy_pages([(0, 1)], key_cache, value_cache)  # type: ignore[list-item]
    with pytest.raises(TypeError, match="copies: expected an integer"):
        pagefill.copy_pages([(0, 1, 0.5)], key_cache, value_cache)  # type: ignore[list-item]


def test_the_allocator_shares_copies_and_frees_pages() -> None:
    allocator = pagefill.PageAllocator(4, page_size=2)
    parent = allocator.add_sequence()
    assert allocator.page_indices(parent).shape == (0,)
    assert allocator.append(parent, 3) == []
    child = allocator.fork(parent)
    pages = allocator.page_indices(child)
    assert pages.dtype == np.int32
    assert (pages == allocator.page_indices(parent)).all()
    assert allocator.reference_count(pages[1]) == 2

    [needed] = allocator.append(child, 1)
    assert needed == (pages[1], allocator.page_indices(child)[1], 1)
    assert needed.num_slots == 1
    assert pages[1] == needed.source  # an array that was handed out stays as it was
    assert (allocator.context_len(child), allocator.num_free_pages) == (4, 1)
    with pytest.raises(MemoryError, match="pages"):
        allocator.append(child, 3)

    allocator.drop_before(child, 2)
    allocator.truncate(child, 3)
    assert (allocator.kv_start(child), allocator.context_len(child)) == (2, 3)
    allocator.release(child)
    allocator.release(parent)
    assert (allocator.num_free_pages, allocator.num_sequences) == (4, 0)
    assert (allocator.total_num_pages, allocator.page_size) == (4, 2)


def test_the_allocators_errors_name_the_argument() -> None:
    allocator = pagefill.PageAllocator(4, 2)
    with pytest.raises(ValueError, match="sequence: expected"):
        allocator.release(7)
    with pytest.raises(TypeError, match="num_tokens: expected an integer"):
        allocator.append(allocator.add_sequence(), 1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="total_num_pages: expected"):
        pagefill.PageAllocator(-1, 2)
    with pytest.raises(ValueError, match="page_size: expected"):
        pagefill.PageAllocator(1, 0)
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="PageAllocator"):
            duplicate(allocator)


@pytest.mark.parametrize(
    ("copies", "error"), [([5], TypeError), (5, TypeError), ([(1, 2)], ValueError)], ids=repr
)
def test_copies_that_are_no_triples_are_refused(copies: Any, error: type[Exception]) -> None:
    cache = np.ones((1, 4, 4, 8), np.float32)
    with pytest.raises(error, match=r"copies: expected \(source, destination, num_slots\) each"):
        pagefill.copy_pages(copies, cache, cache)
