"""The operators of attention: kernels and schemas."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from pagefill._c.library import check, lib
from pagefill._c.options import real
from pagefill._c.outputs import NAMES
from pagefill._c.structs import attention_options, described
from pagefill.torch import _fake, _workspace
from pagefill.torch._operators import define
from pagefill.torch._views import mark_written, new_view, optional_view, unread_int32, view
from pagefill.torch._where import CHOICE, CPU, MAXIMA, context, where_of
from pagefill.torch._workspace import AsRagged, Tensors

_CACHES = ("query", "key_cache", "value_cache")
_NUMBERS = {
    "softmax_scale": "float?",
    "mask_value": "float?",
    "attn_logits_soft_cap": "float?",
    "sliding_window": "SymInt?",
}
_TENSORS = dict.fromkeys(("sinks", "kv_start", "key_scale", "value_scale"), "Tensor?")
_OUTPUTS = {"out": "Tensor(a!)", "out_lse": "Tensor(b!)?"}
_STATUS = {"status": "Tensor(c!)?"}

_numbers_of, _tensors_of = attrgetter(*_NUMBERS), attrgetter(*_TENSORS)


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


def _batch_of_one(tensors: Tensors, device: int) -> Tensors:
    """A prefill call's tensors as those of the ragged call, for what does not read the metadata."""
    *caches, length, pages = tensors
    table = unread_int32(1, *described(pages)[1], device=device)
    return *caches, unread_int32(2, device=device), length, table


def _as_it_is(tensors: Tensors, _device: int) -> Tensors:
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


class Operators:
    """Of prefill_page_attention, or of ragged_page_attention: a schema says once for all how many
    tensors come back, so that there are three.

    Where calls are `padded` they leave rows as they are. New memory may hold anything, and such rows
    come out as the state without keys."""

    def __init__(
        self,
        name: str,
        inputs: tuple[str, ...],
        function: Any,
        as_ragged: AsRagged,
        check_fake: Callable[[Any], None],
        padded: bool,
    ) -> None:
        self._inputs, self._inputs_of = inputs, attrgetter(*inputs)
        self._function, self._as_ragged = function, as_ragged
        self._check_fake, self._padded = check_fake, padded
        parameters = {
            **dict.fromkeys(inputs, "Tensor"),
            **_NUMBERS,
            **_TENSORS,
            **CHOICE,
            **MAXIMA,
        }
        self.plain = define(name, parameters, "Tensor", self._plain, self._fake_plain)
        self.with_lse = define(
            f"{name}_lse", parameters, "(Tensor, Tensor)", self._with_lse, self._fake_with_lse
        )
        parameters = {**_OUTPUTS, **parameters, **_STATUS}
        self.out = define(f"{name}_out", parameters, "()", self._out, check_fake)

    def new_output(self, query: Tensor, value_cache: Tensor) -> Tensor:
        output = _empty_output(query, value_cache)
        return output.zero_() if self._padded else output

    def new_lse(self, query: Tensor) -> Tensor:
        lse = _empty_lse(query)
        return lse.fill_(-torch.inf) if self._padded else lse

    def _plain(self, a: Any) -> Tensor:
        output = self.new_output(a.query, a.value_cache)
        self._run(a, new_view(output), None)
        return output

    def _with_lse(self, a: Any) -> tuple[Tensor, Tensor]:
        output, lse = self.new_output(a.query, a.value_cache), self.new_lse(a.query)
        self._run(a, new_view(output), new_view(lse))
        return output, lse

    def _out(self, a: Any) -> None:
        self._run(a, view("out", a.out), optional_view("out_lse", a.out_lse))
        mark_written(a.out, a.out_lse, a.status)

    def _run(self, a: Any, out: bytes, out_lse: bytes | None) -> None:
        tensors = tuple(map(view, self._inputs, self._inputs_of(a)))
        numbers, where = _numbers_of(a), where_of(a)
        given = tuple(map(optional_view, _TENSORS, _tensors_of(a)))
        options = _options(*numbers, *given) if any(given) else _options_of_numbers(*numbers)
        device, workspace = CPU, None
        if a.query.is_cuda:
            device = a.query.get_device()
            workspace = _workspace.allocate(
                a.query, tensors, self._as_ragged, numbers, given, options, where, out, out_lse
            )
        place = context(device, workspace, *where)
        check(self._function(*tensors, options, out, out_lse, place), NAMES)

    def _fake_plain(self, a: Any) -> Tensor:
        self._check_fake(a)
        return self.new_output(a.query, a.value_cache)

    def _fake_with_lse(self, a: Any) -> tuple[Tensor, Tensor]:
        return self._fake_plain(a), self.new_lse(a.query)


PREFILL = Operators(
    "prefill_page_attention",
    (*_CACHES, "context_len", "page_indices"),
    lib.pagefill_prefill_page_attention,
    _batch_of_one,
    _fake.prefill,
    padded=False,
)
RAGGED = Operators(
    "ragged_page_attention",
    (*_CACHES, "query_starts", "context_lens", "page_table"),
    lib.pagefill_ragged_page_attention,
    _as_it_is,
    _fake.ragged,
    padded=True,
)
