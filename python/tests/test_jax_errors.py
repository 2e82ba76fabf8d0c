"""What bad input gets: its name, what was expected, what came; before run time where shapes
decide."""

from __future__ import annotations

import dataclasses

import jax_support as support  # before jax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pagefill
import pagefill.jax
from pagefill.jax._library import PLATFORMS
from jax_support import assert_same_bits, operands_of, problem

F32, I32 = np.float32, np.int32
SHAPES = {
    "query": ((24, 8, 64), F32),
    "key_cache": ((2, 10, 16, 64), F32),
    "value_cache": ((2, 10, 16, 64), F32),
    "context_len": ((1,), I32),
    "page_indices": ((7,), I32),
}
BAD_SHAPES = {
    "query": ((24, 8), "query: expected shape"),
    "query heads": ((24, 7, 64), "query: expected num_q_heads a multiple of num_kv_heads 2, got 7"),
    "query dim": ((24, 8, 60), "query: expected head_dim a multiple of 8 from 8 to 512, got 60"),
    "query rank": ((1, 24, 8, 64, 1), r"query: expected shape \[chunk_size, .*, got \[1, 24, 8, 64, 1\]"),
    "key_cache rank": ((1, 2, 10, 16, 64), "key_cache: expected at most 4 dimensions"),
    "query shape": ((8, 64), r"query: expected shape \[chunk_size, num_q_heads, head_dim\], got"),
    "key_cache": ((2, 10, 0, 64), "key_cache: expected page_size of at least 1, got 0"),
    "value_cache": ((2, 9, 16, 64), r"value_cache: expected shape .*total_num_pages=10"),
    "context_len": ((2,), r"context_len: expected shape \[1\], got \[2\]"),
    "page_indices": ((1, 7), r"page_indices: expected shape \[num_pages\], got \[1, 7\]"),
}
BAD_DTYPES = {
    "query": (I32, "query: expected dtype float32 or bfloat16 or float16, got int32"),
    "key_cache": (np.uint8, "key_cache: expected dtype .*, got uint8"),
    "value_cache": (np.int8, "value_cache: expected dtype float32, got int8"),
    "context_len": (F32, "context_len: expected dtype int32, got float32"),
    "page_indices": (np.int16, "page_indices: expected dtype int32, got int16"),
}


UNKNOWN = {"query": "float32 or bfloat16 or float16", "value_cache": "of key_cache"}


def trace(shapes, **options):
    arrays = [jax.ShapeDtypeStruct(*shape) for shape in shapes.values()]
    return jax.eval_shape(lambda *a: pagefill.jax.prefill_page_attention(*a, **options), *arrays)


def test_shapes_and_dtypes_of_the_result_are_known_without_running():
    output, lse = trace(SHAPES, return_lse=True)
    assert (output.shape, output.dtype) == ((24, 8, 64), F32)
    assert (lse.shape, lse.dtype) == ((24, 8), F32)


@pytest.mark.parametrize("case", BAD_SHAPES)
def test_a_bad_shape_is_a_value_error_when_traced(case):
    shape, message = BAD_SHAPES[case]
    name = case.split(" ")[0]
    with pytest.raises(ValueError, match=message):
        trace(SHAPES | {name: (shape, SHAPES[name][1])})


@pytest.mark.parametrize("name", BAD_DTYPES)
def test_a_bad_dtype_is_a_type_error_when_traced(name):
    dtype, message = BAD_DTYPES[name]
    with pytest.raises(TypeError, match=message):
        trace(SHAPES | {name: (SHAPES[name][0], dtype)})


@pytest.mark.parametrize("name", UNKNOWN)
def test_of_a_dtype_that_nothing_has_the_error_says_what_the_argument_may_be(name):
    message = f"^{name}: expected dtype {UNKNOWN[name]}, got uint8"
    with pytest.raises(TypeError, match=message):
        trace(SHAPES | {name: (SHAPES[name][0], np.uint8)})


