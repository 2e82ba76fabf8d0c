"""The part of pagefill's C interface (include/pagefill/pagefill.h) that the comparison calls."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from pathlib import Path

import numpy as np

BUILD = Path(__file__).resolve().parent.parent / "build" / "bench"
OK, UNSUPPORTED = 0, 2
MAX_RANK = 4
MAX_DTYPES = 16  # more than there are: unknown numbers have names with spaces
WORKSPACE_ALIGNMENT = 64


class Tensor(ctypes.Structure):
    """pagefill_tensor."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("data", c_void_p),
        ("dtype", c_int32),
        ("device_type", c_int32),
        ("device_index", c_int32),
        ("rank", c_int32),
        ("shape", c_int64 * MAX_RANK),
        ("strides", c_int64 * MAX_RANK),
    ]


class AttentionOptions(ctypes.Structure):
    """pagefill_attention_options."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("flags", c_uint32),
        ("softmax_scale", c_float),
        ("attn_logits_soft_cap", c_float),
        ("mask_value", c_float),
        ("sliding_window", c_int64),
        ("sinks", POINTER(Tensor)),
        ("kv_start", POINTER(Tensor)),
        ("key_scale", POINTER(Tensor)),
        ("value_scale", POINTER(Tensor)),
    ]


class CallReport(ctypes.Structure):
    """pagefill_call_report."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("num_threads", c_int32),
        ("backend", c_char_p),
        ("target", c_char_p),
        ("workspace_bytes", c_size_t),
    ]


class Context(ctypes.Structure):
    """pagefill_context."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("num_threads", c_int32),
        ("backend", c_char_p),
        ("cpu_target", c_char_p),
        ("executor", c_void_p),
        ("workspace", c_void_p),
        ("workspace_size", c_size_t),
        ("report", POINTER(CallReport)),
    ]


class PagefillError(RuntimeError):
    """A call that failed, with pagefill's message."""


class PagefillUnsupported(PagefillError):
    """PAGEFILL_UNSUPPORTED: understood, but this build or backend does not do it."""


class Library:
    """libpagefill, and the calls with the errors turned into exceptions."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(str(BUILD / "src" / "libpagefill.so"))
        for name in ("last_error_message", "version", "dtype_name"):
            getattr(self._library, f"pagefill_{name}").restype = c_char_p
        # The header's numbers of the dtypes, from the library itself.
        names = [self._library.pagefill_dtype_name(code).decode() for code in range(MAX_DTYPES)]
        self.dtypes = {name: code for code, name in enumerate(names) if " " not in name}

    def version(self) -> str:
        return self._library.pagefill_version().decode()

    def tensor(self, array: np.ndarray) -> Tensor:
        """A view of the array, strides included; the array must outlive it."""
        view = Tensor(struct_size=ctypes.sizeof(Tensor), data=array.ctypes.data, rank=array.ndim)
        view.dtype = self.dtypes[array.dtype.name]
        view.shape[: array.ndim] = array.shape
        view.strides[: array.ndim] = [stride // array.itemsize for stride in array.strides]
        return view

    def check(self, status: int) -> None:
        if status == OK:
            return
        error = PagefillUnsupported if status == UNSUPPORTED else PagefillError
        raise error(self._library.pagefill_last_error_message().decode())

    def ragged_page_attention(self, arguments: list, context: Context) -> None:
        """arguments: pointers to the tensors and options up to lse, in the header's order."""
        status = self._library.pagefill_ragged_page_attention(*arguments, ctypes.byref(context))
        self.check(status)

    def attention_workspace_size(self, arguments: list, context: Context) -> int:
        size = c_size_t()
        status = self._library.pagefill_attention_workspace_size(
            *arguments, ctypes.byref(context), ctypes.byref(size)
        )
        self.check(status)
        return size.value
