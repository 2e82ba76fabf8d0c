"""Tensors of CUDA without data, as a compiler sees them, on a machine without a GPU; and what is
for CUDA alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch_cases import int32, random_batch, random_tensors, random_tokens

import pagefill
from pagefill.torch import (
    _copy_pages,
    _kv_cache,
    _views,
    _where,
    _workspace,
    append_kv,
    copy_pages,
    merge_attention_states,
    prefill_page_attention,
    ragged_page_attention,
)
from pagefill.torch._attention_operators import PREFILL, RAGGED


@pytest.fixture(autouse=True)
def _no_data() -> Iterator[None]:
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def fake(tensors: Any, device: str = "cuda") -> list[Tensor]:
    """Of the same shapes, on that device."""
    return [torch.empty(t.shape, dtype=t.dtype, device=device) for t in tensors]


def test_results_are_on_the_device_of_the_arguments() -> None:
    single, batch = fake(random_tensors()), fake(random_batch(), "cuda:1")
    output = prefill_page_attention(*single, max_chunk_size=5)
    assert (output.device.type, output.shape) == ("cuda", (5, 4, 16))
    output, lse = ragged_page_attention(*batch, return_lse=True, max_context_len=30)
    assert {output.device, lse.device} == {torch.device("cuda:1")}
    merged = merge_attention_states(output, lse, output, lse)
    assert [t.shape for t in merged] == [output.shape, lse.shape]
    append_kv(*fake(random_tokens(random_batch()), "cuda:1"), *batch[1:])
    for device in ("cpu", "cuda:1"):
        copy_pages(fake([int32(0, 1, 8).view(1, 3)], device)[0], *batch[1:3])
    words = "copies: expected memory of CUDA device 1, where key_cache is, got memory of CUDA device"
    with pytest.raises(NotImplementedError, match=words):
        copy_pages(fake([int32(0, 1, 8).view(1, 3)], "cuda:0")[0], *batch[1:3])


def test_an_integer_becomes_a_tensor_of_the_device() -> None:
    query, keys, values, _, pages = fake(random_tensors())
    assert prefill_page_attention(query, keys, values, 37, pages).device.type == "cuda"


def test_an_argument_elsewhere_is_named_in_the_words_of_the_library() -> None:
    single = fake(random_tensors())
    names = ("query", "key_cache", "value_cache", "context_len", "page_indices")
    for place, name in enumerate(names):
        mixed = list(single)
        mixed[place] = fake([single[place]], "cpu")[0]
        words = f"{name}: expected memory of CUDA device 0, where .* is, got memory of the CPU"
        with pytest.raises(NotImplementedError, match=words):
            prefill_page_attention(*mixed)
    mixed = [*single[:4], *fake(single[4:], "cuda:1")]
    with pytest.raises(NotImplementedError, match="page_indices: .* got memory of CUDA device 1"):
        prefill_page_attention(*mixed)


def test_what_plans_a_call_is_checked() -> None:
    single = fake(random_tensors())
    short = fake([int32(0, 0)])[0]
    for options, error, words in (
        ({"max_chunk_size": -1}, ValueError, r"max_chunk_size: expected 0 \(chunk_size\) or"),
        ({"max_context_len": -1}, ValueError, r"max_context_len: expected 0 \(num_pages \* page_s"),
        ({"max_context_len": 2.5}, TypeError, "max_context_len: expected an integer"),
        ({"status": short}, ValueError, r"status: expected shape \[4\], got \[2\]"),
        ({"status": fake([torch.zeros(4)])[0]}, TypeError, "status: expected dtype int32"),
        ({"status": 3}, TypeError, "status: expected a torch.Tensor"),
        ({"num_threads": 2}, ValueError, "num_threads: expected None with tensors on a CUDA"),
    ):
        with pytest.raises(error, match=words):
            prefill_page_attention(*single, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"max_chunk_size: expected 0 \(total_tokens\) or more"):
        ragged_page_attention(*fake(random_batch()), max_chunk_size=-1)


def test_what_plans_a_call_is_refused_on_the_cpu_with_data_and_without() -> None:
    real, status = random_tensors(), int32(0, 0, 0, 0)
    for arguments in (fake(random_tensors(), "cpu"), real):
        for options in ({"max_chunk_size": 5}, {"max_context_len": 40}, {"status": status}):
            (name,) = options
            words = f"{name}: expected None with tensors in memory of the CPU"
            with pytest.raises(ValueError, match=words):
                prefill_page_attention(*arguments, **options)  # type: ignore[arg-type]
    batch = random_batch()
    with pytest.raises(ValueError, match="status: expected None with tensors in memory of the CPU"):
        append_kv(*random_tokens(batch), *batch[1:], status=status)


def test_a_bad_shape_has_the_message_of_the_cpu() -> None:
    query, *rest = random_tensors()
    with pytest.raises(ValueError, match="query: expected num_q_heads a multiple"):
        prefill_page_attention(*fake([query[:, :3], *rest]))


class OnDevice(torch.Tensor):
    """Memory of the CPU that says it is a GPU's: as far as a kernel gets without one."""

    is_cuda = True  # type: ignore[assignment]

    def get_device(self) -> int:
        return 0


