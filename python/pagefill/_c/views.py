"""Arrays as pagefill_tensor: read in place, strides and all.

An array is NumPy's, or speaks DLPack (torch, JAX, ...) or Python's buffer protocol. Nothing here
copies: what cannot be read where it lies is an error.
"""

from __future__ import annotations

import sys
from ctypes import PYFUNCTYPE, c_char, c_void_p, py_object, pythonapi
from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from pagefill._c import dlpack, dtypes
from pagefill._c.library import DTYPES
from pagefill._c.structs import MAX_RANK, Held, described, tensor, tensor_layout

if TYPE_CHECKING:
    from typing_extensions import Buffer


class SupportsDLPack(Protocol):
    """What torch's tensors, JAX's arrays and others are."""

    def __dlpack__(self, *, stream: Any = ...) -> Any: ...
    def __dlpack_device__(self) -> Any: ...


Array: TypeAlias = "npt.NDArray[Any] | SupportsDLPack | Buffer"
"""What is read in place."""

# PyArrayInterface, which NumPy documents. Its capsule takes 0.65 us where __array_interface__, a
# dict, takes 1.03, and a call has five arrays at least.
_INTERFACE = Struct("@2ic2i3P")
_interface_at = (c_char * _INTERFACE.size).from_address
_unpack_interface = _INTERFACE.unpack_from
_capsule_pointer = PYFUNCTYPE(c_void_p, py_object, c_void_p)(("PyCapsule_GetPointer", pythonapi))
_WRITEABLE = 0x400  # NPY_ARRAY_WRITEABLE


@lru_cache(maxsize=4096)
def _layout(dtype: np.dtype[Any], shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes | str:
    """The packed layout, or what is wrong: "expected ..., got ...", or the name of a dtype."""
    code = DTYPES.get(dtype.name)
    if code is None:
        return dtype.name
    if not dtype.isnative:
        return f"expected dtype {dtype.name} in the machine's byte order, got the other order"
    if len(shape) > MAX_RANK:
        return f"expected at most {MAX_RANK} dimensions, got shape {list(shape)}"
    size = dtype.itemsize
    if any(stride % size for stride, extent in zip(strides, shape, strict=True) if extent > 1):
        return f"expected strides of whole elements of {size} bytes, got {list(strides)}"
    return tensor_layout(code, shape, [stride // size for stride in strides])


def _refuse(name: str, problem: str) -> Exception:
    if not problem.startswith("expected"):
        return dtypes.unknown_dtype(name, problem)
    kind = TypeError if problem.startswith("expected dtype") else ValueError
    return kind(f"{name}: {problem}")


def read(name: str, array: Array) -> bytes:
    """The packed tensor of an array that a call reads. The array must outlive the call."""
    if type(array) is not np.ndarray:
        return _other(name, array, writable=False)
    layout = _layout(array.dtype, array.shape, array.strides)
    if type(layout) is str:
        raise _refuse(name, layout)
    capsule = array.__array_struct__  # its struct is gone as soon as nobody holds it
    interface = _unpack_interface(_interface_at(_capsule_pointer(capsule, None)))
    return tensor(interface[7], layout)  # type: ignore[arg-type]


def write(name: str, array: Array) -> bytes:
    """The packed tensor of an array that a call writes."""
    if type(array) is not np.ndarray:
        return _other(name, array, writable=True)
    layout = _layout(array.dtype, array.shape, array.strides)
    if type(layout) is str:
        raise _refuse(name, layout)
    capsule = array.__array_struct__  # its struct is gone as soon as nobody holds it
    interface = _unpack_interface(_interface_at(_capsule_pointer(capsule, None)))
    if not interface[4] & _WRITEABLE:
        raise ValueError(f"{name}: expected an array that may be written, got a read-only one")
    return tensor(interface[7], layout)  # type: ignore[arg-type]


def shape(array: Any, packed: bytes) -> tuple[int, ...]:
    """The shape of an array that was packed."""
    return array.shape if type(array) is np.ndarray else described(packed)[1]


def _other(name: str, array: Any, writable: bool) -> bytes:
    """What is not plainly NumPy's."""
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected an array without a mask of its own, got a masked array")
    view: npt.NDArray[Any]
    if isinstance(array, np.ndarray):
        view = array.view(np.ndarray)
    elif hasattr(array, "__dlpack__"):
        if writable and _is_jax(array):
            raise TypeError(f"{name}: expected an array that may be written, got one of JAX")
        return dlpack.tensor_of(name, array, writable)
    else:
        try:
            view = np.asarray(memoryview(array))
        except (TypeError, ValueError, BufferError) as error:
            raise TypeError(
                f"{name}: expected an array of NumPy, or one that speaks DLPack or the buffer "
                f"protocol, got {type(array).__name__}"
            ) from error
    packed = Held(write(name, view) if writable else read(name, view))
    packed.owner = view
    return packed


def _is_jax(array: object) -> bool:
    """JAX's arrays never change, but their DLPack capsules do not say so."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(array, jax.Array)
