"""The environment, as the library reads it on every call."""

from __future__ import annotations

from ctypes import PyDLL, c_char_p

CUDA_TARGET = b"PAGEFILL_CUDA_TARGET"
"""Which kernels run on a CUDA device (docs/hopper-kernel.md), and with that a workspace's size."""

# Five times faster than os.environ. PyDLL: not worth letting go of the GIL for.
variable = PyDLL(None).getenv
"""variable(name): what is set, as bytes, or None."""
variable.restype = c_char_p
