"""The PyTorch face on a GPU: `pytest -m gpu`."""

from __future__ import annotations

import gc
import math
import warnings
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from cases import golden
from torch import Tensor
from torch_cases import int32, random_batch, random_tensors, random_tokens, tensors

import pagefill
from pagefill.torch import (
    append_kv,
    copy_pages,
    merge_attention_states,
    prefill_page_attention,
    ragged_page_attention,
)

HAS_CUDA = torch.cuda.is_available() and any(
    b.available for b in pagefill.list_backends() if b.memory == "cuda"
)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_CUDA, reason="no GPU that torch and pagefill see"),
    pytest.mark.filterwarnings("default"),  # torch's own
]

# Of the largest value: rounded weights and results, and sums of some hundred terms.
TOLERANCE = {torch.float32: 2.0**-16, torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}


def cuda(given: Any) -> Any:
    """Tensors, in lists and dictionaries, on the device."""
    if isinstance(given, Tensor):
        return given.cuda()
    if isinstance(given, dict):
        return {name: cuda(value) for name, value in given.items()}
    return [cuda(value) for value in given] if isinstance(given, (list, tuple)) else given


def bits(given: Any) -> Any:
    if isinstance(given, (list, tuple)):
        return [bits(t) for t in given]
    return given.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes()


def assert_close(got: Tensor, wanted: Tensor) -> None:
    got, wanted = got.cpu().double(), wanted.cpu()
    tolerance = TOLERANCE[wanted.dtype] * max(1.0, wanted.double().abs().nan_to_num().max().item())
    finite = torch.isfinite(wanted.double())
    assert (got[finite] - wanted.double()[finite]).abs().max().item() <= tolerance
    assert (got[~finite] == wanted.double()[~finite]).all()


def test_golden_cases_are_met_within_rounding(golden_file: Path) -> None:
    case = golden(golden_file)
    arguments, options = tensors(case)
    output, lse = prefill_page_attention(*cuda(arguments), **cuda(options), return_lse=True)
    assert output.is_cuda
    assert output.dtype == arguments[0].dtype
    expected = torch.from_numpy(case.expected)
    largest = max(1.0, expected.abs().max().item())
    error = (output.cpu().double() - expected).abs().max().item()
    assert error <= TOLERANCE[output.dtype] * largest
    expected = torch.from_numpy(case.expected_lse)
    finite = torch.isfinite(expected)
    error = (lse.cpu().double() - expected)[finite].abs()
    assert (error <= 2.0**-14 * (1 + expected[finite].abs())).all()
    assert (lse.cpu()[~finite] == -math.inf).all()


