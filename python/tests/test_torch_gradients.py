"""A derivative that torch asks for is refused in each of torch's ways to ask: a silent zero would
train a model that learns nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch_cases import bits, random_batch, random_tensors

from pagefill.torch import (
    append_kv,
    merge_attention_states,
    prefill_page_attention,
    ragged_page_attention,
)

Function = Callable[[Tensor], Tensor]

BACKWARD = "query: expected a tensor without requires_grad"
FORWARD = "query: expected a tensor without a tangent"

QUERY, *REST = random_tensors()


def attend(query: Tensor) -> Tensor:
    return prefill_page_attention(query, *REST)


def attend_by_registry(query: Tensor) -> Tensor:
    result: Tensor = torch.ops.pagefill.prefill_page_attention(query, *REST)
    return result


def attend_into_out(query: Tensor) -> Tensor:
    return prefill_page_attention(query, *REST, out=torch.empty(query.shape))


def attend_with_options(query: Tensor) -> Tensor:
    options: dict[str, Any] = {"softmax_scale": 0.1, "sliding_window": 9, "return_lse": True}
    return prefill_page_attention(query, *REST, **options)[1]


FUNCTIONS = [attend, attend_by_registry, attend_into_out, attend_with_options]


def total(function: Function) -> Function:
    return lambda query: function(query).sum()


def grad(function: Function, query: Tensor) -> object:
    return torch.func.grad(total(function))(query)


def vjp(function: Function, query: Tensor) -> object:
    output, pull = torch.func.vjp(function, query)
    return pull(torch.ones_like(output))


def jacrev(function: Function, query: Tensor) -> object:
    return torch.func.jacrev(function)(query)


def grad_in_vmap(function: Function, query: Tensor) -> object:
    return torch.vmap(torch.func.grad(total(function)))(torch.stack([query, query]))


def compiled_grad(function: Function, query: Tensor) -> object:
    torch.compiler.reset()
    compiled = torch.compile(torch.func.grad(total(function)), backend="aot_eager")
    return compiled(query)


def backward(function: Function, query: Tensor) -> object:
    return function(query.clone().requires_grad_() * 2)


@pytest.mark.parametrize("ask", [grad, vjp, jacrev, grad_in_vmap, compiled_grad, backward])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradients_are_refused_by_every_transform(
    function: Function, ask: Callable[[Function, Tensor], object]
) -> None:
    with pytest.raises(NotImplementedError, match=BACKWARD):
        ask(function, QUERY)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # torch.func.jvp's own
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("function", FUNCTIONS)
def test_tangents_are_refused(function: Function) -> None:
    tangent = torch.ones_like(QUERY)
    with pytest.raises(NotImplementedError, match=FORWARD):
        torch.func.jvp(function, (QUERY,), (tangent,))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(QUERY, tangent)
        with pytest.raises(NotImplementedError, match=FORWARD):
            function(dual)
        with torch.no_grad(), pytest.raises(NotImplementedError, match=FORWARD):
            function(dual)


def test_the_other_operators_refuse_them_too() -> None:
    batch = random_batch()
    query, keys, values, *rest = batch
    output, lse = ragged_page_attention(*batch, return_lse=True)
    tokens = torch.ones(8, 2, 16)

    def ragged(keys: Tensor) -> Tensor:
        return ragged_page_attention(query, keys, values, *rest)

    def merge(lse_b: Tensor) -> Tensor:
        return merge_attention_states(output, lse, output, lse_b)[0]

    def append(tokens: Tensor) -> Tensor:
        append_kv(tokens, tokens, keys, values, *rest)
        return tokens

    before = bits(keys)
    cases = ((ragged, keys, "key_cache"), (merge, lse, "lse_b"), (append, tokens, "keys"))
    for function, given, name in cases:
        with pytest.raises(NotImplementedError, match=f"^{name}: .*requires_grad"):
            torch.func.grad(total(function))(given)
    assert bits(keys) == before


def test_transforms_that_ask_for_nothing_of_pagefill_work() -> None:
    wanted = attend(QUERY)

    def beside(factor: Tensor) -> Tensor:
        return (attend(QUERY) * factor).sum()

    def detached(query: Tensor) -> Tensor:
        return (attend(query.detach()) * query).sum()

    assert torch.allclose(torch.func.grad(beside)(torch.tensor(2.0)), wanted.sum())
    assert bits(torch.func.grad(detached)(QUERY)) == bits(wanted)
    with forward_ad.dual_level():
        assert bits(attend(QUERY)) == bits(wanted)
        dual = forward_ad.make_dual(QUERY, torch.ones_like(QUERY))
        assert bits(attend(forward_ad.unpack_dual(dual).primal)) == bits(wanted)


@pytest.mark.filterwarnings("ignore:.*performance drop")  # torch maps by calling once a slice
def test_a_mapped_call_has_the_bits_of_each_call() -> None:
    result = torch.vmap(attend)(torch.stack([QUERY, QUERY * 2]))
    assert [bits(t) for t in result] == [bits(attend(QUERY)), bits(attend(QUERY * 2))]
