"""Shapes, dtypes and options, checked by the C library before there are any arrays.

The rules stand in the library and nowhere else. It gets tensors with the shapes and dtypes of the
call, at addresses where nothing is, and a batch of sequences without tokens, for which it reads no
element.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from pagefill._c import dtypes, structs
from pagefill._c.library import DTYPES, check, lib

Shape = tuple[Any, ...]

_ANYWHERE = structs.context(backend="reference")
"""For checks: the backend of PAGEFILL_BACKEND may be one for other memory than the CPU's."""

_FIRST_ADDRESS = 1 << 40
_SPACING = 1 << 12  # keeps neighbours apart and every dtype aligned


def is_known(*avals: jax.core.ShapedArray) -> bool:
    """False where jax.export left a dimension open: then the handler checks alone, at run time."""
    return all(isinstance(size, int) for aval in avals for size in aval.shape)


def check_environment() -> None:
    """Raises where PAGEFILL_BACKEND and its like hold what is unknown or not to be had. XLA's
    threads are as many as they are, but a wrong PAGEFILL_NUM_THREADS is an error with JAX too."""
    check(lib.pagefill_choose_backend(None, ctypes.byref(structs.BackendChoice())))


def expect(name: str, aval: jax.core.ShapedArray, shape: str, sizes: Shape, *dtypes: str) -> None:
    """What is not the library's: a rule of one argument. None in `sizes` is any size."""
    agrees = len(sizes) == len(aval.shape) and all(
        wanted is None or wanted == size for wanted, size in zip(sizes, aval.shape, strict=True)
    )
    if not agrees:
        raise ValueError(f"{name}: expected shape {shape}, got {list(aval.shape)}")
    if aval.dtype.name not in dtypes:
        raise TypeError(f"{name}: expected dtype {' or '.join(dtypes)}, got {aval.dtype.name}")


class Shapes:
    """Tensors without memory, each at an address of its own; and memory of zeros for the batch."""

    def __init__(self, device_type: int = structs.CPU, device_index: int = 0) -> None:
        self._device_type = device_type
        self._device_index = device_index
        self._next = _FIRST_ADDRESS
        self._alive: list[object] = []

    def tensor(
        self, name: str, aval: jax.core.ShapedArray | None, shape: Shape | None = None
    ) -> bytes | None:
        """A tensor that the call neither reads nor writes."""
        if aval is None:
            return None
        address = self._next
        size = math.prod(aval.shape) * aval.dtype.itemsize
        # A size beyond all memory is refused by the library, so that its address does not matter.
        self._next += min(size, 1 << 56) // _SPACING * _SPACING + 2 * _SPACING
        return self._pack(name, aval, shape or aval.shape, address)

    def zeros(
        self, name: str, aval: jax.core.ShapedArray | None, shape: Shape | None = None
    ) -> bytes | None:
        """A tensor whose elements the call reads: all are 0."""
        if aval is None or self._device_type != structs.CPU:  # a device's elements are not read
            return self.tensor(name, aval, shape)
        shape = aval.shape if shape is None else shape
        memory = np.zeros(max(1, math.prod(shape)), aval.dtype)
        self._alive.append(memory)
        return self._pack(name, aval, shape, memory.ctypes.data)

    def _pack(self, name: str, aval: jax.core.ShapedArray, shape: Shape, address: int) -> bytes:
        code = DTYPES.get(aval.dtype.name)
        if code is None:
            raise dtypes.unknown_dtype(name, aval.dtype.name)
        if len(shape) > structs.MAX_RANK:
            raise ValueError(
                f"{name}: expected at most {structs.MAX_RANK} dimensions, got shape {list(shape)}"
            )
        strides, stride = [], 1
        for size in reversed(shape):
            strides.append(stride)
            stride = min(stride * size, 1 << 62)
        place = self._device_type, self._device_index
        layout = structs.tensor_layout(code, shape, strides[::-1], *place)
        return structs.tensor(address, layout)


def check_attention(
    query: jax.core.ShapedArray,
    key_cache: jax.core.ShapedArray,
    value_cache: jax.core.ShapedArray,
    context_lens: jax.core.ShapedArray,
    page_table: jax.core.ShapedArray,
    optional: dict[str, jax.core.ShapedArray],
    numbers: dict[str, Any],
    output: Shape,
) -> None:
    """Raises what pagefill_ragged_page_attention would say of the shapes, dtypes and options."""
    check_status(optional)
    if "query_starts" not in optional:  # prefill_page_attention: the batch of one
        expect("context_len", context_lens, "[1]", (1,), "int32")
        expect("page_indices", page_table, "[num_pages]", (None,), "int32")
        if len(query.shape) != 3:  # the batch calls its first dimension total_tokens
            shape = "[chunk_size, num_q_heads, head_dim]"
            raise ValueError(f"query: expected shape {shape}, got {list(query.shape)}")
    operands = (query, key_cache, value_cache, context_lens, page_table)
    size = ctypes.c_size_t()
    check(_workspace(Shapes(), operands, optional, numbers, output, False, _ANYWHERE, size))


