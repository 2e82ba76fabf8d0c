"""The promises of docs/conventions.md, seen from PyTorch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_cases import bits, int32, random_batch, random_tensors

from pagefill._c import structs
from pagefill.torch import prefill_page_attention, ragged_page_attention
from pagefill.torch._where import CPU, context

FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def attend(*arguments: Any, **options: Any) -> list[bytes]:
    return [bits(t) for t in prefill_page_attention(*arguments, **options, return_lse=True)]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_unused_memory_never_matters(dtype: torch.dtype) -> None:
    query, keys, values, context_len, pages = random_tensors()
    query, keys, values = query.to(dtype), keys.to(dtype), values.to(dtype)
    wanted = attend(query, keys, values, context_len, pages)
    page_size = keys.shape[2]
    used = torch.zeros(keys.shape[1:3], dtype=torch.bool)
    for position in range(int(context_len)):
        used[pages[position // page_size], position % page_size] = True
    keys, values = keys.clone(), values.clone()
    keys[:, ~used], values[:, ~used] = math.nan, math.inf
    tail = torch.full((3,), -1, dtype=torch.int32)
    assert attend(query, keys, values, context_len, torch.cat([pages, tail])) == wanted


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_decode_and_chunks_give_the_bits_of_one_prefill(dtype: torch.dtype) -> None:
    query, keys, values, _, pages = random_tensors(chunk_size=40, context_len=40)
    query, keys, values = query.to(dtype), keys.to(dtype), values.to(dtype)
    whole = prefill_page_attention(query, keys, values, 40, pages)
    for begin, end in ((0, 1), (1, 12), (12, 39), (39, 40)):
        part = prefill_page_attention(query[begin:end], keys, values, end, pages)
        assert bits(part) == bits(whole[begin:end])


def test_a_batch_has_the_bits_of_its_sequences_alone() -> None:
    batch = random_batch()
    query, keys, values, starts, lens, table = batch
    output, lse = ragged_page_attention(*batch, return_lse=True)
    for s in range(3):
        rows = slice(int(starts[s]), int(starts[s + 1]))
        alone = attend(query[rows], keys, values, lens[s : s + 1], table[s])
        assert [bits(output[rows]), bits(lse[rows])] == alone
    assert (output[6:] == 0).all()
    assert (lse[6:] == -math.inf).all()


def test_the_number_of_threads_is_torchs_and_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = random_tensors(chunk_size=64, context_len=2100)
    before, results = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            assert context(CPU) == structs.context(num_threads)
            results.append(attend(*arguments))
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1] == attend(*arguments, num_threads=3)
    monkeypatch.setenv("PAGEFILL_NUM_THREADS", "1")
    assert context(CPU) is None  # the library's own rule
    monkeypatch.setenv("PAGEFILL_NUM_THREADS", "many")
    with pytest.raises(ValueError, match="PAGEFILL_NUM_THREADS: expected"):
        attend(*arguments)


OPTIONS: dict[str, Any] = {
    "softmax_scale": 0.5,
    "mask_value": -1.0,
    "attn_logits_soft_cap": 0.5,
    "sliding_window": 3,
    "sinks": torch.full((4,), 2.0),
    "kv_start": 8,
    "key_scale": torch.full((1,), 0.5),
    "value_scale": torch.full((2,), 0.5),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_changes_the_result(name: str) -> None:
    query, keys, values, context_len, pages = random_tensors()
    if name in ("key_scale", "value_scale"):
        keys, values = (keys * 20).to(torch.int8), (values * 20).to(torch.int8)
    arguments = (query, keys, values, context_len, pages)
    assert attend(*arguments, **{name: OPTIONS[name]}) != attend(*arguments)


def test_a_backend_is_the_one_that_is_asked_for() -> None:
    arguments = random_tensors(chunk_size=64, context_len=300)
    assert attend(*arguments, backend="reference") != attend(*arguments)  # it rounds less
    with pytest.raises(ValueError, match="backend"):
        attend(*arguments, backend="abacus")


def test_rows_that_see_nothing_are_zero_with_lse_minus_infinity() -> None:
    query, keys, values, _, pages = random_tensors(chunk_size=3)
    output, lse = prefill_page_attention(query, keys, values, 1, pages, return_lse=True)
    assert (output[:2] == 0).all()
    assert (lse[:2] == -math.inf).all()
    assert lse[2].isfinite().all()
    empty = prefill_page_attention(query[:0], keys, values, 0, pages[:0])
    assert empty.shape == (0, 4, 16)


INTEGERS = ("int64", "int16", "int8", "uint8", "uint16", "uint32", "uint64")


@pytest.mark.parametrize("name", INTEGERS)
def test_other_integers_mean_the_same(name: str) -> None:
    dtype = getattr(torch, name)
    batch = random_batch()
    wanted = ragged_page_attention(*batch)
    metadata = [t.to(dtype) for t in batch[3:]]
    assert bits(ragged_page_attention(*batch[:3], *metadata)) == bits(wanted)


def test_lengths_without_dimensions_are_lengths() -> None:
    query, keys, values, _, pages = random_tensors()
    wanted = prefill_page_attention(query, keys, values, 37, pages, kv_start=0)
    for dtype in (torch.int32, torch.int64):
        length, start = torch.tensor(37, dtype=dtype), torch.tensor(0, dtype=dtype)
        result = prefill_page_attention(query, keys, values, length, pages, kv_start=start)
        assert bits(result) == bits(wanted)


def test_integers_beyond_int32_do_not_become_other_integers() -> None:
    query, keys, values, _, pages = random_tensors()
    long_pages = pages.long()
    long_pages[0] += 2**32
    with pytest.raises(ValueError, match="page_indices: expected pages from"):
        prefill_page_attention(query, keys, values, int32(37), long_pages)
    for number in (2**31, 2**32 + 1, 2**62, -(2**40)):
        for match in ("context_len: expected lengths >= 0", "kv_start: expected positions >= 0"):
            lengths = {"context_len": int32(37), "kv_start": int32(0)}
            lengths[match.partition(":")[0]] = torch.tensor([number])
            with pytest.raises(ValueError, match=match):
                prefill_page_attention(query, keys, values, page_indices=pages, **lengths)
    with pytest.raises(ValueError, match="context_len: expected lengths >= 0"):
        prefill_page_attention(query, keys, values, int32(-3).view(torch.uint32), pages)


def test_a_length_beyond_int32_is_refused_where_the_table_covers_the_largest_one() -> None:
    query, cache = torch.ones(1, 1, 8), torch.ones(1, 1, 2**14, 8)
    pages = torch.zeros(2**17, dtype=torch.int32)
    with pytest.raises(ValueError, match="context_len: expected lengths >= 0"):
        prefill_page_attention(
            query, cache, cache, torch.tensor([2**31 + 5]), pages, sliding_window=4
        )
