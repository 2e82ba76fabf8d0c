"""The rules of shapes, strides and dtypes for tensors without data, in the library's own words.

A call checks its tensors in the library (src/validate.cc). torch.compile and torch.export ask for
the shape of a result, or the error, before there are data or even numbers: then these rules are
asked, and python/tests/test_torch_errors.py holds their messages to the library's. What depends on
the data, lengths and pages, is left to the call.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pagefill._c.options import real
from pagefill.torch._views import dtype_name
from pagefill.torch._where import refuse_cuda_settings, refuse_threads, where_of

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
QUANTISED = (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)
_HEAD_DIM_MULTIPLE, _MAX_HEAD_DIM = 8, 512

# A name, or a name and what the extent has to be. Extents may be symbols: torch._check_value makes
# them conditions of the compiled program where they cannot be decided.
Dimension = str | tuple[str, int]
Shape = Sequence[Dimension]


def _text(shape: Shape) -> str:
    parts = []
    for dimension in shape:
        name, extent = (dimension, None) if isinstance(dimension, str) else dimension
        parts.append(name if extent is None or name == str(extent) else f"{name}={extent}")
    return f"[{', '.join(parts)}]"


def _extents_agree(tensor: Tensor, shape: Shape) -> bool:
    return tensor.dim() == len(shape) and all(
        isinstance(dimension, str) or extent == dimension[1]
        for dimension, extent in zip(shape, tensor.shape, strict=True)
    )


def _memory_of(device: torch.device) -> str:
    if device.type == "cuda":
        return f"CUDA device {device.index or 0}"
    return "the CPU" if device.type == "cpu" else str(device)


def on_one_device(tensors: dict[str, Tensor]) -> None:
    """Of two devices the one where more tensors are is meant."""
    devices = {name: given.device for name, given in tensors.items()}
    if len(set(devices.values())) == 1:
        return
    counts = Counter(devices.values())
    where = max(devices, key=lambda name: counts[devices[name]])
    for name, device in devices.items():
        if device != devices[where]:
            raise NotImplementedError(
                f"{name}: expected memory of {_memory_of(devices[where])}, where {where} is, "
                f"got memory of {_memory_of(device)}"
            )


def settings(device: torch.device, a: Any, tokens_name: str = "total_tokens") -> None:
    """How and where a call runs, of an operator's arguments."""
    num_threads, _, _, max_chunk_size, max_context_len, status = where_of(a)
    if device.type != "cuda":
        refuse_cuda_settings(max_chunk_size, max_context_len, status)
        return
    if num_threads is not None:
        refuse_threads(num_threads)
    pages_name = "max_pages" if tokens_name == "total_tokens" else "num_pages"
    at_least_none("max_chunk_size", tokens_name, max_chunk_size)
    at_least_none("max_context_len", f"{pages_name} * page_size", max_context_len)
    if status is not None:
        tensor("status", status, [("4", 4)])
        dtype("status", status, torch.int32)


def at_least_none(name: str, default: str, maximum: int | None) -> None:
    if maximum is not None:
        torch._check_value(
            maximum >= 0, lambda: f"{name}: expected 0 ({default}) or more, got {maximum}"
        )


def tensor(name: str, given: Tensor, *shapes: Shape, any_stride: bool = False) -> None:
    """Dense, of one of these shapes, innermost stride 1."""

    def wrong_shape() -> str:
        return f"{name}: expected shape {' or '.join(map(_text, shapes))}, got {list(given.shape)}"

    if len(shapes) == 1 and given.dim() == len(shapes[0]):
        for dimension, extent in zip(shapes[0], given.shape, strict=True):
            if not isinstance(dimension, str):
                torch._check_value(extent == dimension[1], wrong_shape)
    elif not any(_extents_agree(given, shape) for shape in shapes):
        raise ValueError(wrong_shape())
    if given.device.type not in ("cpu", "cuda", "meta") or given.layout is not torch.strided:
        raise NotImplementedError(
            f"{name}: expected a dense tensor on the CPU or a CUDA device, "
            f"got {given.layout} on {given.device}"
        )
    if not any_stride:
        stride = given.stride(-1)
        torch._check_value(
            stride == 1 or given.shape[-1] <= 1,
            lambda: f"{name}: expected an innermost stride of 1, got {stride}",
        )


