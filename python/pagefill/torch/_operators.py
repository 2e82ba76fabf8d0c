"""How an operator of the namespace `pagefill` comes into torch's registry.

torch.library.Library rather than torch.library.custom_op, whose wrappers cost several times as much
on every call (docs/architecture.md has the figures).
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from pagefill.torch._plain import WORK, is_plain
from pagefill.torch._rules import on_one_device
from pagefill.torch._views import needs_no_gradient
from pagefill.torch._where import WHERE

_BELOW_AUTOGRAD: Any = torch._C._after_autograd_keyset

_library: Any = torch.library.Library("pagefill", "DEF")  # type: ignore[no-untyped-call]

# A compiler must hand over the strides that it traced: they say if memory can be read in place.
_TAGS = (
    torch.Tag.pt2_compliant_tag,
    getattr(torch.Tag, "needs_exact_strides", torch.Tag.needs_fixed_stride_order),
)

Parameters = Mapping[str, str]
"""An operator's, by name, with their types in its schema: the one list of them. Optional ones at the end
may be left out, so that an exported program still loads when another is added."""


def define(
    name: str,
    parameters: Parameters,
    returns: str,
    kernel: Callable[[Any], Any],
    fake: Callable[[Any], Any],
    on_the_cpu_too: tuple[str, ...] = (),
) -> Callable[..., Any]:
    """Defines the operator pagefill::name. What comes back calls it, past torch's dispatcher where
    that has nothing to do.

    `kernel` runs it on dense tensors of the CPU or of CUDA, `fake` without data. Both get its
    arguments as one named tuple, in which those of WHERE that it lacks are None. Tensors of the names
    in `on_the_cpu_too` may be on the CPU while the others are elsewhere."""
    names = tuple(parameters)
    required = len(names) - _num_optional(parameters)
    schema = [
        f"{kind} {parameter}" + ("=None" if i >= required else "")
        for i, (parameter, kind) in enumerate(parameters.items())
    ]
    _library.define(f"{name}({', '.join(schema)}) -> {returns}", tags=_TAGS)
    operator = getattr(torch.ops.pagefill, name).default
    fields = (*names, *(n for n in WHERE if n not in parameters))
    absent = (None,) * len(fields)
    Arguments: Any = namedtuple(name, fields, defaults=absent)  # type: ignore[misc]

    def run(*values: Any) -> Any:
        return kernel(tuple.__new__(Arguments, values + absent[len(values) :]))  # 0.2 us faster so

    def fake_of_one_device(*values: Any) -> Any:
        on_one_device(
            {
                n: v
                for n, v in zip(names, values, strict=False)
                if isinstance(v, Tensor) and not (n in on_the_cpu_too and v.device.type == "cpu")
            }
        )
        return fake(Arguments(*values))

    def refuse(*values: Any) -> NoReturn:
        for argument, value in zip(names, values, strict=False):
            if isinstance(value, Tensor) and not _is_readable(value):
                raise NotImplementedError(
                    f"{argument}: expected a dense tensor on the CPU or a CUDA device, "
                    f"got {value.layout} on {value.device}"
                )
        raise NotImplementedError(
            f"pagefill::{name}: expected dense tensors on the CPU or a CUDA device"
        )

    def autograd(keyset: Any, *values: Any) -> Any:
        # Nothing of torch between autograd and the kernel: a second trip through the dispatcher would
        # cost 2 us. The kernel refuses what requires a gradient.
        if not keyset.raw_repr() & WORK and forward_ad._current_level < 0:
            return run(*values)
        # In torch.func's transforms only this level sees that a gradient is asked for.
        for argument, value in zip(names, values, strict=False):
            if isinstance(value, Tensor):
                needs_no_gradient(argument, value)
        return operator.redispatch(keyset & _BELOW_AUTOGRAD, *values)

    if operator._schema.is_mutable:

        def refuse_vmap(*_values: Any) -> NoReturn:
            raise NotImplementedError(
                f"pagefill::{name}: expected a call outside of torch.vmap, got one in it: vmap "
                "cannot map a call that writes its arguments"
            )

        _library.impl(name, refuse_vmap, "FuncTorchBatched")

    unseen = _unseen_by_dynamo(run)
    _library.impl(name, unseen, "CPU")
    _library.impl(name, unseen, "CUDA")
    _library.impl(name, refuse, "CompositeExplicitAutograd")  # where no kernel is
    _library.impl(name, _unseen_by_dynamo(autograd), "Autograd", with_keyset=True)
    torch.library.register_fake(f"pagefill::{name}", fake_of_one_device, lib=_library)

    def call(*values: Any, **status: Any) -> Any:
        if is_dynamo_compiling() or status or not is_plain(values):
            return operator(*values, **status)
        return unseen(*values)

    return call


def _num_optional(parameters: Parameters) -> int:
    """How many at the end may be left out."""
    kinds = list(parameters.values())
    while kinds and kinds[-1].endswith("?"):
        kinds.pop()
    return len(parameters) - len(kinds)


def _unseen_by_dynamo(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel that Dynamo leaves alone, and what it calls too.

    Dynamo compiles each Python frame below a frame of the user's that it gave up on, operators'
    kernels too. torch._dynamo.disable is for that, but importing torch._dynamo takes over a second,
    and in torch 2.5 the wrapper costs 3.5 us a call."""
    frames: Any = torch._C._dynamo.eval_frame
    if hasattr(frames, "set_code_exec_strategy"):
        skip = frames._FrameAction.SKIP
        frames.set_code_exec_strategy(kernel.__code__, frames._FrameExecStrategy(skip, skip))
        return kernel

    def run(*values: Any) -> Any:  # older torch skips one frame, not those that it calls
        callback = frames.set_eval_frame(None)
        try:
            return kernel(*values)
        finally:
            frames.set_eval_frame(callback)

    frames.skip_code(run.__code__)
    return run


def _is_readable(tensor: Tensor) -> bool:
    return tensor.device.type in ("cpu", "cuda") and tensor.layout is torch.strided