@pytest.mark.parametrize("name", SHAPES)
def test_numbers_of_64_bits_are_type_errors_where_jax_has_them(name):
    from jax import config

    config.update("jax_enable_x64", True)
    try:
        shape, dtype = SHAPES[name]
        wide = np.float64 if dtype is F32 else np.int64
        with pytest.raises(TypeError, match=f"{name}: expected dtype .*, got {wide.__name__}"):
            trace(SHAPES | {name: (shape, wide)})
        operands = operands_of(problem())
        operands[3] = 100  # an integer stays one of 32 bits
        want = pagefill.prefill_page_attention(*operands)
        assert_same_bits(pagefill.jax.prefill_page_attention(*operands), want)
    finally:
        config.update("jax_enable_x64", False)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"softmax_scale": float("nan")}, ValueError, "softmax_scale: expected a finite number"),
        ({"softmax_scale": "1"}, TypeError, "softmax_scale: expected a number, got '1'"),
        ({"attn_logits_soft_cap": 0.0}, ValueError, "attn_logits_soft_cap: expected a finite"),
        ({"sliding_window": 0}, ValueError, "sliding_window: expected at least 1, got 0"),
        ({"sliding_window": 1.5}, TypeError, "sliding_window: expected an integer, got 1.5"),
        ({"mask_value": float("inf")}, ValueError, "mask_value: expected a finite number or -inf"),
        ({"sinks": np.zeros(7, F32)}, ValueError, r"sinks: expected shape \[num_q_heads=8\]"),
        ({"sinks": np.zeros(8, I32)}, TypeError, "sinks: expected dtype float32, got int32"),
        ({"kv_start": np.zeros(2, I32)}, ValueError, r"kv_start: expected shape \[num_seqs=1\]"),
        ({"key_scale": np.ones(1, F32)}, ValueError, "key_scale: expected none, as key_cache"),
        ({"value_scale": np.ones(1, F32)}, ValueError, "value_scale: expected none, as"),
    ],
    ids=str,
)
def test_a_bad_option_is_an_error_when_traced(options, kind, message):
    with pytest.raises(kind, match=message):
        trace(SHAPES, **options)


MASK = "mask_value: expected a number"


@pytest.mark.parametrize("value", [np.array([1.0, 2.0]), "low", None], ids=repr)
def test_a_mask_value_that_is_no_number_is_a_type_error(value):
    with pytest.raises(TypeError, match=MASK):
        trace(SHAPES, mask_value=value)
    with pytest.raises(TypeError, match=MASK):
        jax.eval_shape(lambda mask: trace(SHAPES, mask_value=mask), 1.0)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("value", [[1, 2], None, "x", 1.5], ids=repr)
def test_what_is_no_array_is_a_type_error_that_names_it(name, value):
    arguments = dict(zip(SHAPES, operands_of(problem()), strict=True)) | {name: value}
    message = f"{name}: expected an .*array of JAX or NumPy, got {type(value).__name__}"
    with pytest.raises(TypeError, match=message):
        pagefill.jax.prefill_page_attention(**arguments)
    if name in list(SHAPES)[:3]:
        batch = [arguments[name] for name in list(SHAPES)[:3]]
        batch += [np.array([0, 24]), 100, np.ones((1, 7), I32)]
        with pytest.raises(TypeError, match=message):
            pagefill.jax.ragged_page_attention(*batch)
        with pytest.raises(TypeError, match="lse_b: expected an array of JAX or NumPy"):
            pagefill.jax.merge_attention_states(*operands_of(problem())[:3], value)


@pytest.mark.parametrize("value", [[1, 2], "x"], ids=repr)
def test_an_option_that_is_no_array_is_a_type_error_that_names_it(value):
    for name in ("sinks", "kv_start", "key_scale", "value_scale"):
        with pytest.raises(TypeError, match=f"{name}: expected an .*array of JAX or NumPy"):
            trace(SHAPES, **{name: value})


CALLS = {
    "attention": lambda o: pagefill.jax.prefill_page_attention(*o),
    "append": lambda o: pagefill.jax.append_kv(
        o[0][:, :2], o[0][:, :2], *o[1:3], np.array([0, 24]), o[3], o[4][None]
    ),
    "merge": lambda o: pagefill.jax.merge_attention_states(o[0], o[0][..., 0], o[0], o[0][..., 0]),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PAGEFILL_NUM_THREADS", "many"),
        ("PAGEFILL_BACKEND", "abacus"),
        ("PAGEFILL_CPU_TARGET", "i8086"),
    ],
)
def test_a_wrong_environment_is_an_error_when_traced(monkeypatch, variable, value, call):
    operands = [jnp.asarray(operand) for operand in operands_of(problem())]
    jax.clear_caches()  # what was traced before is not traced again
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f'^{variable}: expected .*, got "{value}"'):
        jax.eval_shape(lambda: CALLS[call](operands))


