"""A DLPack capsule as pagefill_tensor. NumPy's own reader knows neither bfloat16 nor float8."""

from __future__ import annotations

import ctypes
from ctypes import (
    POINTER,
    PYFUNCTYPE,
    c_char_p,
    c_int32,
    c_int64,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
    c_void_p,
    py_object,
    pythonapi,
)
from typing import Any

from pagefill._c import dtypes
from pagefill._c.library import DTYPES
from pagefill._c.structs import MAX_RANK, Held, row_major, tensor, tensor_layout

# DLDeviceType. Memory that the host may read too, kDLCUDAHost and kDLCUDAManaged, is the CPU's.
_CPU, _CUDA, _CUDA_HOST, _CUDA_MANAGED = 1, 2, 3, 13
_OF_CPU = (_CPU, _CUDA_HOST, _CUDA_MANAGED)
# DLDataTypeCode and bits.
_INT, _UNSIGNED, _FLOAT, _BFLOAT, _COMPLEX, _BOOL = 0, 1, 2, 4, 5, 6
_FLOAT8_E4M3FN, _FLOAT8_E5M2 = 10, 12
_NAMES = {
    **{(_FLOAT, bits): f"float{bits}" for bits in (16, 32, 64)},
    **{(_INT, bits): f"int{bits}" for bits in (8, 16, 32, 64)},
    **{(_UNSIGNED, bits): f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{(_COMPLEX, bits): f"complex{bits}" for bits in (64, 128)},
    (_BOOL, 8): "bool",
    (_BFLOAT, 16): "bfloat16",
    (_FLOAT8_E4M3FN, 8): "float8_e4m3fn",
    (_FLOAT8_E5M2, 8): "float8_e5m2",
}
_READ_ONLY = 1  # DLPACK_FLAG_BITMASK_READ_ONLY


class _Tensor(ctypes.Structure):  # DLTensor
    _fields_ = [
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("code", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    ]


class _Versioned(ctypes.Structure):  # DLManagedTensorVersioned
    _fields_ = [
        ("major", c_uint32),
        ("minor", c_uint32),
        ("manager_ctx", c_void_p),
        ("deleter", c_void_p),
        ("flags", c_uint64),
        ("tensor", _Tensor),
    ]


_capsule_name = PYFUNCTYPE(c_char_p, py_object)(("PyCapsule_GetName", pythonapi))
_capsule_pointer = PYFUNCTYPE(c_void_p, py_object, c_char_p)(("PyCapsule_GetPointer", pythonapi))


def _capsule(name: str, array: Any) -> Any:
    """The array's capsule. It stays unused: whoever drops it last gives the memory back."""
    try:
        try:
            return array.__dlpack__(max_version=(1, 0), copy=False)
        except TypeError:  # before DLPack 1.0
            return array.__dlpack__()
    except (BufferError, RuntimeError, ValueError, TypeError) as error:
        raise TypeError(
            f"{name}: expected an array that DLPack hands over, got: {error}"
        ) from error


def _opened(name: str, array: Any, writable: bool) -> tuple[Any, _Tensor]:
    """The array's capsule and what lies in it, which lives as long as the capsule."""
    if getattr(array, "is_neg", bool)():  # torch's, of which its capsules do not tell
        raise TypeError(
            f"{name}: expected a tensor whose memory holds its numbers, got one with its negative "
            "bit set: resolve_neg() makes one"
        )
    capsule = _capsule(name, array)
    kind = _capsule_name(capsule)
    address = _capsule_pointer(capsule, kind)
    if kind != b"dltensor_versioned":
        return capsule, _Tensor.from_address(address)
    managed = _Versioned.from_address(address)
    if managed.major != 1:
        raise TypeError(f"{name}: expected DLPack version 1, got {managed.major}")
    if writable and managed.flags & _READ_ONLY:
        raise ValueError(f"{name}: expected an array that may be written, got a read-only one")
    return capsule, managed.tensor


def _dtype_of(view: _Tensor) -> str:
    name = _NAMES.get((view.code, view.bits)) if view.lanes == 1 else None
    return name or f"DLPack's code {view.code} of {view.bits} bits, {view.lanes} lanes"


def holds_other_integers(name: str, array: Any) -> bool:
    """Whether lengths or page numbers have to be converted: they do where they are not int32, or
    one number without dimensions; not where they are a GPU's, which is for the call to refuse."""
    capsule, view = _opened(name, array, writable=False)
    if view.device_type not in _OF_CPU:
        return False
    if view.code not in (_INT, _UNSIGNED) or view.bits not in (8, 16, 32, 64) or view.lanes != 1:
        raise TypeError(f"{name}: expected dtype int32 or other integers, got {_dtype_of(view)}")
    other: bool = (view.code, view.bits) != (_INT, 32) or view.ndim == 0
    del capsule  # until here
    return other


def tensor_of(name: str, array: Any, writable: bool) -> bytes:
    """The packed tensor of an array that speaks DLPack, read where it lies."""
    capsule, view = _opened(name, array, writable)
    dtype = _dtype_of(view)
    if dtype not in DTYPES:
        raise dtypes.unknown_dtype(name, dtype)
    if view.device_type not in _OF_CPU:
        on_cuda = view.device_type == _CUDA
        device = f"CUDA device {view.device_id}" if on_cuda else f"DLPack's {view.device_type}"
        raise NotImplementedError(
            f"{name}: expected memory of the CPU, got memory of {device}"
            + (": pagefill.torch and pagefill.jax take it" if on_cuda else "")
        )
    if view.ndim > MAX_RANK:
        raise ValueError(
            f"{name}: expected at most {MAX_RANK} dimensions, got {list(view.shape[: view.ndim])}"
        )
    shape = view.shape[: view.ndim]
    layout = tensor_layout(
        DTYPES[dtype],
        shape,
        view.strides[: view.ndim] if view.strides else row_major(shape),
    )
    packed = Held(tensor((view.data or 0) + view.byte_offset, layout))
    packed.owner = capsule
    return packed
