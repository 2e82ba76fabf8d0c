"""torch.compile, torch.export and opcheck."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch._inductor.utils import run_and_get_code
from torch.library import opcheck
from torch_cases import bits, int32, random_batch, random_tensors, random_tokens

from pagefill.torch import (
    append_kv,
    copy_pages,
    merge_attention_states,
    prefill_page_attention,
    ragged_page_attention,
)

pytestmark = pytest.mark.filterwarnings("default")  # torch's own


@pytest.fixture(autouse=True)
def _forget_what_was_compiled() -> None:
    torch._dynamo.reset()


def calls() -> dict[str, list[tuple[Any, ...]]]:
    """Arguments for each operator of the namespace."""
    single, batch = random_tensors(), random_batch()
    options = (0.3, -1.0, 30.0, 5, torch.ones(4), int32(0), None, None, 2, "cpu")
    quantised = [(cache * 20).to(torch.int8) for cache in batch[1:3]]
    scales = (torch.ones(2), torch.ones(2, 12, 8))
    batch_options = (None,) * 6 + scales
    out, lse = torch.zeros(5, 4, 16), torch.zeros(5, 4)
    batch_out, batch_lse = torch.zeros(8, 4, 16), torch.zeros(8, 4)
    state = ragged_page_attention(*batch, return_lse=True)
    other = ragged_page_attention(*batch, softmax_scale=0.1, return_lse=True)
    tokens = random_tokens(batch)
    return {
        "prefill_page_attention": [(*single,), (*single, *options)],
        "prefill_page_attention_lse": [(*single,), (*single, *options)],
        "prefill_page_attention_out": [(out, None, *single), (out, lse, *single, *options)],
        "ragged_page_attention": [(*batch,), (batch[0], *quantised, *batch[3:], *batch_options)],
        "ragged_page_attention_lse": [(*batch,)],
        "ragged_page_attention_out": [(batch_out, None, *batch), (batch_out, batch_lse, *batch)],
        "merge_attention_states": [(*state, *other)],
        "merge_attention_states_out": [(batch_out, batch_lse, *state, *other)],
        "append_kv": [
            (*tokens, *batch[1:]),
            (*tokens, *quantised, *batch[3:], int32(0, 0, 0), torch.ones(1), None, None, scales[1]),
        ],
        "copy_pages": [
            (int32(0, 1, 8, 1, 2, 3).view(2, 3), *batch[1:3]),
            (int32(0, 1, 8).view(1, 3), *quantised, scales[1], scales[1].clone(), 2, "cpu"),
        ],
    }


def operators() -> list[str]:
    names = torch._C._dispatch_get_all_op_names()
    return sorted(name.split("::")[1] for name in names if name.startswith("pagefill::"))


@pytest.mark.parametrize("name", operators())
def test_opcheck_passes_on_every_operator(name: str) -> None:
    for arguments in calls()[name]:
        opcheck(getattr(torch.ops.pagefill, name).default, arguments)


def step(
    query: Tensor, keys: Tensor, values: Tensor, key_cache: Tensor, value_cache: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    """What a layer of a model does."""
    append_kv(keys, values, key_cache, value_cache, *rest)
    caches = (key_cache, value_cache)
    state = ragged_page_attention(query, *caches, *rest, return_lse=True)
    older = ragged_page_attention(query, *caches, *rest, sliding_window=4, return_lse=True)
    return merge_attention_states(*state, *older)


def step_among_others(query: Tensor, keys: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """The same with operators of torch around it."""
    output, lse = step(query * 0.5, keys + 1, *rest)
    out = torch.full_like(output, 7.0)
    ragged_page_attention(query, *rest[1:], attn_logits_soft_cap=3.0, out=out)
    return output + 1, lse, out * 3


def check_compiled(function: Any, caches: list[Tensor], backend: str) -> str:
    """Results and caches have the bits of the call that is not compiled. Inductor's
    program comes back."""
    batch = random_batch()
    rest, tokens = batch[3:], random_tokens(batch)
    eager = [batch[1].clone(), batch[2].clone()]
    wanted = function(batch[0], *tokens, *eager, *rest)
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    with torch.no_grad():
        result, programs = run_and_get_code(compiled, batch[0], *tokens, *caches, *rest)
    assert [bits(t) for t in result] == [bits(t) for t in wanted]
    assert [bits(cache) for cache in caches] == [bits(cache) for cache in eager]
    assert bits(eager[0]) != bits(batch[1])
    return "".join(programs)


def test_a_compiled_step_has_the_bits_of_the_eager_one() -> None:
    check_compiled(step_among_others, [t.clone() for t in random_batch()[1:3]], "aot_eager")


def test_a_compiled_step_may_have_keys_and_values_side_by_side_in_one_tensor() -> None:
    both = torch.stack(random_batch()[1:3], dim=2)
    check_compiled(step_among_others, [both[:, :, 0], both[:, :, 1]], "aot_eager")


def test_other_copies_of_pages_compile_nothing() -> None:
    counter = CompileCounter()
    compiled = torch.compile(copy_pages, backend=counter, fullgraph=True)
    for numbers in (int32(0, 1, 8, 1, 2, 3), int32(5, 1, 2, 0, 7, 8)):
        copies = numbers.view(2, 3)
        wanted, got = random_batch()[1:3], random_batch()[1:3]
        copy_pages(copies, *wanted)
        compiled(copies, *got)
        assert [bits(t) for t in got] == [bits(t) for t in wanted]
    assert counter.frame_count == 1


def test_inductor_appends_in_place() -> None:
    program = check_compiled(step, [t.clone() for t in random_batch()[1:3]], "inductor")
    assert "pagefill.append_kv" in program
    assert "= empty_strided" not in program.split("def call(")[1]  # memory for a copy


def test_a_merge_into_one_of_its_states_can_be_compiled() -> None:
    batch = random_batch()
    a = ragged_page_attention(*batch, return_lse=True)
    b = ragged_page_attention(*batch, softmax_scale=0.1, return_lse=True)
    wanted = merge_attention_states(*a, *b)

    def into_a(output: Tensor, lse: Tensor, *other: Tensor) -> None:
        merge_attention_states(output, lse, *other, out=output, out_lse=lse)

    torch.compile(into_a, fullgraph=True, backend="aot_eager")(*a, *b)
    assert [bits(t) for t in a] == [bits(t) for t in wanted]


def test_another_context_length_is_not_another_program() -> None:
    query, keys, values, _, pages = random_tensors()
    counter = CompileCounter()

    @torch.compile(fullgraph=True, backend=counter)
    def attend(context_len: Tensor | int) -> Tensor:
        return prefill_page_attention(query, keys, values, context_len, pages)

    for length in (5, 9, 17, 30, 37):
        wanted = prefill_page_attention(query, keys, values, length, pages)
        assert bits(attend(int32(length))) == bits(wanted)
    assert counter.frame_count == 1
    for length in (5, 9, 17, 30, 37):  # a number becomes a symbol when torch sees it change
        attend(length)
    assert counter.frame_count <= 3


def test_shapes_that_change_are_one_program() -> None:
    counter = CompileCounter()
    attend = torch.compile(ragged_page_attention, fullgraph=True, backend=counter, dynamic=True)
    for num_tokens, num_seqs, max_pages in ((11, 5, 3), (9, 6, 7), (17, 3, 9)):
        query = torch.randn(num_tokens, 4, 16)
        caches = torch.randn(2, 2, max_pages + 7, 8, 16)
        starts = torch.arange(num_seqs + 1, dtype=torch.int32)
        lens = torch.full((num_seqs,), 20, dtype=torch.int32)
        table = torch.zeros(num_seqs, max_pages, dtype=torch.int32)
        arguments = (query, caches[0], caches[1], starts, lens, table)
        assert bits(attend(*arguments)) == bits(ragged_page_attention(*arguments))
    assert counter.frame_count == 1


def test_a_bad_shape_is_named_while_compiling() -> None:
    query, *rest = random_tensors()
    attend = torch.compile(prefill_page_attention, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="query: expected num_q_heads a multiple of"):
        attend(query[:, :3], *rest)
    with pytest.raises(Exception, match="query: expected a tensor without requires_grad"):
        attend(query.clone().requires_grad_(), *rest)


def test_bad_data_are_named_while_running() -> None:
    query, keys, values, _, pages = random_tensors()
    attend = torch.compile(prefill_page_attention, fullgraph=True, backend="aot_eager")
    with torch.no_grad(), pytest.raises(ValueError, match="page_indices: expected pages from"):
        attend(query, keys, values, int32(37), pages + 1000)


class Layer(torch.nn.Module):
    """Attention as a module, to export."""

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, *metadata: Tensor) -> Any:
        return prefill_page_attention(query, keys, values, *metadata, return_lse=True)


def test_an_exported_program_takes_other_lengths_and_chunks() -> None:
    query, keys, values, context_len, pages = random_tensors()
    chunk_size = torch.export.Dim("chunk_size", min=2, max=1024)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            Layer(),
            (query, keys, values, context_len, pages),
            dynamic_shapes={
                "query": {0: chunk_size},
                "keys": None,
                "values": None,
                "metadata": (None, None),
            },
        )
    arguments = (query[:3], keys, values, int32(20), pages)
    result = program.module()(*arguments)
    wanted = prefill_page_attention(*arguments, return_lse=True)
    assert [bits(t) for t in result] == [bits(t) for t in wanted]


def test_dynamo_leaves_the_kernels_alone() -> None:
    arguments = random_tensors()
    wanted = prefill_page_attention(*arguments)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    @torch.compile(backend="eager")
    def given_up(*arguments: Tensor) -> list[Tensor]:
        results = []
        for _ in range(2):
            torch._dynamo.graph_break()  # in a loop: the frame runs as it is, but not what it calls
            results.append(torch.ops.pagefill.prefill_page_attention(*arguments))
        return results

    for grad_mode in (torch.enable_grad, torch.inference_mode):
        with grad_mode(), warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # Dynamo's about lru_cache
            assert [bits(t) for t in given_up(*arguments)] == [bits(wanted)] * 2
    assert torch._dynamo.utils.counters["frames"]["total"] <= 2  # given_up, once a mode
