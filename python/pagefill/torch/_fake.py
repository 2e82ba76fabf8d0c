"""What operators answer without data: nothing, or the error. Each takes its operator's arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pagefill.torch import _rules


def _attention(a: Any, num_seqs: int, tokens_name: str) -> None:
    """All rules but those of the metadata."""
    query, key_cache, value_cache = a.query, a.key_cache, a.value_cache
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
    _rules.options(a.softmax_scale, a.mask_value, a.attn_logits_soft_cap, a.sliding_window)
    heads = ("num_q_heads", q_heads)
    if a.sinks is not None:
        _rules.tensor("sinks", a.sinks, [heads])
        _rules.dtype("sinks", a.sinks, torch.float32)
    _rules.scale("key_scale", a.key_scale, "key_cache", key_cache)
    _rules.scale("value_scale", a.value_scale, "value_cache", value_cache)
    _start(a.kv_start, num_seqs)
    out, out_lse = getattr(a, "out", None), getattr(a, "out_lse", None)
    if out is not None:
        _rules.tensor("out", out, [(tokens_name, tokens), heads, ("v_head_dim", v_dim)])
        _rules.dtype("out", out, query.dtype)
    if out_lse is not None:
        _rules.tensor("out_lse", out_lse, [(tokens_name, tokens), heads])
        _rules.dtype("out_lse", out_lse, torch.float32)
    _rules.settings(query.device, a, tokens_name=tokens_name)


def _start(kv_start: Tensor | None, num_seqs: int) -> None:
    if kv_start is not None:
        _rules.tensor("kv_start", kv_start, [("num_seqs", num_seqs)])
        _rules.dtype("kv_start", kv_start, torch.int32)


def _batch(a: Any) -> int:
    _rules.tensor("context_lens", a.context_lens, ["num_seqs"])
    _rules.dtype("context_lens", a.context_lens, torch.int32)
    num_seqs: int = a.context_lens.shape[0]
    _rules.tensor("query_starts", a.query_starts, [("num_seqs + 1", num_seqs + 1)])
    _rules.dtype("query_starts", a.query_starts, torch.int32)
    _rules.tensor("page_table", a.page_table, [("num_seqs", num_seqs), "max_pages"])
    _rules.dtype("page_table", a.page_table, torch.int32)
    return num_seqs


def prefill(a: Any) -> None:
    _rules.tensor("context_len", a.context_len, [("1", 1)])
    _rules.dtype("context_len", a.context_len, torch.int32)
    _rules.tensor("page_indices", a.page_indices, ["num_pages"])
    _rules.dtype("page_indices", a.page_indices, torch.int32)
    _attention(a, 1, "chunk_size")


def ragged(a: Any) -> None:
    _attention(a, _batch(a), "total_tokens")


def merge(a: Any) -> None:
    _rules.tensor("output_a", a.output_a, ["total_tokens", "num_q_heads", "v_head_dim"])
    _rules.dtype("output_a", a.output_a, *_rules.FLOATS)
    names = ("total_tokens", "num_q_heads", "v_head_dim")
    shape = list(zip(names, a.output_a.shape, strict=True))
    for name, output in (("output_b", a.output_b), ("out", getattr(a, "out", None))):
        if output is not None:
            _rules.tensor(name, output, shape)
            _rules.dtype(name, output, a.output_a.dtype)
    out_lse = getattr(a, "out_lse", None)
    for name, lse in (("lse_a", a.lse_a), ("lse_b", a.lse_b), ("out_lse", out_lse)):
        if lse is not None:
            _rules.tensor(name, lse, shape[:2])
            _rules.dtype(name, lse, torch.float32)
    _rules.settings(a.output_a.device, a)


def check_copies(copies: Tensor) -> None:
    _rules.tensor("copies", copies, ["num_copies", ("3", 3)], any_stride=True)
    _rules.dtype("copies", copies, torch.int32)


def copy(a: Any) -> None:
    check_copies(a.copies)
    _rules.caches(a.key_cache, a.value_cache)
    _rules.scale("key_scale", a.key_scale, "key_cache", a.key_cache, per_slot_only=True)
    _rules.scale("value_scale", a.value_scale, "value_cache", a.value_cache, per_slot_only=True)
    _rules.settings(a.key_cache.device, a)


def append(a: Any) -> None:
    keys, key_cache, value_cache = a.keys, a.key_cache, a.value_cache
    _rules.caches(key_cache, value_cache)
    heads = ("num_kv_heads", key_cache.shape[0])
    _rules.tensor("keys", keys, ["total_tokens", heads, ("head_dim", key_cache.shape[3])])
    _rules.dtype("keys", keys, *_rules.FLOATS)
    tokens = ("total_tokens", keys.shape[0])
    _rules.tensor("values", a.values, [tokens, heads, ("v_head_dim", value_cache.shape[3])])
    _rules.dtype("values", a.values, keys.dtype)
    for kind, cache, given, chosen in (
        ("key", key_cache, a.key_scale, a.chosen_key_scale),
        ("value", value_cache, a.value_scale, a.chosen_value_scale),
    ):
        _rules.scale(f"{kind}_scale", given, f"{kind}_cache", cache)
        _rules.scale(f"chosen_{kind}_scale", chosen, f"{kind}_cache", cache, per_slot_only=True)
        if given is not None and chosen is not None:
            raise ValueError(
                f"{kind}_scale: expected none beside chosen_{kind}_scale, got {list(given.shape)}"
            )
    _start(a.kv_start, _batch(a))
    _rules.settings(keys.device, a)
