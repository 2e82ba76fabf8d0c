"""Whether torch's dispatcher has nothing to do for a call but to hand it to the kernel.

Then the call goes to the kernel at once: to look at the keys of each tensor costs about half of
a trip through the dispatcher, which turns all arguments from Python's objects into torch's and back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

_key: Any = torch._C.DispatchKey
_keys_of: Any = torch._C._dispatch_keys
_keys_of_thread: Any = torch._C._dispatch_tls_local_include_set
_function_modes: Callable[[], int] = torch._C._len_torch_function_stack
_is_profiled: Callable[[], bool] = torch._C._autograd._profiler_enabled


def _bits(*names: str) -> int:
    bits = 0
    for name in names:
        bits |= torch._C.DispatchKeySet(getattr(_key, name)).raw_repr()
    return bits


# Of a dense tensor on the CPU or a CUDA device, and of a thread outside of all modes. Our own kernel
# for autograd sees to derivatives and versions, and none of the others is for our operators.
_IDLE = _bits("CPU", "CUDA", "AutogradCPU", "AutogradCUDA", "AutocastCPU", "AutocastCUDA")
_IDLE |= _bits("ADInplaceOrView", "BackendSelect")
WORK = ~_IDLE
"""Keys of all else, as bits of DispatchKeySet.raw_repr: lazy negation, sparse, quantised and nested
tensors, other devices, torch.func, functionalization, tracing, and modes as that of fake tensors."""


def is_plain(values: Iterable[Any]) -> bool:
    """Of an operator's arguments, outside of torch.compile."""
    if (
        _keys_of_thread().raw_repr() & WORK
        or forward_ad._current_level >= 0
        or _function_modes()
        or _is_profiled()
    ):
        return False
    for value in values:
        if isinstance(value, Tensor) and (
            type(value) not in (Tensor, Parameter) or _keys_of(value).raw_repr() & WORK
        ):
            return False
    return True
