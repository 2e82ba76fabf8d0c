"""Tensors are read and written in place, whatever their strides."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch_cases import bits, random_batch, random_tensors, random_tokens

import pagefill
from pagefill.torch import (
    append_kv,
    copy_pages,
    merge_attention_states,
    prefill_page_attention,
    ragged_page_attention,
)


def token_major(cache: Tensor) -> Tensor:
    """The same elements as [pages, page_size, num_kv_heads, head_dim] in memory."""
    return cache.permute(1, 2, 0, 3).contiguous().permute(2, 0, 1, 3)


def interleaved(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of each page side by side: two views, one with a storage offset."""
    both = torch.stack([keys, values], dim=2)
    return both[:, :, 0], both[:, :, 1]


def test_strides_and_storage_offsets_change_no_bit() -> None:
    query, keys, values, context_len, pages = random_tensors()
    wanted = bits(prefill_page_attention(query, keys, values, context_len, pages))
    fused = torch.zeros(5, 3, 4, 16)
    fused[:, 1] = query
    for q, k, v in (
        (query, token_major(keys), token_major(values)),
        (query, *interleaved(keys, values)),
        (fused[:, 1], keys, values),
        (query.transpose(0, 1).contiguous().transpose(0, 1), keys, token_major(values)),
    ):
        assert any(not t.is_contiguous() for t in (q, k, v))
        assert bits(prefill_page_attention(q, k, v, context_len, pages)) == wanted
    offset = torch.cat([torch.full((3,), 99, dtype=torch.int32), pages])[3:]
    assert bits(prefill_page_attention(query, keys, values, context_len, offset)) == wanted


def test_expanded_heads_are_read_in_place() -> None:
    query, keys, values, context_len, pages = random_tensors(num_kv_heads=1)
    wanted = bits(prefill_page_attention(query, keys, values, context_len, pages))
    keys, values = keys.expand(2, -1, -1, -1), values.expand(2, -1, -1, -1)
    assert bits(prefill_page_attention(query, keys, values, context_len, pages)) == wanted


def test_an_innermost_stride_is_refused_rather_than_copied() -> None:
    query, keys, values, context_len, pages = random_tensors()
    transposed = keys.transpose(2, 3).contiguous().transpose(2, 3)
    with pytest.raises(ValueError, match="key_cache: expected an innermost stride of 1, got 8"):
        prefill_page_attention(query, transposed, values, context_len, pages)


def test_appended_tokens_land_in_a_cache_of_any_layout() -> None:
    batch = random_batch()
    keys, values = random_tokens(batch)
    plain = [batch[1].clone(), batch[2].clone()]
    append_kv(keys, values, *plain, *batch[3:])
    assert bits(plain[0]) != bits(batch[1])
    for caches in (
        (token_major(batch[1]), token_major(batch[2])),
        interleaved(batch[1], batch[2]),
    ):
        append_kv(keys, values, *caches, *batch[3:])
        assert [bits(cache) for cache in caches] == [bits(cache) for cache in plain]


def test_given_outputs_are_written_and_returned() -> None:
    batch = random_batch()
    wanted, wanted_lse = ragged_page_attention(*batch, return_lse=True)
    rows = torch.full((4, 8, 16), 7.0).transpose(0, 1)
    lse = torch.full((8, 4), 7.0)
    assert ragged_page_attention(*batch, out=rows, out_lse=lse) is rows
    assert bits(rows[:6]) == bits(wanted[:6])
    assert bits(lse[:6]) == bits(wanted_lse[:6])
    assert (rows[6:] == 7).all()  # padding stays as it was
    assert (lse[6:] == 7).all()
    output, same = ragged_page_attention(*batch, out_lse=lse, return_lse=True)
    assert same is lse
    assert bits(output) == bits(wanted)
    single = random_tensors()
    out = torch.empty(5, 4, 16)
    pair = prefill_page_attention(*single, out=out, return_lse=True)
    assert pair[0] is out
    assert bits(pair[1]) == bits(prefill_page_attention(*single, return_lse=True)[1])