def dtype(name: str, given: Tensor, *allowed: torch.dtype) -> None:
    if given.dtype not in allowed:
        raise TypeError(
            f"{name}: expected dtype {' or '.join(map(dtype_name, allowed))}, "
            f"got {dtype_name(given.dtype)}"
        )


def head_dim(name: str, dimension: str, extent: int) -> None:
    torch._check_value(
        (extent % _HEAD_DIM_MULTIPLE == 0)
        and extent >= _HEAD_DIM_MULTIPLE
        and extent <= _MAX_HEAD_DIM,
        lambda: (
            f"{name}: expected {dimension} a multiple of {_HEAD_DIM_MULTIPLE} "
            f"from {_HEAD_DIM_MULTIPLE} to {_MAX_HEAD_DIM}, got {extent}"
        ),
    )


def at_least_one(name: str, dimension: str, extent: int) -> None:
    torch._check_value(
        extent >= 1, lambda: f"{name}: expected {dimension} of at least 1, got {extent}"
    )


def caches(key_cache: Tensor, value_cache: Tensor) -> None:
    tensor("key_cache", key_cache, ["num_kv_heads", "total_num_pages", "page_size", "head_dim"])
    dtype("key_cache", key_cache, *FLOATS, *QUANTISED)
    heads, pages, slots, dim = key_cache.shape
    at_least_one("key_cache", "num_kv_heads", heads)
    at_least_one("key_cache", "page_size", slots)
    head_dim("key_cache", "head_dim", dim)
    tensor(
        "value_cache",
        value_cache,
        [("num_kv_heads", heads), ("total_num_pages", pages), ("page_size", slots), "v_head_dim"],
    )
    dtype("value_cache", value_cache, key_cache.dtype)
    head_dim("value_cache", "v_head_dim", value_cache.shape[3])


def scale(
    name: str, given: Tensor | None, cache_name: str, cache: Tensor, per_slot_only: bool = False
) -> None:
    if given is None:
        return
    if cache.dtype not in QUANTISED:
        raise ValueError(
            f"{name}: expected none, as {cache_name} is {dtype_name(cache.dtype)} "
            f"and not quantised, got {list(given.shape)}"
        )
    heads, pages, slots, _ = cache.shape
    per_head: Dimension = ("num_kv_heads", heads)
    shapes: list[Shape] = [[per_head, ("total_num_pages", pages), ("page_size", slots)]]
    if not per_slot_only:
        shapes = [[("1", 1)], [per_head], *shapes]
    tensor(name, given, *shapes, any_stride=True)
    dtype(name, given, torch.float32)


def _as_float32(name: str, value: float | None) -> float | None:
    return real(name, value) if isinstance(value, float) else value  # or a symbol


def _number(name: str, value: float | None, expected: str, agrees: bool) -> None:
    if value is not None and not agrees:
        text = f"{value}".removesuffix(".0")
        raise ValueError(f"{name}: expected {expected}, got {text}")


def options(
    softmax_scale: float | None,
    mask_value: float | None,
    attn_logits_soft_cap: float | None,
    sliding_window: int | None,
) -> None:
    scale = _as_float32("softmax_scale", softmax_scale)
    cap = _as_float32("attn_logits_soft_cap", attn_logits_soft_cap)
    mask = _as_float32("mask_value", mask_value)
    window = sliding_window
    _number("softmax_scale", scale, "a finite number", scale is None or math.isfinite(scale))
    _number(
        "attn_logits_soft_cap",
        cap,
        "a finite number > 0",
        cap is None or (cap > 0 and math.isfinite(cap)),
    )
    _number("sliding_window", window, "at least 1", window is None or window >= 1)
    _number("mask_value", mask, "a finite number or -inf", mask is None or mask < math.inf)
