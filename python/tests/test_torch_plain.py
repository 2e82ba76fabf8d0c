"""What torch's dispatcher has to see of a call, it sees; all else goes past it."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch_cases import bits, random_batch, random_tensors, random_tokens

from pagefill.torch import append_kv, prefill_page_attention
from pagefill.torch._plain import is_plain


class Seen(TorchDispatchMode):
    """The operators that the dispatcher calls."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


class SeenFunctions(TorchFunctionMode):
    """The functions of torch that Python calls."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Subclass(Tensor):
    pass


@pytest.mark.parametrize(
    "mode",
    [contextlib.nullcontext, torch.no_grad, torch.inference_mode, torch.enable_grad],
)
def test_tensors_outside_of_all_modes_go_past_the_dispatcher(mode: Any) -> None:
    tensors = random_tensors()
    with mode():
        assert is_plain([*tensors, None, 0.5, torch.nn.Parameter(tensors[0], requires_grad=False)])
        assert is_plain([tensors[0] + 1])  # one that was made in the mode
    with torch.autocast("cpu"):
        assert is_plain(tensors)


@pytest.mark.parametrize(
    "make",
    [
        torch._neg_view,
        lambda t: t.to(torch.complex64).conj(),
        lambda t: torch._efficientzerotensor(t.shape),
        lambda t: t.to_sparse(),
        lambda t: t.to_mkldnn(),
        lambda t: t.to("meta"),
        lambda t: t.as_subclass(Subclass),
        lambda t: FakeTensorMode().from_tensor(t),
        torch._to_functional_tensor,
    ],
    ids=lambda make: getattr(make, "__name__", ""),
)
def test_a_tensor_that_needs_the_dispatcher_is_not_plain(make: Any) -> None:
    plain = torch.ones(2, 8)
    assert is_plain([plain])
    assert not is_plain([plain, make(plain)])


def test_modes_and_transforms_are_not_plain() -> None:
    plain = torch.ones(2, 8)
    answers = []

    def ask(tensor: Tensor) -> Tensor:
        answers.append(is_plain([plain]))
        return tensor.sum()

    torch.vmap(ask)(plain)
    torch.func.grad(ask)(plain)
    torch.func.functionalize(ask)(plain)
    for mode in (Seen(), SeenFunctions(), FakeTensorMode(), forward_ad.dual_level()):
        with mode:
            answers.append(is_plain([plain]))
    with torch.autograd.profiler.profile(use_kineto=False):
        answers.append(is_plain([plain]))
    assert answers == [False] * 8
    assert is_plain([plain])


def test_a_mode_sees_the_operator_and_changes_no_bit() -> None:
    tensors = random_tensors()
    wanted = bits(prefill_page_attention(*tensors))
    with Seen() as seen:
        assert bits(prefill_page_attention(*tensors)) == wanted
    assert "pagefill::prefill_page_attention" in seen.names
    with SeenFunctions() as functions:
        assert bits(prefill_page_attention(*tensors)) == wanted
    assert "pagefill.prefill_page_attention.default" in functions.names


def test_a_profiler_lists_the_operator() -> None:
    batch = random_batch()
    with torch.autograd.profiler.profile(use_kineto=False) as profile:
        append_kv(*random_tokens(batch), *batch[1:])
    assert "pagefill::append_kv" in {event.name for event in profile.function_events}


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is")
def test_a_trace_holds_the_operator() -> None:
    def attend(query: Tensor, *rest: Tensor) -> Tensor:
        return prefill_page_attention(query, *rest)

    tensors = random_tensors()
    traced = torch.jit.trace(attend, tensors)  # type: ignore[no-untyped-call]
    assert "pagefill::prefill_page_attention" in str(traced.graph)
    assert bits(traced(*tensors)) == bits(prefill_page_attention(*tensors))


def test_past_the_dispatcher_a_call_is_the_one_through_it() -> None:
    tensors = random_tensors()
    output, lse = prefill_page_attention(*tensors, return_lse=True, sliding_window=7)
    through = torch.ops.pagefill.prefill_page_attention_lse(*tensors, sliding_window=7)
    assert [bits(t) for t in through] == [bits(output), bits(lse)]
    out = [torch.empty_like(output) for _ in range(2)]
    before = [t._version for t in out]
    prefill_page_attention(*tensors, out=out[0])
    torch.ops.pagefill.prefill_page_attention_out(out[1], None, *tensors)
    assert bits(out[0]) == bits(out[1])
    assert [t._version for t in out] == [version + 1 for version in before]