def of(name: str, *values: Any) -> SimpleNamespace:
    """The arguments of an operator of that name, as its kernel gets them."""
    schema = getattr(torch.ops.pagefill, name).default._schema
    names = [*(argument.name for argument in schema.arguments), *_where.WHERE]
    return SimpleNamespace(**{**dict.fromkeys(names), **dict(zip(names, values, strict=False))})


def test_a_library_without_a_gpu_to_run_on_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    if any(b.available for b in pagefill.list_backends() if b.memory == "cuda"):
        pytest.skip("there is a GPU")
    monkeypatch.setattr(_where, "_raw_stream", lambda device: 0)
    with unset_fake_temporarily():
        single = [t.as_subclass(OnDevice) for t in random_tensors()]
        batch = [t.as_subclass(OnDevice) for t in random_batch()]
        tokens = [t.as_subclass(OnDevice) for t in random_tokens(random_batch())]
        out = [_views.new_view(t) for t in (single[0].clone(), batch[0].clone())]
        copies = int32(0, 1, 8).view(1, 3)
        words = "tensors: expected memory that a backend works on, got memory of a CUDA device: "
        for call in (
            lambda: PREFILL._run(of("prefill_page_attention", *single), out[0], None),
            lambda: RAGGED._run(of("ragged_page_attention", *batch, 0.5, None, None, 3), out[1], None),
            lambda: _kv_cache._append(of("append_kv", *tokens, *batch[1:])),
            lambda: _copy_pages._copy(of("copy_pages", copies, *batch[1:3])),
            lambda: _copy_pages._copy(
                of("copy_pages", copies.as_subclass(OnDevice), *batch[1:3])
            ),
        ):
            with pytest.raises(NotImplementedError, match=words):
                call()


def test_a_workspace_is_sized_for_the_kernels_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str | None] = []

    def size_of(*arguments: Any) -> int:
        asked.append(os.environ.get("PAGEFILL_CUDA_TARGET"))
        arguments[-1]._obj.value = 400 + 4 * len(asked)
        return 0

    monkeypatch.setattr(_where, "_raw_stream", lambda device: 0)
    monkeypatch.setattr(_workspace, "_size_of", size_of)
    monkeypatch.setattr(_workspace, "_sizes", {})
    sizes = []
    with unset_fake_temporarily():
        query, *rest = [t.as_subclass(OnDevice) for t in random_tensors()]
        views = tuple(_views.view("", t) for t in (query, *rest))
        for target in (None, None, "portable", "portable", None):
            if target is None:
                monkeypatch.delenv("PAGEFILL_CUDA_TARGET", raising=False)
            else:
                monkeypatch.setenv("PAGEFILL_CUDA_TARGET", target)
            memory = _workspace.allocate(
                query, views, lambda tensors, _: tensors, (), (), None, (None,), views[0], None
            )
            assert memory is not None
            sizes.append(memory.numel())
    assert asked == [None, "portable"]
    assert sizes == [101, 101, 102, 102, 101]
