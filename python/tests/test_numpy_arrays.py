"""What is read in place: strides, the buffer protocol, DLPack, ml_dtypes; and what is refused."""

from __future__ import annotations

import array as array_module
import os
import subprocess
import sys
from ctypes import PYFUNCTYPE, addressof, c_char_p, c_int64, c_void_p, py_object, pythonapi
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cases import Case, assert_close, bits, random_case, with_oracle

import pagefill
from pagefill._c import dlpack


def attend(case: Case, **options: Any) -> bytes:
    return bits(pagefill.prefill_page_attention(*case.arguments, **options))


def test_token_major_and_interleaved_caches_are_read_in_place() -> None:
    case = random_case()
    wanted = attend(case)
    keys, values = case.key_cache, case.value_cache

    case.key_cache = keys.transpose(1, 2, 0, 3).copy().transpose(2, 0, 1, 3)  # token-major
    case.value_cache = values.transpose(1, 2, 0, 3).copy().transpose(2, 0, 1, 3)
    assert not case.key_cache.flags.c_contiguous
    assert attend(case) == wanted

    both = np.stack([keys, values], axis=2)  # [num_kv_heads, pages, 2, page_size, head_dim]
    case.key_cache, case.value_cache = both[:, :, 0], both[:, :, 1]
    assert attend(case) == wanted

    beside = np.concatenate([keys, values], axis=3)
    case.key_cache, case.value_cache = beside[..., :16], beside[..., 16:]
    assert attend(case) == wanted

    head_major = case.query.transpose(1, 0, 2).copy().transpose(1, 0, 2)
    out = np.zeros((4, 5, 16), np.float32).transpose(1, 0, 2)
    case.query = head_major
    assert pagefill.prefill_page_attention(*case.arguments, out=out) is out
    assert bits(out) == wanted


