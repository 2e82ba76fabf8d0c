"""Golden cases through the PyTorch face, and the bits of the NumPy face."""

from __future__ import annotations

from pathlib import Path

import cases
import numpy as np
import pytest
import torch
from torch_cases import bits, random_batch, random_tokens, tensor, tensors

import pagefill
import pagefill.torch

DTYPES = [
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int8,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


def numpy(given: torch.Tensor) -> np.ndarray:
    """The tensor's memory as an array of NumPy's, or of ml_dtypes'."""
    name = str(given.dtype).removeprefix("torch.")
    size = given.element_size()
    if name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        import ml_dtypes

        integers = given.view({1: torch.int8, 2: torch.int16}[size]).numpy()
        return integers.view(getattr(ml_dtypes, name))
    return given.numpy()


def test_golden_cases_are_met_within_rounding_and_with_numpys_bits(golden_file: Path) -> None:
    case = cases.golden(golden_file)
    arguments, options = tensors(case)
    output, lse = pagefill.torch.prefill_page_attention(*arguments, **options, return_lse=True)
    assert output.dtype == arguments[0].dtype
    assert lse.dtype == torch.float32
    cases.assert_close(case, numpy(output), lse.numpy())
    wanted, wanted_lse = pagefill.prefill_page_attention(
        *case.arguments, **case.options, return_lse=True
    )
    assert bits(output) == cases.bits(wanted)
    assert bits(lse) == cases.bits(wanted_lse)
    alone = pagefill.torch.prefill_page_attention(*arguments, **options)
    assert bits(alone) == bits(output)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_append_attend_and_merge_have_numpys_bits_in_every_dtype(dtype: torch.dtype) -> None:
    batch = random_batch()
    quantised = dtype.itemsize == 1
    query_dtype = torch.float32 if quantised else dtype
    keys, values = (t.to(query_dtype) for t in random_tokens(batch))
    query, metadata = batch[0].to(query_dtype), batch[3:]
    caches = [torch.zeros(2, 12, 8, 16).to(dtype) for _ in range(2)]
    scales = {f"{kind}_scale": torch.ones(2, 12, 8) for kind in ("key", "value")}
    chosen = {f"chosen_{name}": scale for name, scale in scales.items()} if quantised else {}
    pagefill.torch.append_kv(keys, values, *caches, *metadata, **chosen)
    options = scales if quantised else {}
    state = pagefill.torch.ragged_page_attention(
        query, *caches, *metadata, **options, return_lse=True
    )
    merged = pagefill.torch.merge_attention_states(*state, *state)

    arrays = [
        cases_array.copy() for cases_array in map(numpy, [torch.zeros(2, 12, 8, 16).to(dtype)] * 2)
    ]
    array_scales = {name: np.ones((2, 12, 8), np.float32) for name in scales}
    array_chosen = {f"chosen_{n}": s for n, s in array_scales.items()} if quantised else {}
    array_metadata = [numpy(t) for t in metadata]
    pagefill.append_kv(numpy(keys), numpy(values), *arrays, *array_metadata, **array_chosen)
    array_options = array_scales if quantised else {}
    wanted = pagefill.ragged_page_attention(
        numpy(query), *arrays, *array_metadata, **array_options, return_lse=True
    )
    wanted_merged = pagefill.merge_attention_states(*wanted, *wanted)
    for cache, array in zip(caches, arrays, strict=True):
        assert bits(cache) == cases.bits(array)
        assert any(bits(cache))
    for name, scale in scales.items():
        assert bits(scale) == cases.bits(array_scales[name])
    for result, array in zip((*state, *merged), (*wanted, *wanted_merged), strict=True):
        assert bits(result) == cases.bits(array)


def test_tensors_and_arrays_share_memory_in_this_test() -> None:
    array = np.zeros(2, np.float32)
    tensor(array)[0] = 1
    assert array[0] == 1