def test_the_environment_chooses_the_backend_of_what_is_compiled_already(monkeypatch):
    operands = operands_of(problem())
    compiled = jax.jit(pagefill.jax.prefill_page_attention).lower(*operands).compile()
    monkeypatch.setenv("PAGEFILL_BACKEND", "reference")
    assert_same_bits(compiled(*operands), pagefill.prefill_page_attention(*operands))
    monkeypatch.setenv("PAGEFILL_BACKEND", "abacus")
    with pytest.raises(support.RUN_TIME_ERRORS, match="PAGEFILL_BACKEND: expected"):
        jax.block_until_ready(compiled(*operands))


def test_a_traced_number_is_a_type_error_that_names_it():
    operands = operands_of(problem())

    @jax.jit
    def attend(scale):
        return pagefill.jax.prefill_page_attention(*operands, softmax_scale=scale)

    with pytest.raises(TypeError, match="softmax_scale: expected a number"):
        attend(0.5)


@pytest.mark.parametrize(
    ("length", "kind", "message"),
    [
        (True, TypeError, "context_len: expected an integer, got True"),
        (2**31, ValueError, "context_len: expected an integer of 32 bits, got 2147483648"),
        (1.5, TypeError, "context_len: expected dtype int32"),
    ],
)
def test_a_bad_length_is_an_error_when_traced(length, kind, message):
    operands = operands_of(problem())
    operands[3] = np.float32(length) if isinstance(length, float) else length
    with pytest.raises(kind, match=message):
        pagefill.jax.prefill_page_attention(*operands)


RAGGED = {
    "query": ((24, 8, 64), F32),
    "key_cache": ((2, 10, 16, 64), F32),
    "value_cache": ((2, 10, 16, 64), F32),
    "query_starts": ((4,), I32),
    "context_lens": ((3,), I32),
    "page_table": ((3, 7), I32),
}


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("query_starts", (3,), r"query_starts: expected shape \[num_seqs \+ 1=4\], got \[3\]"),
        ("context_lens", (3, 1), r"context_lens: expected shape \[num_seqs\]"),
        ("page_table", (2, 7), r"page_table: expected shape \[num_seqs=3, max_pages\]"),
    ],
)
def test_a_bad_shape_of_a_ragged_batch_is_a_value_error_when_traced(name, shape, message):
    shapes = RAGGED | {name: (shape, I32)}
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            pagefill.jax.ragged_page_attention,
            *(jax.ShapeDtypeStruct(*one) for one in shapes.values()),
        )


@pytest.mark.parametrize(
    ("index", "shape", "dtype", "kind", "message"),
    [
        (0, (5, 4), F32, ValueError, "output_a: expected shape"),
        (0, (5, 4, 16), I32, TypeError, "output_a: expected dtype float32 or"),
        (1, (5, 3), F32, ValueError, r"lse_a: expected shape \[5, 4\], got \[5, 3\]"),
        (2, (6, 4, 16), F32, ValueError, r"output_b: expected shape \[5, 4, 16\]"),
        (2, (5, 4, 16), np.float16, TypeError, "output_b: expected dtype float32, got float16"),
        (3, (5, 4), np.float16, TypeError, "lse_b: expected dtype float32, got float16"),
    ],
)
def test_bad_states_to_merge_are_errors_when_traced(index, shape, dtype, kind, message):
    shapes = [((5, 4, 16), F32), ((5, 4), F32)] * 2
    shapes[index] = (shape, dtype)
    with pytest.raises(kind, match=message):
        jax.eval_shape(
            pagefill.jax.merge_attention_states,
            *(jax.ShapeDtypeStruct(*one) for one in shapes),
        )


def test_bad_tokens_to_append_are_errors_when_traced():
    shapes = dict(
        keys=jax.ShapeDtypeStruct((9, 2, 64), F32),
        values=jax.ShapeDtypeStruct((9, 2, 64), F32),
        key_cache=jax.ShapeDtypeStruct((2, 10, 16, 64), F32),
        value_cache=jax.ShapeDtypeStruct((2, 10, 16, 64), F32),
        query_starts=jax.ShapeDtypeStruct((2,), I32),
        context_lens=jax.ShapeDtypeStruct((1,), I32),
        page_table=jax.ShapeDtypeStruct((1, 7), I32),
    )
    bad = shapes | {"keys": jax.ShapeDtypeStruct((9, 3, 64), F32)}
    with pytest.raises(ValueError, match="keys: expected shape"):
        jax.eval_shape(lambda a: pagefill.jax.append_kv(**a), bad)
    bad = shapes | {"values": jax.ShapeDtypeStruct((9, 2, 64), np.float16)}
    with pytest.raises(TypeError, match="values: expected dtype float32, got float16"):
        jax.eval_shape(lambda a: pagefill.jax.append_kv(**a), bad)
    bad = shapes | {"chosen_key_scale": jax.ShapeDtypeStruct((2, 10, 16), F32)}
    with pytest.raises(
        ValueError, match="chosen_key_scale: expected none, as key_cache is float32"
    ):
        jax.eval_shape(lambda a: pagefill.jax.append_kv(**a), bad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context_len": np.array([113], I32)}, "context_len: expected at most 112 tokens"),
        ({"context_len": np.array([-1], I32)}, "context_len: expected lengths >= 0, got -1"),
        ({"page_indices": np.full(7, 10, I32)}, "page_indices: expected pages from 0 to 9"),
    ],
)
@pytest.mark.parametrize("jit", [False, True])
def test_bad_lengths_and_pages_are_runtime_errors_with_the_message_of_the_library(
    change, message, jit
):
    case = dataclasses.replace(problem(), **change)
    attend = pagefill.jax.prefill_page_attention
    with pytest.raises(support.RUN_TIME_ERRORS, match=message):
        jax.block_until_ready((jax.jit(attend) if jit else attend)(*case.arguments))


