"""The promises of docs/conventions.md, seen from NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cases import Case, bits, golden, random_case

import pagefill

FLOATS = [np.float32, np.float16, ml_dtypes.bfloat16]


def attend(case: Case, **options: Any) -> tuple[bytes, bytes]:
    output, lse = pagefill.prefill_page_attention(
        *case.arguments, **case.options, **options, return_lse=True
    )
    return bits(output), bits(lse)


def poison(case: Case) -> Case:
    """The same with garbage in everything that no visible key needs."""
    page_size = case.key_cache.shape[2]
    context_len = int(case.context_len[0])
    needed = -(-context_len // page_size)
    used = np.zeros(case.key_cache.shape[1:3], bool)
    for j in range(context_len):
        used[case.page_indices[j // page_size], j % page_size] = True
    garbage = 77 if case.key_cache.dtype == np.int8 else np.nan
    poisoned = Case(*(array.copy() for array in case.arguments), options=dict(case.options))
    poisoned.key_cache[:, ~used] = garbage
    poisoned.value_cache[:, ~used] = garbage
    for name in ("key_scale", "value_scale"):
        if case.options.get(name) is not None and case.options[name].ndim == 3:
            poisoned.options[name] = case.options[name].copy()
            poisoned.options[name][:, ~used] = np.nan
    tail = np.full(3, -1, np.int32)
    poisoned.page_indices = np.concatenate([case.page_indices[:needed], tail])
    return poisoned


def test_unused_memory_never_matters(golden_file: Path) -> None:
    case = golden(golden_file)
    assert attend(poison(case)) == attend(case)


@pytest.mark.parametrize("dtype", FLOATS)
def test_decode_gives_the_bits_of_prefill(dtype: Any) -> None:
    case = random_case(chunk_size=40, context_len=40, dtype=dtype)
    output, lse = pagefill.prefill_page_attention(*case.arguments, return_lse=True)
    for position in range(40):
        row = case.query[position : position + 1]
        one, one_lse = pagefill.prefill_page_attention(
            row, case.key_cache, case.value_cache, position + 1, case.page_indices, return_lse=True
        )
        assert bits(one) == bits(output[position])
        assert bits(one_lse) == bits(lse[position])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("page_size", [1, 3, 16, 528])
def test_page_size_and_threads_change_no_bit(dtype: Any, page_size: int) -> None:
    case = random_case(chunk_size=7, context_len=70, page_size=8, dtype=dtype)
    keys = case.key_cache[:, case.page_indices].reshape(2, -1, 16)
    values = case.value_cache[:, case.page_indices].reshape(2, -1, 16)
    num_pages = -(-70 // page_size)
    other = random_case(chunk_size=7, context_len=70, page_size=page_size, dtype=dtype, seed=1)
    other.query = case.query
    for cache, flat in ((other.key_cache, keys), (other.value_cache, values)):
        padded = np.zeros((2, num_pages * page_size, 16), dtype)
        padded[:, :70] = flat[:, :70]
        cache[:, other.page_indices] = padded.reshape(2, num_pages, page_size, 16)
    for num_threads in (1, 2, 5):
        assert attend(other, num_threads=num_threads) == attend(case)


def test_a_cut_into_chunks_changes_no_bit() -> None:
    case = random_case(chunk_size=30, context_len=64)
    whole = pagefill.prefill_page_attention(*case.arguments)
    parts = []
    for begin, end in ((0, 1), (1, 12), (12, 30)):
        parts.append(
            pagefill.prefill_page_attention(
                case.query[begin:end], case.key_cache, case.value_cache, 34 + end, case.page_indices
            )
        )
    assert bits(np.concatenate(parts)) == bits(whole)


OPTIONS: dict[str, Any] = {
    "softmax_scale": 0.5,
    "mask_value": -1.0,
    "attn_logits_soft_cap": 0.5,
    "sliding_window": 3,
    "sinks": np.full(4, 2, np.float32),
    "kv_start": 8,
    "key_scale": np.full(1, 0.5, np.float32),
    "value_scale": np.full(2, 0.5, np.float32),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_changes_the_result(name: str) -> None:
    case = random_case()
    if "scale" in name and name != "softmax_scale":
        case.key_cache = (case.key_cache * 20).astype(np.int8)
        case.value_cache = (case.value_cache * 20).astype(np.int8)
    assert attend(case, **{name: OPTIONS[name]}) != attend(case)


def test_the_default_of_mask_value_is_the_librarys() -> None:
    case = random_case()
    below = np.nextafter(np.float32(pagefill.DEFAULT_MASK_VALUE), np.float32(0))
    assert attend(case, mask_value=float(below)) == attend(case, mask_value=-np.inf) == attend(case)


def test_rows_that_see_nothing_are_zero_with_lse_minus_infinity() -> None:
    case = random_case(chunk_size=3)
    output, lse = pagefill.prefill_page_attention(
        case.query, case.key_cache, case.value_cache, 1, case.page_indices, return_lse=True
    )
    assert (output[:2] == 0).all()
    assert (lse[:2] == -np.inf).all()
    assert np.isfinite(lse[2]).all()
    empty = pagefill.prefill_page_attention(case.query[:0], case.key_cache, case.value_cache, 0, [])
    assert empty.shape == (0, 4, 16)
