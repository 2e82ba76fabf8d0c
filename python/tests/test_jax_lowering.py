"""What is compiled for CUDA, looked at without a GPU."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from jax_support import operands_of, problem  # before jax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pagefill
import pagefill.jax
from pagefill._c import structs
from pagefill.jax import _attention, _check
from pagefill.jax._library import PLATFORMS

pytestmark = pytest.mark.skipif(
    "cuda" not in PLATFORMS, reason="pagefill was built without the CUDA backend"
)

CACHE = jax.ShapeDtypeStruct((2, 8, 16, 64), jnp.float32)
ROWS = jax.ShapeDtypeStruct((8, 4, 64), jnp.float32)


def int32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


PREFILL = (ROWS, CACHE, CACHE, int32(1), int32(4))
RAGGED = (ROWS, CACHE, CACHE, int32(3), int32(2), int32(2, 4))


def lowered(function, arguments, *platforms):
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=platforms).as_text()


def targets(text):
    return re.findall(r"custom_call @(\w+)", text)


def prefill(*arguments, **options):
    return pagefill.jax.prefill_page_attention(*arguments, return_lse=True, **options)


def ragged(*arguments, **options):
    return pagefill.jax.ragged_page_attention(*arguments, return_lse=True, **options)


def test_without_a_gpu_the_workspace_is_scratch_memory_outside_of_command_buffers(monkeypatch):
    monkeypatch.setattr(_attention, "cuda_workspace", lambda *arguments: None)
    text = lowered(lambda *a: prefill(*a, sliding_window=77), PREFILL, "cuda")
    assert targets(text) == ["pagefill_attention_scratch"]
    assert "tensor<0xui8>" in text


def test_with_a_gpu_the_workspace_is_a_result_of_its_exact_size(monkeypatch):
    asked = []

    def size(operands, given, numbers, output, with_lse, maxima):
        asked.append((operands[0].shape, output, with_lse, maxima))
        return 4711

    monkeypatch.setattr(_attention, "cuda_workspace", size)
    text = lowered(lambda *a: prefill(*a, max_chunk_size=5, sliding_window=78), PREFILL, "cuda")
    assert targets(text) == ["pagefill_attention"]
    assert "tensor<4711xui8>" in text
    assert "max_chunk_size = 5 : i64, max_context_len = 0 : i64" in text
    assert asked == [((8, 4, 64), (8, 4, 64), True, (5, 0))]


def test_the_workspace_is_the_largest_that_a_gpu_of_this_process_needs(monkeypatch):
    sizes = {1: 300, 3: 5000, 6: 200}

    def workspace(shapes, operands, optional, numbers, output, with_lse, where, size):
        assert shapes._device_type == structs.CUDA
        size.value = sizes[shapes._device_index]
        return 0

    monkeypatch.setattr(_check, "_gpus", lambda: list(sizes))
    call = ([], {}, {}, (8, 4, 64), True, _attention.Maxima())
    with monkeypatch.context() as patched:
        patched.setattr(_check, "_workspace", workspace)
        assert _check.cuda_workspace(*call) == 5000
        patched.setattr(_check, "_workspace", lambda *arguments: 3)  # refused
        assert _check.cuda_workspace(*call) is None
    monkeypatch.setattr(_check, "_gpus", list)
    assert _check.cuda_workspace(*call) is None


def test_a_call_is_compiled_anew_for_the_kernels_that_the_environment_names(monkeypatch):
    traces = []

    def bind(*operands, **params):
        traces.append(os.environ.get("PAGEFILL_CUDA_TARGET"))
        return own(*operands, **params)

    own, arrays = _attention.bind, operands_of(problem())
    monkeypatch.setattr(_attention, "bind", bind)
    for target in ("auto", "auto", "portable", "auto"):
        monkeypatch.setenv("PAGEFILL_CUDA_TARGET", target)
        prefill(*arrays, sliding_window=79)
    assert traces == ["auto", "portable"]


def test_copy_pages_is_one_call_in_place():
    text = lowered(
        lambda *a: pagefill.jax.copy_pages(*a, status=jnp.zeros(4, jnp.int32)),
        (int32(3, 3), CACHE, CACHE),
        "cuda",
    )
    assert targets(text) == ["pagefill_copy_pages"]
    assert re.findall(r"operand_index = (\d)", text) == ["1", "2", "3"]


def test_gpus_are_those_that_jax_has_one_of_a_kind(monkeypatch):
    class Device(NamedTuple):
        device_kind: str
        local_hardware_id: int

    devices = [Device("H100", 2), Device("A10", 3), Device("H100", 4)]
    monkeypatch.setattr(jax, "local_devices", lambda backend: devices)
    assert sorted(_check._gpus()) == [3, 4]


def test_rows_of_no_sequence_hold_the_empty_state_before_the_call():
    text = lowered(ragged, RAGGED, "cuda")
    [call] = [line for line in text.splitlines() if "custom_call @pagefill" in line]
    assert call.count("output_operand_alias<") == 2
    assert "dense<0xFF800000>" in text  # -inf
    assert "output_operand_alias" not in lowered(prefill, PREFILL, "cuda")


def test_the_same_call_is_lowered_for_both_platforms():
    text = lowered(ragged, RAGGED, "cpu", "cuda")
    assert len(targets(text)) == 2
    assert targets(lowered(ragged, RAGGED, "cpu")) == ["pagefill_attention"]


def test_append_and_merge_are_lowered_for_cuda():
    tokens = jax.ShapeDtypeStruct((8, 2, 64), jnp.float32)
    append = (tokens, tokens, CACHE, CACHE, *RAGGED[3:])
    text = lowered(pagefill.jax.append_kv, append, "cuda")
    assert targets(text) == ["pagefill_append_kv"]
    assert text.count("output_operand_alias<") == 2
    lse = jax.ShapeDtypeStruct((8, 4), jnp.float32)
    text = lowered(pagefill.jax.merge_attention_states, (ROWS, lse, ROWS, lse), "cuda")
    assert targets(text) == ["pagefill_merge"]


STATUS = int32(4)


def test_a_status_is_written_where_it_was_given():
    for function, metadata, with_lse in (
        (pagefill.jax.prefill_page_attention, PREFILL, False),
        (prefill, PREFILL, True),
        (pagefill.jax.ragged_page_attention, RAGGED, False),
        (ragged, RAGGED, True),
    ):
        text = lowered(lambda *a, f=function: f(*a[:-1], status=a[-1]), (*metadata, STATUS), "cuda")
        [call] = [line for line in text.splitlines() if "custom_call @pagefill" in line]
        is_ragged = metadata is RAGGED
        alias = (
            f"output_tuple_indices = [{1 + with_lse}], operand_index = {5 + is_ragged}, "
            "operand_tuple_indices = []"
        )
        assert alias in call
        assert call.count("output_operand_alias<") == 1 + (1 + with_lse) * is_ragged
    scales = [jax.ShapeDtypeStruct((2, 8, 16), jnp.float32)] * 2
    cache = jax.ShapeDtypeStruct(CACHE.shape, jnp.int8)
    tokens = jax.ShapeDtypeStruct((8, 2, 64), jnp.float32)

    def append(*a):
        return pagefill.jax.append_kv(
            *a[:7], chosen_key_scale=a[7], chosen_value_scale=a[8], status=a[9]
        )

    arguments = (tokens, tokens, cache, cache, *RAGGED[3:], *scales, STATUS)
    text = lowered(append, arguments, "cuda")
    assert "output_tuple_indices = [4], operand_index = 9, operand_tuple_indices = []" in text
    assert [a.shape for a in jax.eval_shape(append, *arguments)][-1] == (4,)


def test_results_stand_in_front_of_the_status():
    shapes = {
        name: [a.shape for a in jax.tree.leaves(jax.eval_shape(function, *PREFILL, STATUS))]
        for name, function in (
            ("output", lambda *a: pagefill.jax.prefill_page_attention(*a[:-1], status=a[-1])),
            ("lse", lambda *a: prefill(*a[:-1], status=a[-1])),
        )
    }
    assert shapes == {"output": [(8, 4, 64), (4,)], "lse": [(8, 4, 64), (8, 4), (4,)]}


def test_vmap_of_calls_with_a_status_gives_each_its_own():
    rows = jax.ShapeDtypeStruct((3, *ROWS.shape), ROWS.dtype)

    def calls(query, status):
        attend = pagefill.jax.prefill_page_attention
        zeros = (jnp.zeros(a.shape, a.dtype) for a in PREFILL[1:])
        operands = list(zeros)
        return jax.vmap(lambda q: attend(q, *operands, status=status))(query)

    assert [a.shape for a in jax.eval_shape(calls, rows, STATUS)] == [(3, 8, 4, 64), (3, 4)]


def test_a_status_is_for_cuda_alone():
    tokens = jax.ShapeDtypeStruct((8, 2, 64), jnp.float32)
    append = (tokens, tokens, CACHE, CACHE, *RAGGED[3:], STATUS)
    for function, arguments in (
        (lambda *a: prefill(*a[:-1], status=a[-1]), (*PREFILL, STATUS)),
        (lambda *a: ragged(*a[:-1], status=a[-1]), (*RAGGED, STATUS)),
        (lambda *a: pagefill.jax.append_kv(*a[:-1], status=a[-1]), append),
    ):
        with pytest.raises(ValueError, match="status: expected None in a computation for the CPU"):
            lowered(function, arguments, "cpu")
        for bad, error, words in (
            (int32(3), ValueError, r"status: expected shape \[4\], got \[3\]"),
            (jax.ShapeDtypeStruct((4,), jnp.float32), TypeError, "status: expected dtype int32"),
        ):
            with pytest.raises(error, match=words):
                lowered(function, (*arguments[:-1], bad), "cuda")


def test_shapes_that_stay_open_are_exported_for_cuda():
    from jax import export

    chunk, pages = export.symbolic_shape("chunk, pages")
    rows = jax.ShapeDtypeStruct((chunk, 4, 64), jnp.float32)
    check = export.DisabledSafetyCheck.custom_call("pagefill_attention_scratch")
    for function, arguments in (
        (prefill, (rows, CACHE, CACHE, int32(1), int32(pages))),
        (ragged, (rows, CACHE, CACHE, int32(3), int32(2), int32(2, pages))),
    ):
        exported = export.export(jax.jit(function), platforms=["cuda"], disabled_checks=[check])
        assert "pagefill_attention_scratch" in exported(*arguments).mlir_module()


def test_maxima_are_for_cuda_alone():
    for name in ("max_chunk_size", "max_context_len"):
        with pytest.raises(ValueError, match=f"{name}: expected None in a computation for the CPU"):
            lowered(lambda *a: prefill(*a, **{name: 7}), PREFILL, "cpu")
        with pytest.raises(ValueError, match=f"{name}: expected None or at least 1, got -1"):
            lowered(lambda *a: prefill(*a, **{name: -1}), PREFILL, "cuda")


def test_a_bad_shape_is_named_when_a_call_for_cuda_is_traced():
    with pytest.raises(ValueError, match="query: expected num_q_heads a multiple"):
        bad = jax.ShapeDtypeStruct((8, 3, 64), np.float32)
        lowered(prefill, (bad, *PREFILL[1:]), "cuda")


def test_the_environment_may_ask_for_the_backend_of_cuda(monkeypatch):
    if not any(b.available for b in pagefill.list_backends() if b.memory == "cuda"):
        pytest.skip("no GPU: PAGEFILL_BACKEND=cuda is an error")
    monkeypatch.setenv("PAGEFILL_BACKEND", "cuda")
    assert targets(lowered(lambda *a: prefill(*a, sliding_window=79), PREFILL, "cuda"))