def check_status(optional: dict[str, jax.core.ShapedArray]) -> None:
    if "status" in optional:
        expect("status", optional["status"], "[4]", (4,), "int32")


def cuda_workspace(
    operands: Sequence[jax.core.ShapedArray],
    optional: dict[str, jax.core.ShapedArray],
    numbers: dict[str, Any],
    output: Shape,
    with_lse: bool,
    maxima: tuple[int, int],
) -> int | None:
    """The bytes that attention needs on any GPU of this process; None where there is none to
    ask."""
    where = structs.on_cuda(None, 0, *maxima)
    sizes = []
    for gpu in _gpus():
        size = ctypes.c_size_t()
        shapes = Shapes(structs.CUDA, gpu)
        if _workspace(shapes, operands, optional, numbers, output, with_lse, where, size):
            return None  # the call says why
        sizes.append(size.value)
    return max(sizes, default=None)


def _gpus() -> list[int]:
    """CUDA's numbers of one GPU of each kind that JAX has in this process. Not of others, which to
    ask would set up memory there."""
    try:
        devices = jax.local_devices(backend="cuda")
    except RuntimeError:  # JAX has none
        return []
    return list({d.device_kind: d.local_hardware_id or 0 for d in devices}.values())


def _workspace(
    shapes: Shapes,
    operands: Sequence[jax.core.ShapedArray],
    optional: dict[str, jax.core.ShapedArray],
    numbers: dict[str, Any],
    output: Shape,
    with_lse: bool,
    where: bytes | None,
    size: ctypes.c_size_t,
) -> int:
    query, key_cache, value_cache, context_lens, page_table = operands
    query_starts = optional.get("query_starts")
    table_shape: Shape = page_table.shape
    if query_starts is None:
        query_starts = jax.core.ShapedArray((2,), context_lens.dtype)
        table_shape = (1, *page_table.shape)
    options = structs.attention_options(
        **numbers,
        sinks=shapes.tensor("sinks", optional.get("sinks")),
        kv_start=shapes.zeros("kv_start", optional.get("kv_start")),
        key_scale=shapes.tensor("key_scale", optional.get("key_scale")),
        value_scale=shapes.tensor("value_scale", optional.get("value_scale")),
    )
    lse = jax.core.ShapedArray(output[:2], np.dtype(np.float32)) if with_lse else None
    status: int = lib.pagefill_attention_workspace_size(
        shapes.tensor("query", query),
        shapes.tensor("key_cache", key_cache),
        shapes.tensor("value_cache", value_cache),
        shapes.zeros("query_starts", query_starts),
        shapes.zeros("context_lens", context_lens),
        shapes.tensor("page_table", page_table, table_shape),
        options,
        shapes.tensor("output", query, output),
        shapes.tensor("lse", lse),
        where,
        ctypes.byref(size),
    )
    return status


def check_copy(
    copies: jax.core.ShapedArray,
    key_cache: jax.core.ShapedArray,
    value_cache: jax.core.ShapedArray,
    optional: dict[str, jax.core.ShapedArray],
) -> None:
    """Raises what pagefill_copy_pages would say of the shapes and dtypes; there are no copies."""
    check_status(optional)
    expect("copies", copies, "[num_copies, 3]", (None, 3), "int32")
    shapes = Shapes()
    options = structs.copy_options(
        shapes.tensor("key_scale", optional.get("key_scale")),
        shapes.tensor("value_scale", optional.get("value_scale")),
    )
    check(
        lib.pagefill_copy_pages(
            None,
            ctypes.c_size_t(0),
            shapes.tensor("key_cache", key_cache),
            shapes.tensor("value_cache", value_cache),
            options,
            _ANYWHERE,
        )
    )


def check_append(
    tensors: Sequence[jax.core.ShapedArray], optional: dict[str, jax.core.ShapedArray]
) -> None:
    """Raises what pagefill_append_kv would say of the shapes and dtypes; no token, nothing is
    written."""
    check_status(optional)
    shapes = Shapes()
    names = ("keys", "values", "key_cache", "value_cache")
    untouched = [shapes.tensor(name, aval) for name, aval in zip(names, tensors[:4], strict=True)]
    query_starts, context_lens, page_table = tensors[4:]
    scales = {
        name: shapes.tensor(name, aval)
        for name, aval in optional.items()
        if name not in ("kv_start", "status")
    }
    options = structs.append_options(
        kv_start=shapes.zeros("kv_start", optional.get("kv_start")), **scales
    )
    check(
        lib.pagefill_append_kv(
            *untouched,
            shapes.zeros("query_starts", query_starts),
            shapes.zeros("context_lens", context_lens),
            shapes.tensor("page_table", page_table),
            options,
            _ANYWHERE,
        )
    )
