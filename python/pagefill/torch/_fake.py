"""What operators answer without data: nothing, or the error. Each takes its kernel's arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pagefill.torch import _rules


def _attention(
    out: Tensor | None,
    out_lse: Tensor | None,
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    num_seqs: int,
    tokens_name: str,
    softmax_scale: float | None = None,
    mask_value: float | None = None,
    attn_logits_soft_cap: float | None = None,
    sliding_window: int | None = None,
    sinks: Tensor | None = None,
    kv_start: Tensor | None = None,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    *where: Any,
) -> None:
    """All rules but those of the metadata."""
    _rules.tensor("query", query, [tokens_name, "num_q_heads", "head_dim"])
    _rules.dtype("query", query, *_rules.FLOATS)
    tokens, q_heads, dim = query.shape
    _rules.head_dim("query", "head_dim", dim)
    _rules.caches(key_cache, value_cache)
    kv_heads, v_dim = key_cache.shape[0], value_cache.shape[3]
    torch._check_value(
        key_cache.shape[3] == dim,
        lambda: f"key_cache: expected head_dim {dim} (query's), got {key_cache.shape[3]}",
    )
    torch._check_value(
        q_heads >= 1 and q_heads % kv_heads == 0,
        lambda: f"query: expected num_q_heads a multiple of num_kv_heads {kv_heads}, got {q_heads}",
    )
    _rules.options(softmax_scale, mask_value, attn_logits_soft_cap, sliding_window)
    heads = ("num_q_heads", q_heads)
    if sinks is not None:
        _rules.tensor("sinks", sinks, [heads])
        _rules.dtype("sinks", sinks, torch.float32)
    _rules.scale("key_scale", key_scale, "key_cache", key_cache)
    _rules.scale("value_scale", value_scale, "value_cache", value_cache)
    _start(kv_start, num_seqs)
    if out is not None:
        _rules.tensor("out", out, [(tokens_name, tokens), heads, ("v_head_dim", v_dim)])
        _rules.dtype("out", out, query.dtype)
    if out_lse is not None:
        _rules.tensor("out_lse", out_lse, [(tokens_name, tokens), heads])
        _rules.dtype("out_lse", out_lse, torch.float32)
    _rules.settings(query.device, *where, tokens_name=tokens_name)


def _start(kv_start: Tensor | None, num_seqs: int) -> None:
    if kv_start is not None:
        _rules.tensor("kv_start", kv_start, [("num_seqs", num_seqs)])
        _rules.dtype("kv_start", kv_start, torch.int32)


def _batch(query_starts: Tensor, context_lens: Tensor, page_table: Tensor) -> int:
    _rules.tensor("context_lens", context_lens, ["num_seqs"])
    _rules.dtype("context_lens", context_lens, torch.int32)
    num_seqs = context_lens.shape[0]
    _rules.tensor("query_starts", query_starts, [("num_seqs + 1", num_seqs + 1)])
    _rules.dtype("query_starts", query_starts, torch.int32)
    _rules.tensor("page_table", page_table, [("num_seqs", num_seqs), "max_pages"])
    _rules.dtype("page_table", page_table, torch.int32)
    return num_seqs


def prefill(
    out: Tensor | None,
    out_lse: Tensor | None,
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    context_len: Tensor,
    page_indices: Tensor,
    *options: Any,
) -> None:
    _rules.tensor("context_len", context_len, [("1", 1)])
    _rules.dtype("context_len", context_len, torch.int32)
    _rules.tensor("page_indices", page_indices, ["num_pages"])
    _rules.dtype("page_indices", page_indices, torch.int32)
    _attention(out, out_lse, query, key_cache, value_cache, 1, "chunk_size", *options)


def ragged(
    out: Tensor | None,
    out_lse: Tensor | None,
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    page_table: Tensor,
    *options: Any,
) -> None:
    num_seqs = _batch(query_starts, context_lens, page_table)
    _attention(out, out_lse, query, key_cache, value_cache, num_seqs, "total_tokens", *options)


def merge(
    out: Tensor | None,
    out_lse: Tensor | None,
    output_a: Tensor,
    lse_a: Tensor,
    output_b: Tensor,
    lse_b: Tensor,
    *where: Any,
) -> None:
    _rules.tensor("output_a", output_a, ["total_tokens", "num_q_heads", "v_head_dim"])
    _rules.dtype("output_a", output_a, *_rules.FLOATS)
    names = ("total_tokens", "num_q_heads", "v_head_dim")
    shape = list(zip(names, output_a.shape, strict=True))
    for name, output in (("output_b", output_b), ("out", out)):
        if output is not None:
            _rules.tensor(name, output, shape)
            _rules.dtype(name, output, output_a.dtype)
    for name, lse in (("lse_a", lse_a), ("lse_b", lse_b), ("out_lse", out_lse)):
        if lse is not None:
            _rules.tensor(name, lse, shape[:2])
            _rules.dtype(name, lse, torch.float32)
    _rules.settings(output_a.device, *where)


def check_copies(copies: Tensor) -> None:
    _rules.tensor("copies", copies, ["num_copies", ("3", 3)], any_stride=True)
    _rules.dtype("copies", copies, torch.int32)


def copy(
    copies: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    num_threads: int | None = None,
    backend: str | None = None,
    cpu_target: str | None = None,
    status: Tensor | None = None,
) -> None:
    check_copies(copies)
    _rules.caches(key_cache, value_cache)
    _rules.scale("key_scale", key_scale, "key_cache", key_cache, per_slot_only=True)
    _rules.scale("value_scale", value_scale, "value_cache", value_cache, per_slot_only=True)
    _rules.settings(key_cache.device, num_threads, backend, cpu_target, status=status)


def append(
    keys: Tensor,
    values: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    page_table: Tensor,
    kv_start: Tensor | None = None,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    chosen_key_scale: Tensor | None = None,
    chosen_value_scale: Tensor | None = None,
    num_threads: int | None = None,
    backend: str | None = None,
    cpu_target: str | None = None,
    status: Tensor | None = None,
) -> None:
    _rules.caches(key_cache, value_cache)
    heads = ("num_kv_heads", key_cache.shape[0])
    _rules.tensor("keys", keys, ["total_tokens", heads, ("head_dim", key_cache.shape[3])])
    _rules.dtype("keys", keys, *_rules.FLOATS)
    tokens = ("total_tokens", keys.shape[0])
    _rules.tensor("values", values, [tokens, heads, ("v_head_dim", value_cache.shape[3])])
    _rules.dtype("values", values, keys.dtype)
    for kind, cache, given, chosen in (
        ("key", key_cache, key_scale, chosen_key_scale),
        ("value", value_cache, value_scale, chosen_value_scale),
    ):
        _rules.scale(f"{kind}_scale", given, f"{kind}_cache", cache)
        _rules.scale(f"chosen_{kind}_scale", chosen, f"{kind}_cache", cache, per_slot_only=True)
        if given is not None and chosen is not None:
            raise ValueError(
                f"{kind}_scale: expected none beside chosen_{kind}_scale, got {list(given.shape)}"
            )
    _start(kv_start, _batch(query_starts, context_lens, page_table))
    _rules.settings(keys.device, num_threads, backend, cpu_target, status=status)
