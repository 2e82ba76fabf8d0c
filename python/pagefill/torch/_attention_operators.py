"""The operators of attention: kernels and schemas."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pagefill._c.library import check, lib
from pagefill._c.options import real
from pagefill._c.outputs import NAMES
from pagefill._c.structs import attention_options
from pagefill.torch import _fake, _workspace
from pagefill.torch._operators import define
from pagefill.torch._views import mark_written, new_view, optional_view, unread_int32, view
from pagefill.torch._where import CHOICE, CPU, MAXIMA, context
from pagefill.torch._workspace import NUM_OPTIONS, AsRagged, Tensors


_c_prefill = lib.pagefill_prefill_page_attention
_c_ragged = lib.pagefill_ragged_page_attention

_CACHES = "Tensor query, Tensor key_cache, Tensor value_cache"
_SEQUENCE = "Tensor context_len, Tensor page_indices"
_BATCH = "Tensor query_starts, Tensor context_lens, Tensor page_table"
_OPTIONS = (
    "float? softmax_scale=None, float? mask_value=None, float? attn_logits_soft_cap=None, "
    "SymInt? sliding_window=None, Tensor? sinks=None, Tensor? kv_start=None, "
    f"Tensor? key_scale=None, Tensor? value_scale=None, {CHOICE}, {MAXIMA}"
)
_STATUS = "Tensor(c!)? status=None"


def _options(
    softmax_scale: float | None,
    mask_value: float | None,
    attn_logits_soft_cap: float | None,
    sliding_window: int | None,
    *tensors: bytes | None,
) -> bytes | None:
    """attention_options, of numbers as float32."""
    return attention_options(
        None if softmax_scale is None else real("softmax_scale", softmax_scale),
        None
        if attn_logits_soft_cap is None
        else real("attn_logits_soft_cap", attn_logits_soft_cap),
        sliding_window,
        None if mask_value is None else real("mask_value", mask_value),
        *tensors,
    )


_options_of_numbers = lru_cache(maxsize=1024)(_options)


def _options_of(
    softmax_scale: float | None = None,
    mask_value: float | None = None,
    attn_logits_soft_cap: float | None = None,
    sliding_window: int | None = None,
    sinks: Tensor | None = None,
    kv_start: Tensor | None = None,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> bytes | None:
    numbers = (softmax_scale, mask_value, attn_logits_soft_cap, sliding_window)
    if sinks is kv_start is key_scale is value_scale is None:
        return _options_of_numbers(*numbers)
    return _options(
        *numbers,
        optional_view("sinks", sinks),
        optional_view("kv_start", kv_start),
        optional_view("key_scale", key_scale),
        optional_view("value_scale", value_scale),
    )


_DEFAULTS: tuple[bytes | None, tuple[Any, ...]] = (None, ())


def _attend(
    call: Any,
    as_ragged: AsRagged,
    tensors: Tensors,
    query: Tensor,
    page_table: Tensor,
    rest: tuple[Any, ...],
    out: bytes,
    out_lse: bytes | None,
) -> None:
    """`call` of these tensors, which `as_ragged` makes those of the ragged call. `rest` are options
    and where it runs."""
    options, where = (_options_of(*rest[:NUM_OPTIONS]), rest[NUM_OPTIONS:]) if rest else _DEFAULTS
    if query.is_cuda:
        held = _workspace.allocate(
            query, tensors, as_ragged, page_table, options, rest, out, out_lse
        )
        run = context(query.get_device(), held, *where)
    else:
        run = context(CPU, None, *where) if where else context(CPU)  # 0.1 us faster so
    check(call(*tensors, options, out, out_lse, run), NAMES)


def _prefill(
    out: bytes,
    out_lse: bytes | None,
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    context_len: Tensor,
    page_indices: Tensor,
    *rest: Any,
) -> None:
    tensors = (
        view("query", query),
        view("key_cache", key_cache),
        view("value_cache", value_cache),
        view("context_len", context_len),
        view("page_indices", page_indices),
    )
    _attend(_c_prefill, _batch_of_one, tensors, query, page_indices, rest, out, out_lse)


def _batch_of_one(tensors: Tensors, page_indices: Tensor) -> Tensors:
    """A prefill call's tensors as those of the ragged call, for what does not read the metadata."""
    *caches, length, _ = tensors
    device = page_indices.get_device()
    table = unread_int32(1, *page_indices.shape, device=device)
    return *caches, unread_int32(2, device=device), length, table


