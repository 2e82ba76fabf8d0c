"""Batches of sequences, and merging."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cases import Array, bits, random_case

import pagefill


def batch() -> tuple[list[Any], list[tuple[Array, Array]]]:
    """Three sequences in one cache, chunk sizes 5, 0 and 1, two rows of padding; and each alone."""
    random = np.random.default_rng(3)
    keys, values = random.standard_normal((2, 2, 12, 8, 16), np.float32)
    query = random.standard_normal((8, 4, 16), np.float32)
    table = random.permutation(12).reshape(3, 4).astype(np.int32)
    starts, lens = np.array([0, 5, 5, 6], np.int32), np.array([30, 17, 9], np.int32)
    alone = [
        pagefill.prefill_page_attention(
            query[starts[s] : starts[s + 1]], keys, values, lens[s], table[s], return_lse=True
        )
        for s in range(3)
    ]
    return [query, keys, values, starts, lens, table], alone


def test_a_batch_has_the_bits_of_its_sequences_alone() -> None:
    arguments, alone = batch()
    output, lse = pagefill.ragged_page_attention(*arguments, return_lse=True)
    assert bits(output[:6]) == bits(np.concatenate([a[0] for a in alone]))
    assert bits(lse[:6]) == bits(np.concatenate([a[1] for a in alone]))
    assert (output[6:] == 0).all()
    assert (lse[6:] == -np.inf).all()


def test_lists_of_lengths_and_pages_are_taken() -> None:
    arguments, _ = batch()
    wanted = pagefill.ragged_page_attention(*arguments)
    lists = [array.tolist() for array in arguments[3:]]
    assert bits(pagefill.ragged_page_attention(*arguments[:3], *lists)) == bits(wanted)


def test_padding_rows_of_a_given_output_stay_as_they_are() -> None:
    arguments, alone = batch()
    out, out_lse = np.full((8, 4, 16), 7, np.float32), np.full((8, 4), 7, np.float32)
    assert pagefill.ragged_page_attention(*arguments, out=out, out_lse=out_lse) is out
    assert bits(out_lse[:5]) == bits(alone[0][1])
    assert (out[6:] == 7).all()
    assert (out_lse[6:] == 7).all()


def test_errors_name_the_batchs_arguments() -> None:
    arguments, _ = batch()
    for index, bad, match in (
        (3, [0, 5, 4, 6], "query_starts: expected"),
        (4, [30, -1, 9], "context_lens: expected"),
        (5, np.full((3, 4), 12), "page_table: expected pages from 0 to 11"),
    ):
        changed = [bad if i == index else argument for i, argument in enumerate(arguments)]
        with pytest.raises(ValueError, match=match):
            pagefill.ragged_page_attention(*changed)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_states_of_disjoint_keys_merge_to_the_whole(dtype: Any) -> None:
    case = random_case(chunk_size=1, context_len=37, page_size=8, dtype=dtype)
    whole, whole_lse = pagefill.prefill_page_attention(*case.arguments, return_lse=True)
    caches = (case.query, case.key_cache, case.value_cache)
    pages = case.page_indices
    older = pagefill.prefill_page_attention(*caches, 16, pages, return_lse=True)
    newer = pagefill.prefill_page_attention(*caches, 37, pages[2:], kv_start=16, return_lse=True)
    output, lse = pagefill.merge_attention_states(*older, *newer)
    tolerance = 4 * 2.0 ** (-8 if dtype != np.float32 else -22)
    np.testing.assert_allclose(output.astype("f4"), whole.astype("f4"), tolerance, tolerance)
    np.testing.assert_allclose(lse, whole_lse, rtol=1e-5)

    out, out_lse = pagefill.merge_attention_states(*older, *newer, out=older[0], out_lse=older[1])
    assert out is older[0]
    assert out_lse is older[1]
    assert bits(out) == bits(output)

    nothing = (np.zeros_like(whole), np.full_like(whole_lse, -np.inf))
    same, same_lse = pagefill.merge_attention_states(*nothing, whole, whole_lse, num_threads=2)
    assert bits(same) == bits(whole)
    assert bits(same_lse) == bits(whole_lse)


def test_errors_of_a_merge_name_its_arguments() -> None:
    output, lse = np.zeros((2, 4, 8), np.float32), np.zeros((2, 4), np.float32)
    with pytest.raises(ValueError, match="lse_b: expected shape"):
        pagefill.merge_attention_states(output, lse, output, lse[:1])
    with pytest.raises(ValueError, match="out: expected shape"):
        pagefill.merge_attention_states(output, lse, output, lse, out=output[:1].copy())