OPTIONS: dict[str, dict[str, Any]] = {
    "softmax_scale": {"softmax_scale": 0.2},
    "attn_logits_soft_cap": {"attn_logits_soft_cap": 2.0},
    "sliding_window": {"sliding_window": 7},
    "mask_value": {"mask_value": -3.0},
    "sinks": {"sinks": torch.linspace(-1, 3, 4)},
    "kv_start": {"kv_start": int32(8)},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_changes_the_result_as_on_the_cpu(name: str) -> None:
    arguments, options = random_tensors(), OPTIONS[name]
    got = prefill_page_attention(*cuda(arguments), **cuda(options), return_lse=True)
    plain = prefill_page_attention(*cuda(arguments), return_lse=True)
    wanted = prefill_page_attention(*arguments, **options, return_lse=True)
    for index in range(2):
        assert bits(got[index]) != bits(plain[index])
        assert_close(got[index], wanted[index])


def test_a_ragged_batch_has_the_bits_of_its_sequences_and_padding_is_empty() -> None:
    query, keys, values, starts, lens, table = cuda(random_batch())
    batch = (query, keys, values, starts, lens, table)
    output, lse = ragged_page_attention(*batch, return_lse=True)
    assert_close(output, ragged_page_attention(*random_batch()))
    for s, (begin, end) in enumerate(((0, 5), (5, 5), (5, 6))):
        alone = prefill_page_attention(
            query[begin:end], keys, values, lens[s : s + 1], table[s], return_lse=True
        )
        assert bits((output[begin:end], lse[begin:end])) == bits(alone)
    assert (output[6:] == 0).all()
    assert (lse[6:] == -math.inf).all()
    out, out_lse = torch.full_like(output, 7), torch.full_like(lse, 7)
    given = ragged_page_attention(*batch, out=out, out_lse=out_lse, return_lse=True)
    assert given[0] is out
    assert bits((out[:6], out_lse[:6])) == bits((output[:6], lse[:6]))
    assert (out[6:] == 7).all()
    assert (out_lse[6:] == 7).all()
    for maxima in ({"max_chunk_size": 5}, {"max_context_len": 30}):
        assert bits(ragged_page_attention(*batch, **maxima)) == bits(output)


def test_strides_are_read_in_place() -> None:
    query, keys, values, length, pages = cuda(random_tensors())
    wanted = bits(prefill_page_attention(query, keys, values, length, pages))
    both = torch.stack([keys, values], dim=2)
    fused = torch.zeros(5, 3, 4, 16, device="cuda")
    fused[:, 1] = query
    got = prefill_page_attention(fused[:, 1], both[:, :, 0], both[:, :, 1], length, pages)
    assert bits(got) == wanted


def test_lengths_of_other_kinds_are_taken() -> None:
    query, keys, values, length, pages = cuda(random_tensors())
    wanted = bits(prefill_page_attention(query, keys, values, length, pages))
    for other in (37, length.long(), length[0]):
        assert bits(prefill_page_attention(query, keys, values, other, pages.long())) == wanted


DTYPES = [torch.float32, torch.bfloat16, torch.float16]
QUANTISED = [torch.int8, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", [*DTYPES, *QUANTISED], ids=str)
def test_append_kv_writes_the_bits_of_the_cpu(dtype: Any) -> None:
    batch = random_batch()
    # In float32, of numbers that the cache's dtype has: torch converts each on the CPU.
    caches = [(t * 4).to(dtype) for t in batch[1:3]]
    keys, values = random_tokens(batch)
    choices: list[dict[str, Tensor]] = [{}]
    if dtype in QUANTISED:
        choices = [{"key_scale": torch.full((1,), 0.05), "value_scale": torch.full((2,), 0.04)}]
        choices.append({f"chosen_{k}_scale": torch.ones(2, 12, 8) for k in ("key", "value")})
    for scales in choices:
        here, there = [t.clone() for t in caches], cuda(caches)
        given = cuda(scales)
        append_kv(keys, values, *here, *batch[3:], **scales)
        append_kv(*cuda((keys, values)), *there, *cuda(batch[3:]), **given)
        assert bits(there) == bits(here)
        assert bits(list(given.values())) == bits(list(scales.values()))


COPIES = [(3, 5, 8), (5, 0, 3), (1, 5, 2)]


@pytest.mark.parametrize("dtype", [*DTYPES, *QUANTISED], ids=str)
def test_copy_pages_writes_the_bits_of_the_cpu(dtype: Any) -> None:
    caches = [(t * 4).to(dtype) for t in random_batch()[1:3]]
    scales: dict[str, Tensor] = {}
    if dtype in QUANTISED:
        scales = {f"{k}_scale": torch.rand(2, 12, 8) for k in ("key", "value")}
    here = [t.clone() for t in caches]
    moved = {name: t.clone() for name, t in scales.items()}
    copy_pages(COPIES, *here, **moved)
    numbers = torch.tensor(COPIES)
    for copies in (COPIES, numbers, numbers.int().cuda(), numbers.cuda().t().contiguous().t()):
        there, given = cuda(caches), cuda(scales)
        copy_pages(copies, *there, **given)
        assert bits(there) == bits(here)
        assert bits(list(given.values())) == bits(list(moved.values()))


def test_a_bad_copy_is_refused_on_the_cpu_and_reported_on_the_device() -> None:
    caches = cuda(random_batch()[1:3])
    wanted = [t.clone() for t in caches]
    copies, status = [(0, 1, 1), (0, 12, 1)], cuda(int32(0, 0, 0, 0))
    with pytest.raises(ValueError, match="copies: expected a destination from 0 to 11, got 12 in"):
        copy_pages(copies, *caches)
    assert bits(caches) == bits(wanted)
    copy_pages(torch.tensor(copies).cuda(), *caches, status=status)
    assert status.tolist() == [6, 1, 1, 12]
    copy_pages(copies[:1], *wanted)
    assert bits(caches) == bits(wanted)
    with pytest.raises(NotImplementedError, match="value_cache: expected memory of CUDA device 0"):
        copy_pages(copies, caches[0], caches[1].cpu())
    with pytest.raises(ValueError, match=r"copies: expected shape \[num_copies, 3\]"):
        copy_pages(torch.tensor(copies)[:, :2], *caches)


def test_a_graph_copies_what_stands_on_the_device_when_it_is_replayed() -> None:
    caches, copies = cuda(random_batch()[1:3]), cuda(torch.tensor(COPIES).int())
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        copy_pages(copies, *caches)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        copy_pages(copies, *caches)
    for other in (COPIES, [(0, 11, 8), (11, 2, 4), (0, 1, 0)]):
        wanted = [t.clone() for t in caches]
        copy_pages(other, *wanted)
        copies.copy_(torch.tensor(other))
        graph.replay()
        assert bits(caches) == bits(wanted)


def test_merged_states_are_those_of_the_cpu_within_rounding() -> None:
    batch = random_batch()
    a = ragged_page_attention(*batch, return_lse=True)
    b = ragged_page_attention(*batch, softmax_scale=0.1, return_lse=True)
    wanted = merge_attention_states(*a, *b)
    states = cuda((*a, *b))
    got = merge_attention_states(*states)
    for index in range(2):
        assert_close(got[index], wanted[index])
    into = merge_attention_states(*states, out=states[0], out_lse=states[1])
    assert into[0] is states[0]
    assert bits(into) == bits(got)


def test_a_call_waits_for_its_stream_and_for_no_other() -> None:
    case = random_tensors(chunk_size=64, context_len=2000, num_q_heads=8, head_dim=64)
    query, keys, values, length, pages = cuda(case)
    wanted = bits(prefill_page_attention(query, keys, values, length, pages))
    late = torch.zeros_like(query)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        late.copy_(query)
        output = prefill_page_attention(late, keys, values, length, pages)
        busy = not side.query()
    assert busy  # the call came back before its stream got to it
    side.synchronize()
    assert bits(output) == wanted


def test_a_graph_replays_other_lengths_than_it_captured() -> None:
    keys, values = torch.randn(2, 2, 200, 16, 64, device="cuda").to(torch.bfloat16)
    query = torch.randn(3, 8, 64, device="cuda").to(torch.bfloat16)
    tokens = torch.randn(2, 3, 2, 64, device="cuda").to(torch.bfloat16)
    table = torch.randperm(192, device="cuda").to(torch.int32).view(3, 64)
    starts, lens = cuda(int32(0, 1, 2, 3)), cuda(int32(1000, 512, 3))

    def step() -> tuple[Tensor, Tensor]:
        append_kv(*tokens, keys, values, starts, lens, table)
        return ragged_page_attention(
            query, keys, values, starts, lens, table, return_lse=True, max_chunk_size=1
        )

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    for lengths in ((1000, 512, 3), (1, 1, 1), (1024, 7, 900)):
        lens.copy_(int32(*lengths))
        other = torch.full((1 << 24,), math.nan, device="cuda")  # in it lies no workspace
        graph.replay()
        replayed = bits(results)
        del other
        assert replayed == bits(step())


def test_a_compiled_step_has_the_bits_of_the_eager_one() -> None:
    batch, tokens = cuda(random_batch()), cuda(random_tokens(random_batch()))

    def step(query: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        append_kv(*rest)
        state = ragged_page_attention(query, *rest[2:], return_lse=True, max_chunk_size=5)
        older = ragged_page_attention(query, *rest[2:], sliding_window=4, return_lse=True)
        return merge_attention_states(*state, *older)

    eager = [t.clone() for t in batch[1:3]]
    wanted = bits(step(batch[0], *tokens, *eager, *batch[3:]))
    for options in ({"backend": "aot_eager"}, {"backend": "inductor"}, {"mode": "reduce-overhead"}):
        torch._dynamo.reset()
        compiled = torch.compile(step, fullgraph=True, **options)
        caches = [t.clone() for t in batch[1:3]]
        with torch.no_grad():
            for _ in range(3):
                got = bits(compiled(batch[0], *tokens, *caches, *batch[3:]))
                assert got == wanted, options
        assert bits(caches) == bits(eager)


def test_opcheck_passes_on_tensors_of_the_device() -> None:
    single, batch = cuda(random_tensors()), cuda(random_batch())
    tokens, status = cuda(random_tokens(random_batch())), cuda(int32(0, 0, 0, 0))
    state = ragged_page_attention(*batch, return_lse=True)
    options = (None, None, 30.0, 5, None, None, None, None, None, None, None, 5, 40)
    calls: dict[str, tuple[Any, ...]] = {
        "prefill_page_attention": (*single, *options),
        "prefill_page_attention_lse": (*single,),
        "ragged_page_attention": (*batch,),
        "ragged_page_attention_out": (*map(torch.clone, state), *batch, *options, status),
        "merge_attention_states": (*state, *state),
        "append_kv": (*tokens, *batch[1:]),
        "copy_pages": (cuda(int32(0, 1, 8).view(1, 3)), *batch[1:3], None, None, None, None, None),
    }
    for name, arguments in calls.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.library.opcheck(getattr(torch.ops.pagefill, name).default, arguments)


def test_what_is_bad_on_the_device_is_reported_and_comes_out_as_nan() -> None:
    query, keys, values, starts, lens, table = cuda(random_batch())
    wanted = ragged_page_attention(query, keys, values, starts, lens, table)
    status = cuda(int32(0, 0, 0, 0))
    bad = table.clone()
    bad[0, 1] = 12
    output = ragged_page_attention(query, keys, values, starts, lens, bad, status=status)
    assert status.tolist() == [4, 0, 1, 12]
    assert output[:5].isnan().all()
    assert bits(output[5:]) == bits(wanted[5:])
    status.zero_()
    ragged_page_attention(
        query, keys, values, starts, lens, table, max_chunk_size=4, status=status, out=output
    )
    assert status.tolist()[0] == 5
    status.zero_()
    tokens = cuda(random_tokens(random_batch()))
    append_kv(*tokens, keys, values, starts, lens, bad - 12, status=status)
    assert status.tolist()[0] == 4
    # A number beyond int32 is no page.
    wide = table.long()
    wide[0, 0] += 2**32
    assert ragged_page_attention(query, keys, values, starts, lens, wide)[:5].isnan().all()


def test_an_argument_elsewhere_is_named() -> None:
    single = cuda(random_tensors())
    names = ("query", "key_cache", "value_cache", "context_len", "page_indices")
    for place, name in enumerate(names):
        mixed = list(single)
        mixed[place] = single[place].cpu()
        words = f"^{name}: expected memory of CUDA device 0, where .* is, got memory of the CPU$"
        with pytest.raises(NotImplementedError, match=words):
            prefill_page_attention(*mixed)
    with pytest.raises(NotImplementedError, match="^out: expected memory of CUDA device 0"):
        prefill_page_attention(*single, out=torch.zeros(5, 4, 16))
    batch = cuda(random_batch())
    tokens = cuda(random_tokens(random_batch()))
    with pytest.raises(NotImplementedError, match="^context_lens: expected memory of CUDA device"):
        append_kv(*tokens, *batch[1:4], batch[4].cpu(), batch[5])


def test_bad_arguments_have_the_messages_of_the_cpu() -> None:
    query, keys, values, length, pages = cuda(random_tensors())
    good = (query, keys, values, length, pages)
    for bad, options, words in (
        ((query[:, :3], keys, values, length, pages), {}, "query: expected num_q_heads a multiple"),
        ((query, keys, values, length[:0], pages), {}, "context_len: expected shape"),
        (good, {"num_threads": 2}, "num_threads: expected None"),
        (good, {"max_context_len": -1}, r"^max_context_len: expected 0 \(num_pages \* page_size"),
        (good, {"max_chunk_size": -1}, r"^max_chunk_size: expected 0 \(chunk_size\)"),
        (good, {"out": query}, "^out: .*query"),
        (good, {"status": length}, "^status: expected shape"),
        (good, {"softmax_scale": math.nan}, "softmax_scale: expec"),
    ):
        with pytest.raises(ValueError, match=words):
            prefill_page_attention(*bad, **options)
    with pytest.raises(NotImplementedError, match="backend: expected a backend that works on"):
        prefill_page_attention(query, keys, values, length, pages, backend="cpu")
    with pytest.raises(ValueError, match="cpu_target: expected auto"):
        prefill_page_attention(query, keys, values, length, pages, cpu_target="avx2")
    with pytest.raises(NotImplementedError, match="query: .*requires_grad"):
        prefill_page_attention(query.clone().requires_grad_(), keys, values, length, pages)
    assert prefill_page_attention(query, keys, values, length, pages, backend="cuda").is_cuda


def test_numpys_face_names_the_argument_that_is_on_a_gpu() -> None:
    case = random_tensors()
    for place, name in enumerate(("query", "key_cache", "value_cache", "context_len", "page_ind")):
        mixed = list(case)
        mixed[place] = case[place].cuda()
        words = f"^{name}.*: expected memory of the CPU, got memory of CUDA device 0: pagefill"
        with pytest.raises(NotImplementedError, match=words):
            pagefill.prefill_page_attention(*mixed)
    with pytest.raises(NotImplementedError, match="^query: expected memory of the CPU"):
        pagefill.prefill_page_attention(*cuda(case))


def test_calls_allocate_from_torch_and_give_it_back() -> None:
    arguments = cuda(random_tensors(chunk_size=8, context_len=5000, head_dim=64))
    prefill_page_attention(*arguments)
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    output = prefill_page_attention(*arguments)
    assert torch.cuda.memory_allocated() <= before + 2 * output.nbytes
    assert torch.cuda.max_memory_allocated() > before  # the workspace was torch's


def test_another_choice_of_kernels_gets_a_workspace_of_its_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shape = {"chunk_size": 300, "context_len": 5000, "head_dim": 64}
    arguments = [t.half() if t.is_floating_point() else t for t in random_tensors(**shape)]
    wanted = prefill_page_attention(*arguments)
    arguments = cuda(arguments)
    for target in ("auto", "portable", "auto"):
        monkeypatch.setenv("PAGEFILL_CUDA_TARGET", target)
        assert_close(prefill_page_attention(*arguments), wanted)
    monkeypatch.setenv("PAGEFILL_CUDA_TARGET", "sm20")
    with pytest.raises(ValueError, match="PAGEFILL_CUDA_TARGET: expected auto or"):
        prefill_page_attention(*arguments)


@pytest.mark.skipif(
    not HAS_CUDA or torch.cuda.device_count() < 2, reason="no second GPU that torch sees"
)
def test_tensors_of_another_device_than_the_current_one() -> None:
    arguments = random_tensors()
    wanted = bits(prefill_page_attention(*cuda(arguments)))
    there = [t.to("cuda:1") for t in arguments]
    output = prefill_page_attention(*there)
    assert output.device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
    assert bits(output) == wanted