def _ragged(
    out: bytes,
    out_lse: bytes | None,
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    page_table: Tensor,
    *rest: Any,
) -> None:
    tensors = (
        view("query", query),
        view("key_cache", key_cache),
        view("value_cache", value_cache),
        view("query_starts", query_starts),
        view("context_lens", context_lens),
        view("page_table", page_table),
    )
    _attend(_c_ragged, _as_it_is, tensors, query, page_table, rest, out, out_lse)


def _as_it_is(tensors: Tensors, _page_table: Tensor) -> Tensors:
    return tensors


def _empty_output(query: Tensor, value_cache: Tensor) -> Tensor:
    shape, cache_shape = query.shape, value_cache.shape
    if len(shape) == 3 and len(cache_shape) == 4:
        return query.new_empty(shape[0], shape[1], cache_shape[3])
    return query.new_empty(0)  # the call says what is wrong with the rank


def _empty_lse(query: Tensor) -> Tensor:
    shape = query.shape
    if len(shape) != 3:
        return query.new_empty(0)
    if query.dtype is torch.float32:
        return query.new_empty(shape[0], shape[1])
    # Not Tensor.new_empty, which with a dtype takes 1 us more.
    return torch.empty(shape[0], shape[1], dtype=torch.float32, device=query.device)


# A ragged call leaves padding rows as they are, and new memory may hold anything: such rows come
# out as the state without keys.


def _zero_output(query: Tensor, value_cache: Tensor) -> Tensor:
    return _empty_output(query, value_cache).zero_()


def _no_keys_lse(query: Tensor) -> Tensor:
    return _empty_lse(query).fill_(-torch.inf)


NewOutput = Callable[[Tensor, Tensor], Tensor]
NewLse = Callable[[Tensor], Tensor]


class Operators(NamedTuple):
    plain: Any  # -> output
    with_lse: Any  # -> output, lse
    out: Any  # into out and, where given, out_lse
    new_output: NewOutput
    new_lse: NewLse


def _define(
    name: str, metadata: str, run: Any, check_fake: Any, new_output: NewOutput, new_lse: NewLse
) -> Operators:
    """Three operators: a schema says once for all how many tensors come back."""

    def plain(query: Tensor, key_cache: Tensor, value_cache: Tensor, *rest: Any) -> Tensor:
        output = new_output(query, value_cache)
        run(new_view(output), None, query, key_cache, value_cache, *rest)
        return output

    def with_lse(query: Tensor, key_cache: Tensor, value_cache: Tensor, *rest: Any) -> Any:
        output, lse = new_output(query, value_cache), new_lse(query)
        run(new_view(output), new_view(lse), query, key_cache, value_cache, *rest)
        return output, lse

    def out(out: Tensor, out_lse: Tensor | None, *rest: Any) -> None:
        run(view("out", out), optional_view("out_lse", out_lse), *rest)
        status = rest[num_inputs] if len(rest) > num_inputs else None
        mark_written(out, out_lse, status)

    def fake_plain(query: Tensor, key_cache: Tensor, value_cache: Tensor, *rest: Any) -> Tensor:
        check_fake(None, None, query, key_cache, value_cache, *rest)
        return new_output(query, value_cache)

    def fake_with_lse(query: Tensor, key_cache: Tensor, value_cache: Tensor, *rest: Any) -> Any:
        return fake_plain(query, key_cache, value_cache, *rest), new_lse(query)

    inputs = f"{_CACHES}, {metadata}, {_OPTIONS}"
    num_inputs = inputs.count(",") + 1
    outputs = "Tensor(a!) out, Tensor(b!)? out_lse"
    return Operators(
        define(name, inputs, "Tensor", plain, fake_plain),
        define(f"{name}_lse", inputs, "(Tensor, Tensor)", with_lse, fake_with_lse),
        define(f"{name}_out", f"{outputs}, {inputs}, {_STATUS}", "()", out, check_fake),
        new_output,
        new_lse,
    )


PREFILL = _define(
    "prefill_page_attention", _SEQUENCE, _prefill, _fake.prefill, _empty_output, _empty_lse
)
RAGGED = _define("ragged_page_attention", _BATCH, _ragged, _fake.ragged, _zero_output, _no_keys_lse)