def test_a_merge_may_write_into_either_state() -> None:
    batch = random_batch()
    a = ragged_page_attention(*batch, return_lse=True)
    b = ragged_page_attention(*batch, softmax_scale=0.1, return_lse=True)
    wanted = merge_attention_states(*a, *b)
    for target in (a, b):
        output, lse = (t.clone() for t in target)
        states = [(output, lse) if state is target else state for state in (a, b)]
        merged = merge_attention_states(*states[0], *states[1], out=output, out_lse=lse)
        assert merged[0] is output
        assert [bits(t) for t in merged] == [bits(t) for t in wanted]


def test_autograd_notices_what_is_written() -> None:
    batch = random_batch()
    caches = [batch[1].clone(), batch[2].clone()]
    factor = torch.ones(1, requires_grad=True)
    loss = (factor * caches[0]).sum()  # saves the cache for its backward pass
    append_kv(*random_tokens(batch), *caches, *batch[3:])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    loss = (factor * caches[1]).sum()
    copy_pages([(0, 1, 1)], *caches)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_tensors_of_inference_mode_are_written_too() -> None:
    batch = random_batch()
    with torch.inference_mode():
        caches = [batch[1].clone(), batch[2].clone()]
        append_kv(*random_tokens(batch), *caches, *batch[3:])
        inside = bits(ragged_page_attention(batch[0], *caches, *batch[3:]))
    with torch.no_grad():
        append_kv(*random_tokens(batch), *caches, *batch[3:])
        out = torch.empty(8, 4, 16)
        ragged_page_attention(batch[0], *caches, *batch[3:], out=out[:])
    assert bits(out[:6]) == inside[: 6 * 4 * 16 * 4]


def test_a_lazily_negated_view_is_read_as_what_it_means() -> None:
    query, keys, values, context_len, pages = random_tensors()
    negated = torch._neg_view(query)
    assert negated.is_neg()
    wanted = prefill_page_attention(-query, keys, values, context_len, pages)
    assert bits(prefill_page_attention(negated, keys, values, context_len, pages)) == bits(wanted)


COPIES = [(3, 5, 8), (5, 0, 3), (1, 5, 2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_pages_are_copied_with_the_bits_of_the_numpy_face(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(3)
    caches = [cache.to(dtype) for cache in random_batch()[1:3]]
    scales: dict[str, Tensor] = {}
    if dtype is torch.int8:
        scales = {f"{k}_scale": torch.rand(2, 12, 8, generator=random) for k in ("key", "value")}
    wanted = [t.clone() for t in (*caches, *scales.values())]
    named = dict(zip(scales, wanted[2:], strict=True))
    pagefill.copy_pages(COPIES, *wanted[:2], **named)
    numbers = torch.tensor(COPIES)  # int64
    by_columns = numbers.int().t().contiguous().t()
    for copies in (COPIES, [pagefill.PageCopy(*copy) for copy in COPIES], numbers, by_columns):
        got = [t.clone() for t in (*caches, *scales.values())]
        copy_pages(copies, *got[:2], **dict(zip(scales, got[2:], strict=True)))
        assert [bits(t) for t in got] == [bits(t) for t in wanted]
        assert bits(got[0]) != bits(caches[0])
    copy_pages([], *wanted[:2])
    assert bits(wanted[0]) == bits(got[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_pages_of_tensors_are_copied_by_the_numpy_face(dtype: torch.dtype) -> None:
    keys, values = (cache.to(dtype) for cache in random_batch()[1:3])
    wanted = [bits(cache[:, 3]) for cache in (keys, values)]
    pagefill.copy_pages([(3, 5, 8)], keys, values)
    assert [bits(cache[:, 5]) for cache in (keys, values)] == wanted
