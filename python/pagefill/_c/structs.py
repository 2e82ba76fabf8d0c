"""The structs of include/pagefill/c/*.h.

What a call reads is packed into bytes by `struct`: one C call a struct, where ctypes would take one
a field, and a new object each time, so that no thread or signal handler finds another call's
arguments. What a call fills in is a ctypes structure.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_char_p, c_int32, c_int64, c_size_t, c_void_p
from functools import lru_cache, partial
from math import prod
from struct import Struct

MAX_RANK = 4
MAX_THREADS = 1024
CPU, CUDA = 0, 1  # device_type
NOWHERE = 4096  # an address of what is not looked at: neither null nor anybody's
INT32_MIN, INT32_MAX, INT64_MAX = -(2**31), 2**31 - 1, 2**63 - 1

# pagefill_tensor: struct_size and data, which change with every array, and the rest, which does
# not.
_TENSOR_HEAD = Struct("@NP")
_TENSOR_LAYOUT = Struct(f"@4i{2 * MAX_RANK}q")
TENSOR_SIZE = _TENSOR_HEAD.size + _TENSOR_LAYOUT.size
_PAD = (0,) * MAX_RANK

tensor_at = partial(_TENSOR_HEAD.pack, TENSOR_SIZE)
"""tensor_at(address) + tensor_layout(...): a pagefill_tensor."""


def tensor(data: int, layout: bytes) -> bytes:
    """A pagefill_tensor at that address."""
    return tensor_at(data) + layout


def row_major(shape: Sequence[int]) -> list[int]:
    """The strides of an array without gaps."""
    return [prod(shape[i + 1 :]) for i in range(len(shape))]


def tensor_layout(
    dtype: int,
    shape: Sequence[int],
    strides: Sequence[int],
    device_type: int = CPU,
    device_index: int = 0,
) -> bytes:
    """All of a pagefill_tensor behind its data pointer; strides in elements. Worth keeping: it is
    the same for all arrays of one shape."""
    rank = len(shape)
    pad = _PAD[rank:]
    if 0 in shape:  # NumPy and others leave the strides of an empty array to chance
        strides = row_major(shape)
    else:  # and those of dimensions that are not stepped through
        strides = [s if size > 1 else 0 for size, s in zip(shape, strides, strict=True)]
    return _TENSOR_LAYOUT.pack(dtype, device_type, device_index, rank, *shape, *pad, *strides, *pad)


def layout_of(packed: bytes) -> bytes:
    """All of a packed tensor but where it is."""
    return packed[_TENSOR_HEAD.size :]


def described(packed: bytes) -> tuple[int, tuple[int, ...]]:
    """The dtype's number and the shape of a packed tensor."""
    fields = _TENSOR_LAYOUT.unpack_from(packed, _TENSOR_HEAD.size)
    return fields[0], fields[4 : 4 + fields[3]]


class OptionFlag:
    """PAGEFILL_HAS_...: bits of pagefill_attention_options.flags."""

    SOFTMAX_SCALE, SOFT_CAP, SLIDING_WINDOW, MASK_VALUE = 1, 2, 4, 8


_OPTIONS = Struct("@NI3fq4P")
_APPEND_OPTIONS = Struct("@N5P")
_COPY_OPTIONS = Struct("@N3P")
# pagefill_context: what is chosen, and what belongs to one call.
_CONTEXT_CHOICE = Struct("@Ni3P")
_CONTEXT_CALL = Struct("@PN2P")
_NO_CALL = _CONTEXT_CALL.pack(0, 0, 0, 0)
_CONTEXT_SIZE = _CONTEXT_CHOICE.size + _CONTEXT_CALL.size
# And what a CUDA device needs besides; without it the struct ends above.
_CONTEXT_CUDA = Struct("@P2qP")
_SIZE = Struct("@N")
_CUDA_CONTEXT_SIZE = _SIZE.pack(_CONTEXT_SIZE + _CONTEXT_CUDA.size)
_CUDA_CALL = Struct(f"{_CONTEXT_CALL.format}{_CONTEXT_CUDA.format[1:]}")
_pack_cuda_call = _CUDA_CALL.pack
_NO_CHOICE = _CONTEXT_CHOICE.pack(_CONTEXT_SIZE, 0, 0, 0, 0)
_CUDA_NO_CHOICE = _CUDA_CONTEXT_SIZE + _NO_CHOICE[_SIZE.size :]


class Held(bytes):
    """A packed struct that keeps alive what it points to."""

    owner: object


def _address(packed: bytes | None) -> int:
    return 0 if packed is None else ctypes.cast(c_char_p(packed), c_void_p).value or 0


def _with_pointers(kind: Struct, *tensors: bytes | None) -> bytes | None:
    """A struct of pointers behind its size; None, the default, where all are null."""
    if not any(tensors):
        return None
    packed = Held(kind.pack(kind.size, *map(_address, tensors)))
    packed.owner = tensors
    return packed


@lru_cache(maxsize=1024, typed=True)
def _numbers(
    softmax_scale: float | None,
    soft_cap: float | None,
    sliding_window: int | None,
    mask_value: float | None,
) -> tuple[int, float, float, float, int]:
    flags = (
        OptionFlag.SOFTMAX_SCALE * (softmax_scale is not None)
        + OptionFlag.SOFT_CAP * (soft_cap is not None)
        + OptionFlag.SLIDING_WINDOW * (sliding_window is not None)
        + OptionFlag.MASK_VALUE * (mask_value is not None)
    )
    return flags, softmax_scale or 0.0, soft_cap or 0.0, mask_value or 0.0, sliding_window or 0


