"""Bad arguments give one error that names them, with data and without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_cases import bits, int32, random_batch, random_tensors, random_tokens

from pagefill.torch import (
    append_kv,
    copy_pages,
    merge_attention_states,
    prefill_page_attention,
    ragged_page_attention,
)

F32 = torch.float32
ATTENTION = ("query", "key_cache", "value_cache")
PREFILL = (*ATTENTION, "context_len", "page_indices")
BATCH = ("query_starts", "context_lens", "page_table")

Change = dict[str, Any]
Convert = Callable[[Any], Any]


def unchanged(value: Any) -> Any:
    return value


def prefill(convert: Convert = unchanged, **changes: Any) -> Any:
    return call(prefill_page_attention, PREFILL, random_tensors(), changes, convert)


def ragged(convert: Convert = unchanged, **changes: Any) -> Any:
    names = (*ATTENTION, *BATCH)
    return call(ragged_page_attention, names, random_batch(), changes, convert)


def merge(convert: Convert = unchanged, **changes: Any) -> Any:
    state = ragged_page_attention(*random_batch(), return_lse=True)
    names = ("output_a", "lse_a", "output_b", "lse_b")
    return call(merge_attention_states, names, [*state, *state], changes, convert)


def append(convert: Convert = unchanged, **changes: Any) -> Any:
    batch = random_batch()
    names = ("keys", "values", "key_cache", "value_cache", *BATCH)
    return call(append_kv, names, [*random_tokens(batch), *batch[1:]], changes, convert)


def copy(convert: Convert = unchanged, **changes: Any) -> Any:
    arguments = [int32(0, 1, 8, 1, 2, 3).view(2, 3), *random_batch()[1:3]]
    return call(copy_pages, ("copies", "key_cache", "value_cache"), arguments, changes, convert)


def call(
    function: Callable[..., Any],
    names: tuple[str, ...],
    arguments: list[Any],
    changes: Change,
    convert: Convert,
) -> Any:
    named = dict(zip(names, arguments, strict=True)) | changes
    named = {name: convert(value) for name, value in named.items()}
    positional = [named.pop(name) for name in names]
    return function(*positional, **named)


def floats(*shape: int) -> Tensor:
    return torch.ones(*shape)


INT8 = {name: torch.ones(2, 12, 8, 16, dtype=torch.int8) for name in ("key_cache", "value_cache")}

# What shapes, dtypes and options alone decide: without data the message is the same.
WITHOUT_DATA: list[tuple[Callable[..., Any], type[Exception], str, Change]] = [
    (prefill, ValueError, "query: expected shape", {"query": floats(5, 16)}),
    (prefill, ValueError, "query: expected num_q_heads a multiple", {"query": floats(5, 3, 16)}),
    (prefill, ValueError, "query: expected head_dim a multiple", {"query": floats(5, 4, 12)}),
    (prefill, ValueError, "query: expected head_dim a multiple", {"query": floats(5, 4, 520)}),
    (prefill, TypeError, "query: expected dtype", {"query": floats(5, 4, 16).double()}),
    (
        prefill,
        ValueError,
        "key_cache: expected head_dim 24",
        {"query": floats(5, 4, 24), "key_cache": floats(2, 8, 8, 16)},
    ),
    (prefill, ValueError, "query: expected an innermost", {"query": floats(5, 4, 32)[..., ::2]}),
    (prefill, ValueError, "key_cache: expected shape", {"key_cache": floats(8, 8, 16)}),
    (prefill, ValueError, "key_cache: expected page_size", {"key_cache": floats(2, 8, 0, 16)}),
    (prefill, TypeError, "key_cache: expected dtype", {"key_cache": floats(2, 8, 8, 16).double()}),
    (prefill, ValueError, "value_cache: expected shape", {"value_cache": floats(2, 7, 8, 16)}),
    (
        prefill,
        TypeError,
        "value_cache: expected dtype float32, got float16",
        {"value_cache": floats(2, 8, 8, 16).half()},
    ),
    (prefill, ValueError, "value_cache: expected v_head_dim", {"value_cache": floats(2, 8, 8, 4)}),
    (prefill, ValueError, "context_len: expected shape", {"context_len": int32(1, 2)}),
    (prefill, TypeError, "context_len: expected dtype int32", {"context_len": floats(1)}),
    (prefill, ValueError, "page_indices: expected shape", {"page_indices": int32(1, 2).view(1, 2)}),
    (prefill, TypeError, "page_indices: expected dtype int32", {"page_indices": floats(5)}),
    (prefill, ValueError, "softmax_scale: expected", {"softmax_scale": float("nan")}),
    (prefill, ValueError, "softmax_scale: expected", {"softmax_scale": 1e300}),
    (prefill, ValueError, "attn_logits_soft_cap: expected", {"attn_logits_soft_cap": 0}),
    (prefill, ValueError, "attn_logits_soft_cap: expected", {"attn_logits_soft_cap": -1.5}),
    (prefill, ValueError, "sliding_window: expected", {"sliding_window": 0}),
    (prefill, ValueError, "mask_value: expected", {"mask_value": float("inf")}),
    (prefill, ValueError, "sinks: expected shape", {"sinks": floats(3)}),
    (prefill, TypeError, "sinks: expected dtype", {"sinks": floats(4).double()}),
    (prefill, ValueError, "kv_start: expected shape", {"kv_start": int32(1, 2)}),
    (prefill, ValueError, "key_scale: expected none", {"key_scale": floats(1)}),
    (prefill, ValueError, "out: expected shape", {"out": floats(5, 4, 8)}),
    (prefill, TypeError, "out: expected dtype", {"out": floats(5, 4, 16).half()}),
    (prefill, ValueError, "out_lse: expected shape", {"out_lse": floats(5, 3)}),
    (prefill, TypeError, "out_lse: expected dtype", {"out_lse": floats(5, 4).half()}),
    (ragged, ValueError, "value_scale: expected shape", INT8 | {"value_scale": floats(3)}),
    (ragged, TypeError, "value_scale: expected dtype", INT8 | {"value_scale": floats(2).half()}),
    (ragged, ValueError, "query_starts: expected shape", {"query_starts": int32(0, 5)}),
    (ragged, ValueError, "context_lens: expected shape", {"context_lens": int32(1).view(1, 1)}),
    (ragged, ValueError, "page_table: expected shape", {"page_table": int32(1, 2)}),
    (merge, ValueError, "output_a: expected shape", {"output_a": floats(8, 16)}),
    (merge, ValueError, "output_b: expected shape", {"output_b": floats(8, 4, 8)}),
    (merge, TypeError, "output_b: expected dtype", {"output_b": floats(8, 4, 16).half()}),
    (merge, ValueError, "lse_b: expected shape", {"lse_b": floats(7, 4)}),
    (merge, TypeError, "lse_a: expected dtype", {"lse_a": floats(8, 4).half()}),
    (merge, ValueError, "out: expected shape", {"out": floats(8, 4, 8)}),
    (merge, ValueError, "out_lse: expected shape", {"out_lse": floats(8, 3)}),
    (append, ValueError, "keys: expected shape", {"keys": floats(8, 2, 24)}),
    (append, TypeError, "keys: expected dtype", {"keys": floats(8, 2, 16).double()}),
    (append, TypeError, "values: expected dtype", {"values": floats(8, 2, 16).half()}),
    (append, ValueError, "value_cache: expected shape", {"value_cache": floats(2, 11, 8, 16)}),
    (append, ValueError, "chosen_key_scale: expected none", {"chosen_key_scale": floats(2, 12, 8)}),
    (
        append,
        ValueError,
        "chosen_value_scale: expected shape",
        INT8 | {"chosen_value_scale": floats(1)},
    ),
    (
        append,
        ValueError,
        "key_scale: expected none beside",
        INT8 | {"key_scale": floats(1), "chosen_key_scale": floats(2, 12, 8)},
    ),
    (copy, ValueError, r"copies: expected shape \[num_copies, 3\], got", {"copies": int32(1, 2, 3)}),
    (copy, TypeError, "copies: expected dtype int32, got float32", {"copies": floats(2, 3)}),
    (copy, ValueError, "key_cache: expected shape", {"key_cache": floats(12, 8, 16)}),
    (copy, TypeError, "value_cache: expected dtype", {"value_cache": floats(2, 12, 8, 16).half()}),
    (copy, ValueError, "value_cache: expected shape", {"value_cache": floats(2, 11, 8, 16)}),
    (copy, ValueError, "key_scale: expected none, as key_cache", {"key_scale": floats(2, 12, 8)}),
    (copy, ValueError, "value_scale: expected shape", INT8 | {"value_scale": floats(2)}),
    (copy, TypeError, "key_scale: expected dtype", INT8 | {"key_scale": floats(2, 12, 8).half()}),
]


@pytest.mark.parametrize(("run", "error", "match", "changes"), WITHOUT_DATA)
def test_a_bad_argument_is_named_and_without_data_in_the_same_words(
    run: Callable[..., Any], error: type[Exception], match: str, changes: Change
) -> None:
    with pytest.raises(error, match=match) as raised:
        run(**changes)
    assert "\n" not in str(raised.value)
    mode = torch._subclasses.FakeTensorMode()
    with pytest.raises(error, match=match) as without_data:
        run(
            lambda given: mode.from_tensor(given) if isinstance(given, Tensor) else given, **changes
        )
    assert str(without_data.value) == str(raised.value)


ONLY_WITH_DATA: list[tuple[Callable[..., Any], type[Exception], str, Change]] = [
    (prefill, ValueError, "context_len: expected", {"context_len": -1}),
    (prefill, ValueError, "context_len: expected a length", {"context_len": 2**40}),
    (prefill, TypeError, "context_len: expected an integer, got 3.5", {"context_len": 3.5}),
    (prefill, TypeError, "context_len: expected a torch.Tensor or", {"context_len": None}),
    (prefill, ValueError, "page_indices: expected pages", {"page_indices": torch.full((5,), 99)}),
    (prefill, ValueError, "context_len: expected at most", {"page_indices": int32(1)}),
    (prefill, TypeError, "page_indices: expected a torch.Tensor, got list", {"page_indices": [1]}),
    (prefill, TypeError, "query: expected a torch.Tensor, got ndarray", {"query": np.zeros(3)}),
    (
        prefill,
        TypeError,
        "query: expected dtype .*, got int16",
        {"query": floats(5, 4, 16).short()},
    ),
    (
        prefill,
        TypeError,
        "value_cache: expected dtype of key_cache, got int16",
        {"value_cache": floats(2, 8, 8, 16).short()},
    ),
    (append, TypeError, "values: expected dtype of keys, got", {"values": floats(8, 2, 16).short()}),
    (merge, TypeError, "output_b: expected dtype of output_a", {"output_b": floats(8, 4, 16).short()}),
    (prefill, ValueError, r"query: expected shape \[chunk_size, num_q", {"query": floats(5, 16)}),
    (prefill, ValueError, r"out: expected shape \[chunk_size=5, num_q", {"out": floats(4, 4, 16)}),
    (prefill, ValueError, "query: expected at most 4 dim", {"query": floats(1, 1, 1, 1, 1)}),
    (prefill, TypeError, "softmax_scale: expected a number", {"softmax_scale": "big"}),
    (prefill, TypeError, "softmax_scale: expected a number", {"softmax_scale": True}),
    (prefill, TypeError, "mask_value: expected a number", {"mask_value": None}),
    (prefill, TypeError, "sliding_window: expected an integer", {"sliding_window": 2.5}),
    (prefill, TypeError, "sinks: expected a torch.Tensor", {"sinks": [1.0]}),
    (prefill, TypeError, "backend: expected a name", {"backend": 3}),
    (prefill, TypeError, "num_threads: expected an integer", {"num_threads": "two"}),
    (prefill, ValueError, "num_threads: expected", {"num_threads": 5000}),
    (prefill, ValueError, "num_threads: expected None or 1 to 1024", {"num_threads": 2**40}),
    (prefill, ValueError, "num_threads: expected an integer of 64", {"num_threads": 2**70}),
    (prefill, ValueError, "sliding_window: expected an integer of 64", {"sliding_window": 2**70}),
    (prefill, ValueError, "softmax_scale: expected a finite number", {"softmax_scale": 10**400}),
    (prefill, ValueError, "softmax_scale: expected .* -inf", {"softmax_scale": -(10**400)}),
    (prefill, ValueError, "mask_value: expected", {"mask_value": 10**400}),
    (prefill, TypeError, "mask_value: expected a number, got Tensor", {"mask_value": floats(3, 3)}),
    (prefill, TypeError, "mask_value: expected a number, got ndarray", {"mask_value": np.zeros(3)}),
    (prefill, TypeError, "sinks: expected a torch.Tensor, got float", {"sinks": 1.0}),
    (append, ValueError, "context_lens: expected", {"context_lens": torch.full((3,), 2**31)}),
    (ragged, ValueError, "kv_start: expected", {"kv_start": torch.full((3,), 2**31)}),
    (ragged, ValueError, "query_starts: expected", {"query_starts": int32(0, 5, 4, 6)}),
    (append, ValueError, "page_table: expected pages", {"page_table": torch.full((3, 4), 12)}),
    (copy, ValueError, "copies: expected a source from 0 to 11, got 12", {"copies": [(12, 1, 8)]}),
    (copy, ValueError, "copies: .* got -1 in copy 0", {"copies": torch.tensor([[2**40, 1, 8]])}),
    (copy, ValueError, "copies: expected num_slots from 0 to 8", {"copies": [(0, 1, 9)]}),
    (copy, ValueError, r"copies: expected \(source, destination, num_slots\)", {"copies": [(0, 1)]}),
    (copy, TypeError, r"copies: expected \(source, destination, num_slots\)", {"copies": 7}),
    (copy, TypeError, "copies: expected an integer, got 0.5", {"copies": [(0, 1, 0.5)]}),
    (copy, TypeError, "key_cache: expected a torch.Tensor", {"key_cache": np.zeros(3)}),
]


@pytest.mark.parametrize(("run", "error", "match", "changes"), ONLY_WITH_DATA)
def test_a_bad_value_is_named(
    run: Callable[..., Any], error: type[Exception], match: str, changes: Change
) -> None:
    with pytest.raises(error, match=match) as raised:
        run(**changes)
    assert "\n" not in str(raised.value)


def test_nothing_is_written_after_an_error() -> None:
    out, cache = torch.full((5, 4, 16), 7.0), torch.full((2, 12, 8, 16), 7.0)
    with pytest.raises(ValueError, match="softmax_scale"):
        prefill(softmax_scale=float("inf"), out=out)
    with pytest.raises(ValueError, match="page_table"):
        append(key_cache=cache, page_table=torch.full((3, 4), 12))
    with pytest.raises(ValueError, match="copies"):
        copy(key_cache=cache, copies=[(0, 1, 1), (0, 12, 1)])
    assert (out == 7).all()
    assert (cache == 7).all()
    assert out._version == cache._version == 0


def test_memory_that_is_written_and_read_is_refused() -> None:
    query = random_tensors()[0]
    with pytest.raises(ValueError, match="out: expected memory of its own"):
        prefill(query=query, out=query)


def gradients() -> list[tuple[Callable[..., Any], Change]]:
    def wanting(given: Tensor) -> Tensor:
        return given.requires_grad_()

    return [
        (prefill, {"query": wanting(floats(5, 4, 16))}),
        (prefill, {"sinks": wanting(floats(4))}),
        (ragged, {"value_cache": wanting(floats(2, 12, 8, 16))}),
        (merge, {"lse_b": wanting(floats(8, 4))}),
        (append, {"keys": wanting(floats(8, 2, 16))}),
        (copy, {"key_cache": wanting(floats(2, 12, 8, 16))}),
    ]


@pytest.mark.parametrize(("run", "changes"), gradients())
def test_gradients_are_refused_by_name(run: Callable[..., Any], changes: Change) -> None:
    (name,) = changes
    with pytest.raises(NotImplementedError, match=f"{name}: .*requires_grad.*pagefill"):
        run(**changes)
    with torch.no_grad():
        run(**changes)
    with torch.inference_mode():
        run(**changes)


def test_tensors_that_are_elsewhere_get_one_error() -> None:
    query = random_tensors()[0]
    with pytest.raises(NotImplementedError, match="query: expected a dense tensor on the CPU or a"):
        prefill(query=query.to_sparse())
    there = "page_indices: expected memory of the CPU, where query is, got memory of meta"
    with pytest.raises(NotImplementedError, match=there):
        prefill(page_indices=torch.zeros(5, dtype=torch.int32, device="meta"))


def test_tensors_without_data_give_tensors_without_data() -> None:
    meta = [given.to("meta") for given in random_batch()]
    output, lse = ragged_page_attention(*meta, return_lse=True)
    assert output.is_meta
    assert lse.is_meta
    assert (output.shape, lse.shape, lse.dtype) == ((8, 4, 16), (8, 4), F32)
    real = ragged(out=torch.empty(8, 4, 16))
    assert bits(real)


def test_a_mapped_call_that_writes_given_memory_is_refused_in_one_line() -> None:
    arguments, batch = random_tensors()[1:], random_batch()

    def attend(query: Tensor, out: Tensor) -> Tensor:
        return prefill_page_attention(query, *arguments, out=out)

    queries = floats(2, 5, 4, 16)
    with pytest.raises(NotImplementedError, match="outside of torch.vmap") as raised:
        torch.vmap(attend)(queries, torch.empty(queries.shape))
    assert "\n" not in str(raised.value)
    with pytest.raises(NotImplementedError, match="outside of torch.vmap"):
        torch.vmap(lambda tokens: append_kv(tokens, tokens, *batch[1:]))(floats(2, 8, 2, 16))