def test_one_key_for_all_positions_is_a_stride_of_zero() -> None:
    case = random_case()
    one = np.ones((1, 1, 1, 16), np.float32)
    case.value_cache = np.broadcast_to(one, case.key_cache.shape)
    output = pagefill.prefill_page_attention(*case.arguments)
    np.testing.assert_allclose(output, 1, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_small_floats_are_met_within_rounding(dtype: Any) -> None:
    case = with_oracle(random_case(dtype=dtype))
    output, lse = pagefill.prefill_page_attention(*case.arguments, return_lse=True)
    assert output.dtype == dtype
    assert_close(case, output, lse)


def test_the_buffer_protocol_is_read_in_place() -> None:
    case = random_case()
    wanted = attend(case)
    case.query = memoryview(case.query)  # type: ignore[assignment]
    case.page_indices = array_module.array("i", case.page_indices)  # type: ignore[assignment]
    out = memoryview(np.zeros((5, 4, 16), np.float32))
    assert pagefill.prefill_page_attention(*case.arguments, out=out) is out
    assert bits(out) == wanted


def test_memory_maps_and_other_subclasses_are_read(tmp_path: Any) -> None:
    case = random_case()
    wanted = attend(case)
    mapped = np.memmap(tmp_path / "cache", np.float32, "w+", shape=case.key_cache.shape)
    mapped[:] = case.key_cache
    case.key_cache = mapped
    assert attend(case) == wanted


@pytest.mark.parametrize("kind", ["int64", "uint64", "uint16", "list", "tuple"])
def test_other_integers_are_converted_where_lengths_or_pages_are_expected(kind: str) -> None:
    case = random_case()
    wanted = attend(case)
    if kind in ("list", "tuple"):
        case.page_indices = {"list": list, "tuple": tuple}[kind](case.page_indices.tolist())
        case.context_len = [37]  # type: ignore[assignment]
    else:
        case.page_indices = case.page_indices.astype(kind)
        case.context_len = case.context_len.astype(kind)
    assert attend(case) == wanted
    case.context_len = 37  # type: ignore[assignment]
    assert attend(case) == wanted
    case.context_len = np.int64(37)
    assert attend(case) == wanted
    for integer in (np.int32, np.int64):
        case.context_len = np.array(37, integer)
        assert attend(case) == wanted


def test_page_numbers_beyond_32_bits_matter_only_where_a_key_needs_them() -> None:
    case = random_case()
    wanted = attend(case)
    wide = np.concatenate([case.page_indices.astype(np.int64), [2**40, -(2**40)]])
    case.page_indices = wide
    assert attend(case) == wanted
    wide[0] += 2**32  # would be the right page again in 32 bits
    given = f"page_indices: expected pages from 0 to 7 where .*, got {wide[0]} in entry 0 of seq"
    with pytest.raises(ValueError, match=given):
        attend(case)
    case.page_indices = wide.tolist()
    with pytest.raises(ValueError, match=given):
        attend(case)


def test_every_argument_may_come_from_torch() -> None:
    torch = pytest.importorskip("torch")
    case = random_case(dtype=ml_dtypes.bfloat16)
    wanted = attend(case)
    tensors = [torch.from_numpy(a.view(np.int16)).view(torch.bfloat16) for a in case.arguments[:3]]
    for lengths in (torch.int32, torch.int64):
        context_len = torch.tensor([37], dtype=lengths)
        pages = torch.from_numpy(case.page_indices).to(lengths)
        output = pagefill.prefill_page_attention(*tensors, context_len, pages)
        assert output.dtype == ml_dtypes.bfloat16
        assert bits(output) == wanted
    out = torch.zeros(5, 4, 16, dtype=torch.bfloat16)
    token_major = tensors[1].permute(1, 2, 0, 3).contiguous().permute(2, 0, 1, 3)
    tensors[1] = token_major
    assert pagefill.prefill_page_attention(*tensors, 37, pages, out=out) is out
    assert out.view(torch.int16).numpy().tobytes() == wanted


def other_integers() -> list[Any]:
    """How torch and JAX make arrays of integers that are not int32."""
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    torchs = [getattr(torch, name) for name in ("int8", "uint8", "int16", "int64")]
    return [
        *(partial(torch.tensor, dtype=dtype) for dtype in torchs),
        *(partial(jax.numpy.array, dtype=name) for name in ("int8", "int16", "uint16", "uint32")),
    ]


def test_integers_of_torch_and_jax_are_converted_where_lengths_or_pages_are_expected() -> None:
    case = random_case()
    wanted = attend(case)
    pages = case.page_indices.tolist()
    for make in other_integers():
        for length in (37, [37]):
            case.context_len, case.page_indices = make(length), make(pages)
            assert attend(case) == wanted
    torch = pytest.importorskip("torch")
    case.context_len = torch.tensor(37, dtype=torch.int32)
    assert attend(case) == wanted


def test_lengths_of_torch_and_jax_that_are_no_integers_are_refused() -> None:
    case = random_case()
    torch = pytest.importorskip("torch")
    for dtype, said in (
        (torch.bfloat16, "bfloat16"),
        (torch.float32, "float32"),
        (torch.float64, "float64"),
        (torch.bool, "bool"),
    ):
        case.context_len = torch.tensor([37], dtype=dtype)
        with pytest.raises(TypeError, match=f"context_len: expected dtype int32 or .*, got {said}"):
            attend(case)
    jax = pytest.importorskip("jax")
    case.context_len = jax.numpy.array([37], "bfloat16")
    with pytest.raises(TypeError, match="context_len: expected dtype int32 or .*, got bfloat16"):
        attend(case)


def test_a_tensor_of_torch_that_needs_gradients_is_refused() -> None:
    torch = pytest.importorskip("torch")
    case = random_case()
    query = torch.from_numpy(case.query).requires_grad_()
    with pytest.raises(TypeError, match="query: .*gradient"):
        pagefill.prefill_page_attention(query, *case.arguments[1:])


def test_a_tensor_of_torch_whose_negative_bit_is_set_is_refused() -> None:
    torch = pytest.importorskip("torch")
    case = random_case()
    query = torch.complex(torch.zeros(5, 4, 16), torch.from_numpy(-case.query)).conj().imag
    assert query.is_neg()
    for packed in (query, torch._neg_view(torch.from_numpy(-case.query))):
        with pytest.raises(TypeError, match="query: .* negative bit set"):
            pagefill.prefill_page_attention(packed, *case.arguments[1:])
    wanted = attend(case)
    output = pagefill.prefill_page_attention(query.resolve_neg().contiguous(), *case.arguments[1:])
    assert bits(output) == wanted


def test_memory_of_a_gpu_is_refused_by_the_name_of_the_argument_that_has_it() -> None:
    case = random_case()
    names = ("query", "key_cache", "value_cache", "context_len", "page_indices")
    for place, name in enumerate(names):
        arguments: list[Any] = list(case.arguments)
        arguments[place] = Fake(device=2)
        with pytest.raises(NotImplementedError, match=f"^{name}: expected memory of the CPU, got"):
            pagefill.prefill_page_attention(*arguments)
    everywhere: list[Any] = [Fake(device=2) for _ in names]
    with pytest.raises(NotImplementedError, match="^query: expected memory of the CPU, got"):
        pagefill.prefill_page_attention(*everywhere)
    with pytest.raises(NotImplementedError, match="^out: expected memory of the CPU, got"):
        pagefill.prefill_page_attention(*case.arguments, out=Fake(device=2))


def test_every_argument_may_come_from_jax() -> None:
    jax = pytest.importorskip("jax")
    case = random_case(dtype=ml_dtypes.bfloat16)
    wanted = attend(case)
    arrays = [jax.numpy.asarray(a) for a in case.arguments]
    assert bits(pagefill.prefill_page_attention(*arrays)) == wanted
    with pytest.raises(TypeError, match="out: expected an array that may be written"):
        pagefill.prefill_page_attention(*arrays, out=arrays[0])


def test_what_cannot_be_read_in_place_is_refused() -> None:
    case = random_case()

    def refused(error: type[Exception], match: str, **changes: Any) -> None:
        arguments = {"query": case.query, "key_cache": case.key_cache, **changes}
        with pytest.raises(error, match=match):
            pagefill.prefill_page_attention(
                arguments["query"],
                arguments["key_cache"],
                case.value_cache,
                case.context_len,
                case.page_indices,
                out=arguments.get("out"),
            )

    wide = np.zeros((5, 4, 32), np.float32)
    refused(ValueError, "query: expected an innermost stride of 1, got 2", query=wide[..., ::2])
    refused(ValueError, "query: expected strides >= 0", query=case.query[::-1])
    swapped = case.query.astype(case.query.dtype.newbyteorder())
    refused(TypeError, "query: expected dtype float32 in the machine's byte order", query=swapped)
    masked = np.ma.masked_array(case.query)  # type: ignore[no-untyped-call]
    refused(TypeError, "query: expected an array without a mask", query=masked)
    refused(TypeError, "query: expected an array of NumPy, or .*, got list", query=[[[1.0]]])
    refused(TypeError, "query: expected an array of NumPy, or .*, got NoneType", query=None)
    refused(TypeError, "query: expected dtype .*, got complex64", query=case.query + 0j)
    many = np.zeros((1, 1, 2, 8, 16), np.float32)
    refused(ValueError, "key_cache: expected at most 4 dimensions", key_cache=many)
    fields = np.zeros((5, 4, 16), [("key", np.float32), ("other", np.int8)])["key"]
    refused(ValueError, "query: expected strides of whole elements", query=fields)
    odd = np.frombuffer(bytearray(1281), np.uint8)[1:].view(np.float32).reshape(5, 4, 16)
    refused(ValueError, "query: expected .*align", query=odd)
    fixed = np.zeros((5, 4, 16), np.float32)
    fixed.flags.writeable = False
    refused(ValueError, "out: expected an array that may be written, got a read-only", out=fixed)
    refused(TypeError, "out: expected dtype float32, got float16", out=fixed.astype(np.float16))
    refused(ValueError, "out: .*query", out=case.query)


class Fake:
    """What speaks DLPack and says what a test wants: an address, a device, a dtype, a version."""

    def __init__(self, device: int = 1, code: int = 2, bits: int = 32, flags: int = 0) -> None:
        self.device, self.code, self.bits, self.flags = device, code, bits, flags
        self.memory = np.ones((5, 4, 16), np.float32)
        self.asked: list[dict[str, object]] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0

    def __dlpack__(self, **options: object) -> object:
        self.asked.append(options)
        self.shape = (c_int64 * 3)(5, 4, 16)
        tensor = dlpack._Tensor(
            self.memory.ctypes.data, self.device, 0, 3, self.code, self.bits, 1, self.shape, None, 0
        )
        self.managed = dlpack._Versioned(1, 0, None, None, self.flags, tensor)
        new = PYFUNCTYPE(py_object, c_void_p, c_char_p, c_void_p)(("PyCapsule_New", pythonapi))
        return new(addressof(self.managed), b"dltensor_versioned", None)


def test_what_dlpack_says_is_honoured_or_refused() -> None:
    case = random_case()
    keys = case.arguments[1:]
    fake = Fake()
    ones = pagefill.prefill_page_attention(fake.memory, *keys)
    assert bits(pagefill.prefill_page_attention(fake, *keys)) == bits(ones)
    assert fake.asked == [{"max_version": (1, 0), "copy": False}]

    for bad, error, match in (
        (
            Fake(device=2),
            NotImplementedError,
            "query: expected memory of the CPU, got memory of CUDA device 0: pagefill.torch and",
        ),
        (Fake(device=4), NotImplementedError, "query: expected memory of the CPU, .* DLPack's 4"),
        (Fake(code=1, bits=8), TypeError, "query: expected dtype .* or float16, got uint8"),
        (Fake(code=3), TypeError, "query: expected dtype .* or float16, got DLPack's code 3 of 32"),
        (
            Fake(code=0),
            TypeError,
            "query: expected dtype float32 or bfloat16 or float16, got int32",
        ),
    ):
        with pytest.raises(error, match=match):
            pagefill.prefill_page_attention(bad, *keys)
    with pytest.raises(ValueError, match="out: expected an array that may be written"):
        pagefill.prefill_page_attention(*case.arguments, out=Fake(flags=1))
    out = Fake()
    pagefill.prefill_page_attention(*case.arguments, out=out)
    assert bits(out.memory) == bits(pagefill.prefill_page_attention(*case.arguments))


def test_no_array_is_read_through_memory_that_was_given_back() -> None:
    code = """
import numpy as np, pagefill
from cases import random_case
case, out = random_case(), np.empty((5, 4, 16), np.float32)
lse = np.empty((5, 4), np.float32)
pagefill.prefill_page_attention(*case.arguments, out=out, out_lse=lse)
print(np.isfinite(out).all() and np.isfinite(lse).all())
"""
    # Python then fills what is freed.
    environment = os.environ | {"PYTHONMALLOC": "debug"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr
