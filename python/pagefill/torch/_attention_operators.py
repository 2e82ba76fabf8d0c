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
from pagefill.torch._workspace import AsRagged, Tensors

NUMBERS = {
    "softmax_scale": "float?",
    "mask_value": "float?",
    "attn_logits_soft_cap": "float?",
    "sliding_window": "SymInt?",
}
OPTIONAL = dict.fromkeys(("sinks", "kv_start", "key_scale", "value_scale"), "Tensor?")
WHERE = {**CHOICE, **MAXIMA}
_CACHES = ("query", "key_cache", "value_cache")
_OUTPUTS = {"out": "Tensor(a!)", "out_lse": "Tensor(b!)?"}
_STATUS = {"status": "Tensor(c!)?"}


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


def options_of(numbers: tuple[Any, ...], tensors: tuple[bytes | None, ...]) -> bytes | None:
    """NUMBERS and OPTIONAL as pagefill_attention_options."""
    return _options(*numbers, *tensors) if any(tensors) else _options_of_numbers(*numbers)


def _batch_of_one(tensors: Tensors, page_indices: Tensor) -> Tensors:
    """A prefill call's tensors as those of the ragged call, for what does not read the metadata."""
    *caches, length, _ = tensors
    device = page_indices.get_device()
    table = unread_int32(1, *page_indices.shape, device=device)
    return *caches, unread_int32(2, device=device), length, table


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


class Operators(NamedTuple):
    """Of prefill_page_attention, or of ragged_page_attention."""

    name: str
    inputs: tuple[str, ...]
    padded: bool
    """Whether a call leaves rows as they are: new memory may hold anything, and such rows come out as the
    state without keys."""
    function: Any
    as_ragged: AsRagged
    plain: Any = None  # -> output
    with_lse: Any = None  # -> output, lse
    out: Any = None  # into out and, where given, out_lse

    def new_output(self, query: Tensor, value_cache: Tensor) -> Tensor:
        output = _empty_output(query, value_cache)
        return output.zero_() if self.padded else output

    def new_lse(self, query: Tensor) -> Tensor:
        lse = _empty_lse(query)
        return lse.fill_(-torch.inf) if self.padded else lse

    def run(self, a: Any, out: bytes, out_lse: bytes | None, before: int = 0) -> None:
        """The call of an operator's arguments, which has `before` others before its inputs."""
        options_at = before + len(self.inputs)
        inputs, rest = a[before:options_at], a[options_at:]
        tensors = tuple(map(view, self.inputs, inputs))
        numbers = optional = where = ()
        options = None
        if rest.count(None) < len(rest):
            numbers, optional, where = rest[:4], rest[4:8], rest[8:]
            options = options_of(numbers, tuple(map(optional_view, OPTIONAL, optional)))
        device, workspace = CPU, None
        if a.query.is_cuda:
            device = a.query.get_device()
            described = (*numbers, *(None if t is None else t.shape for t in optional), *where[:5])
            size = _workspace.num_elements(
                a.query, tensors, self.as_ragged, inputs[-1], options, described, where[:5], out, out_lse
            )
            workspace = a.query.new_empty(size) if size else None
        run = context(device, workspace, *where)
        check(self.function(*tensors, options, out, out_lse, run), NAMES)


def _define(operators: Operators, check_fake: Any) -> Operators:
    """Three operators: a schema says once for all how many tensors come back."""

    def plain(a: Any) -> Tensor:
        output = operators.new_output(a.query, a.value_cache)
        operators.run(a, new_view(output), None)
        return output

    def with_lse(a: Any) -> tuple[Tensor, Tensor]:
        output, lse = operators.new_output(a.query, a.value_cache), operators.new_lse(a.query)
        operators.run(a, new_view(output), new_view(lse))
        return output, lse

    def out(a: Any) -> None:
        operators.run(a, view("out", a.out), optional_view("out_lse", a.out_lse), before=2)
        mark_written(a.out, a.out_lse, a.status)

    def fake_plain(a: Any) -> Tensor:
        check_fake(a)
        return operators.new_output(a.query, a.value_cache)

    def fake_with_lse(a: Any) -> tuple[Tensor, Tensor]:
        return fake_plain(a), operators.new_lse(a.query)

    name = operators.name
    inputs = {**dict.fromkeys(operators.inputs, "Tensor"), **NUMBERS, **OPTIONAL, **WHERE}
    return operators._replace(
        plain=define(name, inputs, "Tensor", plain, fake_plain),
        with_lse=define(f"{name}_lse", inputs, "(Tensor, Tensor)", with_lse, fake_with_lse),
        out=define(f"{name}_out", {**_OUTPUTS, **inputs, **_STATUS}, "()", out, check_fake),
    )


PREFILL = _define(
    Operators(
        "prefill_page_attention",
        (*_CACHES, "context_len", "page_indices"),
        padded=False,
        function=lib.pagefill_prefill_page_attention,
        as_ragged=_batch_of_one,
    ),
    _fake.prefill,
)
RAGGED = _define(
    Operators(
        "ragged_page_attention",
        (*_CACHES, "query_starts", "context_lens", "page_table"),
        padded=True,
        function=lib.pagefill_ragged_page_attention,
        as_ragged=_as_it_is,
    ),
    _fake.ragged,
)