@pytest.mark.parametrize("platform", sorted({"cuda", "rocm", "tpu"} - set(PLATFORMS)))
def test_another_platform_gets_one_clear_error(platform):
    from jax import export

    exported = export.export(jax.jit(pagefill.jax.prefill_page_attention), platforms=[platform])
    shapes = (jax.ShapeDtypeStruct(*shape) for shape in SHAPES.values())
    with pytest.raises(NotImplementedError, match=f"runs on cpu.*got one for {platform}"):
        exported(*shapes)


def test_integers_of_numpy_mean_what_they_mean_in_the_numpy_face():
    operands = operands_of(problem())
    want = pagefill.prefill_page_attention(*operands)
    attend = pagefill.jax.prefill_page_attention
    for kind in (np.int64, np.uint64, np.int16, np.uint8):
        wide = [*operands[:3], *(operand.astype(kind) for operand in operands[3:])]
        assert_same_bits(attend(*wide), want)
    assert_same_bits(attend(*operands, kv_start=np.array(0)), want)

    # Cut to 32 bits they would be good again.
    for name in ("context_len", "kv_start"):
        options = {"kv_start": np.array([2**32])} if name == "kv_start" else {}
        length = np.array([2**32 + 100]) if name == "context_len" else operands[3]
        with pytest.raises(ValueError, match=f"{name}: expected numbers of 32 bits, got 42949"):
            attend(*operands[:3], length, operands[4], **options)
    pages = operands[4] + np.int64(2**32)
    with pytest.raises(support.RUN_TIME_ERRORS, match="page_indices: .* got -1 in entry 0"):
        jax.block_until_ready(attend(*operands[:4], pages))
    assert_same_bits(attend(*operands[:4], np.append(operands[4].astype(np.int64), 2**40)), want)


def test_integers_of_numpy_are_converted_in_a_ragged_batch_and_for_append():
    query, keys, values, _, pages = operands_of(problem())
    starts, lens, table = np.array([0, 24]), np.array([100]), pages[None].astype(np.int64)
    want = pagefill.ragged_page_attention(query, keys, values, starts, lens, table)
    ragged = pagefill.jax.ragged_page_attention
    assert_same_bits(ragged(query, keys, values, starts, lens, table), want)
    tokens = (query[:, :2], query[:, 2:4])
    caches = pagefill.jax.append_kv(*tokens, keys, values, starts, lens, table)
    pagefill.append_kv(*tokens, keys, values, starts, lens, table)
    for got, wanted in zip(caches, (keys, values), strict=True):
        assert_same_bits(got, wanted)
    with pytest.raises(ValueError, match="query_starts: expected numbers of 32 bits"):
        ragged(query, keys, values, starts + 2**32, lens, table)
    with pytest.raises(ValueError, match="context_lens: expected numbers of 32 bits"):
        pagefill.jax.append_kv(*tokens, keys, values, starts, lens + 2**32, table)


def test_an_error_leaves_the_next_call_as_it_was():
    operands = operands_of(problem())
    want = pagefill.jax.prefill_page_attention(*operands)
    bad = [*operands[:3], np.array([1000], I32), operands[4]]
    with pytest.raises(support.RUN_TIME_ERRORS):
        jax.block_until_ready(pagefill.jax.prefill_page_attention(*bad))
    assert_same_bits(pagefill.jax.prefill_page_attention(*operands), want)
    assert jnp.isfinite(want).all()
