"""append_kv."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pagefill._c.library import check, lib
from pagefill._c.outputs import NAMES
from pagefill._c.structs import append_options
from pagefill.torch import _arguments, _fake
from pagefill.torch._operators import define
from pagefill.torch._views import mark_written, optional_view, view
from pagefill.torch._where import CHOICE, context, where_of


_INPUTS = {
    "keys": "Tensor",
    "values": "Tensor",
    "key_cache": "Tensor(a!)",
    "value_cache": "Tensor(b!)",
    **dict.fromkeys(("query_starts", "context_lens", "page_table"), "Tensor"),
}
_OPTIONS = {
    **dict.fromkeys(("kv_start", "key_scale", "value_scale"), "Tensor?"),
    "chosen_key_scale": "Tensor(c!)?",
    "chosen_value_scale": "Tensor(d!)?",
}


def _append(a: Any) -> None:
    inputs = [view(name, getattr(a, name)) for name in _INPUTS]
    options = append_options(*(optional_view(name, getattr(a, name)) for name in _OPTIONS))
    where = context(a.keys.get_device(), None, *where_of(a))
    check(lib.pagefill_append_kv(*inputs, options, where), NAMES)
    mark_written(a.key_cache, a.value_cache, a.chosen_key_scale, a.chosen_value_scale, a.status)


_APPEND = define(
    "append_kv",
    {**_INPUTS, **_OPTIONS, **CHOICE, "status": "Tensor(e!)?"},
    "()",
    _append,
    _fake.append,
)


def append_kv(
    keys: Tensor,
    values: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    query_starts: Tensor,
    context_lens: Tensor | int,
    page_table: Tensor,
    *,
    kv_start: Tensor | int | None = None,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    chosen_key_scale: Tensor | None = None,
    chosen_value_scale: Tensor | None = None,
    num_threads: int | None = None,
    backend: str | None = None,
    cpu_target: str | None = None,
    status: Tensor | None = None,
) -> None:
    """Writes the keys and values of new tokens into their slots of the cache, in place.

    Token i of the n = query_starts[s + 1] - query_starts[s] of sequence s goes to position
    context_lens[s] - n + i: the metadata are those of the attention call that follows.

    Args:
        keys: [total_tokens, num_kv_heads, head_dim], float32, bfloat16 or float16.
        values: [total_tokens, num_kv_heads, v_head_dim], keys' dtype.
        key_cache: [num_kv_heads, total_num_pages, page_size, head_dim], one of the three dtypes, or
            int8, float8_e4m3fn, float8_e5m2; written, rounded to its dtype.
        value_cache: [num_kv_heads, total_num_pages, page_size, v_head_dim], likewise.
        query_starts: int32 [num_seqs + 1]. context_lens: int32 [num_seqs].
        page_table: int32 [num_seqs, max_pages].
        kv_start: int32 [num_seqs], the absolute position of the table's first slot; 0 where None.
        key_scale, value_scale: float32 [1], [num_kv_heads] or
            [num_kv_heads, total_num_pages, page_size]: a quantised cache gets x / scale.
        chosen_key_scale, chosen_value_scale: float32 [num_kv_heads, total_num_pages, page_size];
            written: the scale of each new slot is chosen. Not together with key_scale, value_scale.
        num_threads, backend, cpu_target, status: as in prefill_page_attention.

    Raises:
        ValueError: a shape, stride, length or page that breaks a rule; nothing is written. On a
            CUDA device lengths and pages raise nothing: a token without a slot is not written, and
            `status` says so.
        TypeError: a dtype or a type.
        NotImplementedError: a tensor elsewhere than on the CPU or a CUDA device, or than the
            others; one that requires grad, in grad mode.
    """
    _APPEND(
        _arguments.tensor("keys", keys),
        _arguments.tensor("values", values),
        _arguments.tensor("key_cache", key_cache),
        _arguments.tensor("value_cache", value_cache),
        _arguments.lengths("query_starts", query_starts),
        _arguments.length("context_lens", context_lens, keys),
        _arguments.lengths("page_table", page_table),
        None if kv_start is None else _arguments.length("kv_start", kv_start, keys),
        _arguments.optional_tensor("key_scale", key_scale),
        _arguments.optional_tensor("value_scale", value_scale),
        _arguments.optional_tensor("chosen_key_scale", chosen_key_scale),
        _arguments.optional_tensor("chosen_value_scale", chosen_value_scale),
        *_arguments.where(num_threads, backend, cpu_target),
        **({} if status is None else {"status": _arguments.tensor("status", status)}),
    )