def attention_options(
    softmax_scale: float | None = None,
    attn_logits_soft_cap: float | None = None,
    sliding_window: int | None = None,
    mask_value: float | None = None,
    sinks: bytes | None = None,
    kv_start: bytes | None = None,
    key_scale: bytes | None = None,
    value_scale: bytes | None = None,
) -> bytes | None:
    """pagefill_attention_options, or None for the default. The last four are packed tensors."""
    numbers = _numbers(softmax_scale, attn_logits_soft_cap, sliding_window, mask_value)
    tensors = (sinks, kv_start, key_scale, value_scale)
    if not numbers[0] and not any(tensors):
        return None
    packed = Held(_OPTIONS.pack(_OPTIONS.size, *numbers, *map(_address, tensors)))
    packed.owner = tensors
    return packed


def append_options(
    kv_start: bytes | None = None,
    key_scale: bytes | None = None,
    value_scale: bytes | None = None,
    chosen_key_scale: bytes | None = None,
    chosen_value_scale: bytes | None = None,
) -> bytes | None:
    """pagefill_append_options of packed tensors, or None for the default."""
    return _with_pointers(
        _APPEND_OPTIONS, kv_start, key_scale, value_scale, chosen_key_scale, chosen_value_scale
    )


def copy_options(
    key_scale: bytes | None = None, value_scale: bytes | None = None, copies: bytes | None = None
) -> bytes | None:
    """pagefill_copy_options of packed tensors, or None for the default."""
    return _with_pointers(_COPY_OPTIONS, key_scale, value_scale, copies)


@lru_cache(maxsize=256, typed=True)
def context(
    num_threads: int = 0, backend: str | None = None, cpu_target: str | None = None
) -> bytes | None:
    """pagefill_context, or None for the default."""
    if num_threads == 0 and backend is None and cpu_target is None:
        return None
    names = tuple(None if name is None else name.encode() for name in (backend, cpu_target))
    pointers = map(_address, names)
    packed = Held(_CONTEXT_CHOICE.pack(_CONTEXT_SIZE, num_threads, *pointers, 0) + _NO_CALL)
    packed.owner = names
    return packed


def of_one_call(
    packed: bytes | None,
    workspace: int = 0,
    workspace_size: int = 0,
    report: int = 0,
    cancel: int = 0,
) -> bytes:
    """The same context (None: the default) with the addresses of scratch memory, of a CallReport
    to fill in, and of an int32 that ends the call."""
    choice = packed or _NO_CHOICE
    call = _CONTEXT_CALL.pack(workspace, workspace_size, report, cancel)
    whole = Held(choice[: _CONTEXT_CHOICE.size] + call)
    whole.owner = packed
    return whole


def on_cuda(
    packed: bytes | None,
    stream: int,
    max_chunk_size: int = 0,
    max_context_len: int = 0,
    status: bytes | None = None,
    workspace: int = 0,
    workspace_size: int = 0,
    report: int = 0,
) -> bytes:
    """The same context (None: the default) for tensors on a CUDA device: the addresses of stream,
    workspace and a CallReport, the maxima (0: the default), and the packed tensor of the status."""
    call = _pack_cuda_call(
        workspace,
        workspace_size,
        report,
        0,
        stream,
        max_chunk_size,
        max_context_len,
        0 if status is None else _address(status),
    )
    if packed is status is None:  # 0.3 us faster so
        return _CUDA_NO_CHOICE + call
    choice = (packed or _NO_CHOICE)[_SIZE.size : _CONTEXT_CHOICE.size]
    whole = Held(_CUDA_CONTEXT_SIZE + choice + call)
    whole.owner = packed, status
    return whole


class Sized(ctypes.Structure):
    """A structure that a call fills in; its first field, struct_size, is set."""

    _fields_ = [("struct_size", c_size_t)]

    def __init__(self) -> None:
        super().__init__(struct_size=ctypes.sizeof(self))


class TargetInfo(Sized):
    """pagefill_target_info."""

    _fields_ = [("available", c_int32), ("name", c_char_p), ("description", c_char_p)]


class BackendInfo(Sized):
    """pagefill_backend_info."""

    _fields_ = [
        ("name", c_char_p),
        ("description", c_char_p),
        ("reason", c_char_p),
        ("available", c_int32),
        ("num_targets", c_int32),
        ("memory", c_int32),
        ("half_weights", c_int32),
    ]


class BackendChoice(Sized):
    """pagefill_backend_choice."""

    _fields_ = [
        ("num_threads", c_int32),
        ("backend", c_char_p),
        ("target", c_char_p),
        ("reason", c_char_p),
    ]


class CallReport(Sized):
    """pagefill_call_report."""

    _fields_ = [
        ("num_threads", c_int32),
        ("backend", c_char_p),
        ("target", c_char_p),
        ("workspace_bytes", c_size_t),
    ]


class PageCopy(ctypes.Structure):
    """pagefill_page_copy."""

    _fields_ = [("source", c_int32), ("destination", c_int32), ("num_slots", c_int32)]


class PageAllocatorInfo(Sized):
    """pagefill_page_allocator_info."""

    _fields_ = [
        ("total_num_pages", c_int64),
        ("page_size", c_int64),
        ("num_free_pages", c_int64),
        ("num_sequences", c_int64),
    ]


class SequenceInfo(Sized):
    """pagefill_sequence_info."""

    _fields_ = [
        ("context_len", c_int64),
        ("kv_start", c_int64),
        ("page_indices", ctypes.POINTER(c_int32)),
        ("num_pages", c_int64),
    ]
