"""Calls past torch's dispatcher, whose ways through Python are most of what an operator costs.

A call goes there where an earlier one, through the dispatcher, had tensors that agree in all but their
addresses and contents, and where nobody would see it pass by: no transform of torch.func, no mode, no
profiler, no tangent. Dynamo's own guard compares the tensors, type, dtype, device, shape, strides,
dispatch keys with those of the thread, in one call; where a torch has it no more, each call goes through
the dispatcher.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import repeat
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from pagefill._c.structs import TENSOR_SIZE, layout_of, pack_tensor
from pagefill.torch._views import view

# Calls of one operator with the same options: a model's prefill, decode and kinds of layers.
_MOST_CALLS = 8
_MOST_OPTIONS = 256

_C: Any = torch._C
_Guard: Any = getattr(getattr(_C._dynamo, "guards", None), "TensorGuards", None)
_key, _keys = _C.DispatchKey, _C.DispatchKeySet
_PLAIN = 0
for _name in ("CPU", "CUDA", "AutogradCPU", "AutogradCUDA", "AutocastCPU", "AutocastCUDA"):
    _PLAIN |= _keys(getattr(_key, _name)).raw_repr()
_PLAIN |= (_keys(_key.ADInplaceOrView) | _keys(_key.BackendSelect)).raw_repr()

traced: Callable[[], bool] = torch.compiler.is_dynamo_compiling
"""Whether Dynamo reads this code, which then has to call the operator."""

_function_modes: Callable[[], int] = _C._len_torch_function_stack
_profiled: Callable[[], bool] = torch.autograd._profiler_enabled
_address = Tensor.data_ptr

Kept = TypeVar("Kept")


class Call(NamedTuple, Generic[Kept]):
    """A call that was made."""

    check: Callable[..., bool]
    layouts: tuple[bytes, ...]
    kept: Kept

    def packed(self, tensors: Sequence[Tensor]) -> tuple[bytes, ...]:
        """Tensors that agree with the call's, as pagefill_tensor."""
        return tuple(map(pack_tensor, repeat(TENSOR_SIZE), map(_address, tensors), self.layouts))


class Calls(Generic[Kept]):
    """Those of one operator, by what they had beside tensors."""

    def __init__(self) -> None:
        self._calls: dict[Hashable, tuple[Call[Kept], ...]] = {}

    def find(self, key: Hashable, tensors: Sequence[Tensor]) -> Call[Kept] | None:
        """One that had such tensors. What is no tensor, or not hashable, was in none."""
        try:
            calls = self._calls.get(key)
        except TypeError:
            return None
        if calls is not None:
            for call in calls:
                if call.check(*tensors):
                    seen = _function_modes() or _profiled() or forward_ad._current_level >= 0
                    return None if seen else call
        return None

    def keep(self, key: Hashable, tensors: Sequence[Tensor], kept: Callable[[], Kept]) -> None:
        """A call that went well, through the dispatcher, if such as this one can go past it."""
        if _Guard is None or not _are_plain(tensors) or _function_modes():
            return
        check = _Guard(
            *tensors,
            dynamic_dims_sizes=[list(t.shape) for t in tensors],
            dynamic_dims_strides=[list(t.stride()) for t in tensors],
        ).check
        call = Call(check, tuple(layout_of(view("", t)) for t in tensors), kept())
        if len(self._calls) >= _MOST_OPTIONS:
            self._calls = {}
        # Threads may do so at once, and one of them lose its call.
        self._calls[key] = (call, *self._calls.get(key, ())[: _MOST_CALLS - 1])


def _are_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether the dispatcher has nothing to do for them. The guard refuses a tensor that is twice there."""
    if len({id(t) for t in tensors}) < len(tensors):
        return False
    included = _C._dispatch_tls_local_include_set()
    excluded = _C._dispatch_tls_local_exclude_set()
    return all(
        type(t) in (Tensor, Parameter)
        and not t.requires_grad
        and not ((_C._dispatch_keys(t) | included) - excluded).raw_repr() & ~_PLAIN
        for t in tensors
    )
