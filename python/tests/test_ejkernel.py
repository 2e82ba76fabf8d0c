"""ejkernel's own calls run pagefill: chosen by the registry, right, refused alike, gone again."""

from __future__ import annotations

import inspect
import os
import sys
import tempfile

os.environ["EJKERNEL_PERSISTENT_CACHE_DIR"] = tempfile.mkdtemp()  # what its autotuner finds out
os.environ["EJKERNEL_AUTOTUNE_POLICY"] = "heuristics"  # it would time each shape for seconds

import case_file
import jax_support as support  # before jax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("ejkernel")

from ejkernel.errors import EjkernelRuntimeError
from ejkernel.kernels import Backend, Platform, kernel_registry
from ejkernel.kernels._xla.prefill_page_attention import prefill_page_attention as ejkernels_xla
from ejkernel.modules import prefill_page_attention
from ejkernel.modules.base import detect_platform

import pagefill.ejkernel
import pagefill.jax
from pagefill.jax._library import PLATFORMS
from cases import golden
from jax_support import assert_same_bits, problem

TARGET = "pagefill_attention"


@pytest.fixture(autouse=True)
def registered():
    pagefill.ejkernel.register()
    yield
    pagefill.ejkernel.unregister()


def arrays(**changes):
    return [jnp.asarray(operand) for operand in problem(**changes).arguments]


def theirs(*operands, **options):
    """ejkernel's XLA kernel, compiled as a whole."""
    return jax.jit(lambda *a: ejkernels_xla(*a, **options))(*operands)


def calls_pagefill(*operands, **options) -> bool:
    lowered = jax.jit(lambda *a: prefill_page_attention(*a, **options)).lower(*operands)
    return TARGET in lowered.as_text()


def test_the_registry_gives_pagefill_to_whoever_asks_as_ejkernel_does_on_a_cpu():
    for backend in (Backend.ANY, Backend.CPU, None):
        kernel = kernel_registry.get("prefill_page_attention", Platform.XLA, backend)
        assert inspect.unwrap(kernel) is pagefill.ejkernel.prefill_page_attention
    assert calls_pagefill(*arrays())
    assert calls_pagefill(*arrays(), platform="xla")
    assert calls_pagefill(*arrays(), platform="auto")


def test_an_nvidia_gpu_gets_pagefill_where_it_has_cuda(monkeypatch):
    specs = kernel_registry.list_implementations("prefill_page_attention")
    places = {
        (spec.platform, spec.backend)
        for spec in specs
        if inspect.unwrap(spec.implementation) is pagefill.ejkernel.prefill_page_attention
    }
    has_cuda = "cuda" in PLATFORMS
    assert ((Platform.CUDA, Backend.GPU) in places) is has_cuda

    class Device:
        device_kind = "NVIDIA H100 80GB HBM3"

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert detect_platform("prefill_page_attention") is (
        Platform.CUDA if has_cuda else Platform.XLA
    )
    assert pagefill.ejkernel._runs_here() is has_cuda
    Device.device_kind = "AMD Instinct"
    assert not pagefill.ejkernel._runs_here()


def test_the_signature_is_that_of_the_other_implementations():
    assert kernel_registry.validate_signatures("prefill_page_attention")
    ours = inspect.signature(pagefill.ejkernel.prefill_page_attention)
    code = inspect.getfullargspec(inspect.unwrap(pagefill.ejkernel.prefill_page_attention))
    assert list(ours.parameters) == [*code.args, *code.kwonlyargs]


def test_registering_twice_adds_nothing():
    before = kernel_registry.list_implementations("prefill_page_attention")
    pagefill.ejkernel.register()
    assert kernel_registry.list_implementations("prefill_page_attention") == before


def test_golden_cases_give_the_output_of_ejkernel_within_rounding(golden_file):
    case = golden(golden_file)
    want = case_file.load(golden_file)[0].get("expected")
    if want is None:
        pytest.skip("ejkernel has no quantised caches here")
    got = prefill_page_attention(*map(jnp.asarray, case.arguments), **case.options)
    assert got.dtype == want.dtype
    largest = np.nanmax(np.abs(np.asarray(case.value_cache, np.float64)))
    unit = 1e-5 if want.dtype == np.float32 else 2.0**-6  # it rounds on the way to query's dtype
    np.testing.assert_allclose(
        np.asarray(got, np.float64), np.asarray(want, np.float64), rtol=0, atol=unit * largest
    )


# The shapes, options and dtypes of ejkernel's own use: chunks that are whole pages, a batch of one.
SHAPES = [
    dict(chunk=64, context=256, heads=(8, 2), head_dim=64, page_size=16),
    dict(chunk=128, context=512, heads=(8, 8), head_dim=128, page_size=128),
    dict(chunk=16, context=16, heads=(4, 1), head_dim=128, page_size=16),
    dict(chunk=512, context=1024, heads=(4, 2), head_dim=64, page_size=64),
    dict(chunk=1, context=300, heads=(16, 4), head_dim=128, page_size=32),
]
OPTIONS = [
    {},
    {"sliding_window": 64},
    {"attn_logits_soft_cap": 20.0},
    {"softmax_scale": 0.3, "sliding_window": 5, "attn_logits_soft_cap": 8.0},
    {"mask_value": -2.0},
]


PAIRS = [(shape, {}) for shape in SHAPES] + [(SHAPES[0], options) for options in OPTIONS[1:]]


@pytest.mark.parametrize(("shape", "options"), PAIRS, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_ejkernels_call_gives_the_output_of_its_own_xla_kernel_within_rounding(
    shape, options, dtype
):
    operands = arrays(**shape)
    operands[:3] = [operand.astype(dtype) for operand in operands[:3]]
    in_float32 = [operand.astype(jnp.float32) for operand in operands[:3]]
    want = theirs(*in_float32, *operands[3:], **options)
    got = jax.jit(lambda *a: prefill_page_attention(*a, platform="xla", **options))(*operands)
    assert got.dtype == dtype
    unit = 2e-5 if dtype == np.float32 else 2.0**-6
    np.testing.assert_allclose(np.asarray(got, np.float32), want, rtol=0, atol=unit)


def test_ejkernels_autotuner_times_pagefill_and_takes_it(monkeypatch):
    from ejkernel.modules.operations import prefill_page_attention as module

    executor = sys.modules[module.__module__]._prefill_page_attention_executor
    monkeypatch.setattr(executor.chooser.policy, "cache_miss_fallback", "autotune")
    operands = arrays(chunk=2, context=20)
    assert_same_bits(
        prefill_page_attention(*operands), pagefill.jax.prefill_page_attention(*operands)
    )


def test_the_bits_are_those_of_the_jax_face():
    operands = arrays()
    assert_same_bits(
        prefill_page_attention(*operands, sliding_window=20),
        pagefill.jax.prefill_page_attention(*operands, sliding_window=20),
    )


@pytest.mark.parametrize("chunk", [1, 7, 33])
def test_the_chunk_need_not_be_whole_pages(chunk):
    operands = arrays(chunk=chunk, page_size=16)
    np.testing.assert_allclose(prefill_page_attention(*operands), theirs(*operands), atol=1e-5)


def test_integers_of_64_bits_are_taken_as_ejkernel_takes_them():
    operands = arrays()
    want = prefill_page_attention(*operands)
    jax.config.update("jax_enable_x64", True)
    try:
        wide = [*operands[:3], *(jnp.asarray(operand, jnp.int64) for operand in operands[3:])]
        assert wide[4].dtype == jnp.int64
        assert_same_bits(prefill_page_attention(*wide), want)
        wide[4] = wide[4] + 2**32  # would be the same pages if it were cut to 32 bits
        with pytest.raises(support.RUN_TIME_ERRORS, match="page_indices: expected pages from 0"):
            jax.block_until_ready(prefill_page_attention(*wide))
        # The largest length of 32 bits is none for what is larger.
        wide[3:] = jnp.asarray([2**40]), operands[4]
        with pytest.raises(support.RUN_TIME_ERRORS, match="context_len: .*got -1"):
            jax.block_until_ready(prefill_page_attention(*wide))
    finally:
        jax.config.update("jax_enable_x64", False)


def test_integers_that_32_bits_cannot_hold_are_refused_in_every_width():
    operands = arrays()
    want = prefill_page_attention(*operands)
    for kind in (jnp.uint32, jnp.int16, jnp.uint8):
        other = [*operands[:3], *(operand.astype(kind) for operand in operands[3:])]
        assert_same_bits(prefill_page_attention(*other), want)
    operands[3] = jnp.array([2**32 - 1], jnp.uint32)
    with pytest.raises(support.RUN_TIME_ERRORS, match="context_len: .*got -1"):
        jax.block_until_ready(prefill_page_attention(*operands))
    operands[3] = np.array([2**32 + 100])  # JAX would make it 100
    with pytest.raises(ValueError, match="context_len: expected numbers of 32 bits"):
        pagefill.ejkernel.prefill_page_attention(*operands)


def test_what_ejkernel_refuses_with_a_value_error_stays_one():
    query, keys, values, length, pages = arrays()
    for bad in (
        (query[:, :7], keys, values, length, pages),
        (query[..., :56], keys, values, length, pages),
        (query, keys, values[:, :9], length, pages),
    ):
        with pytest.raises(ValueError, match="expected") as caught:
            prefill_page_attention(*bad)
        assert not isinstance(caught.value, EjkernelRuntimeError)


def test_it_works_inside_of_ejkernels_shard_map():
    from ejkernel.modules.operations.prefill_page_attention import (
        PrefillPageAttention,
        PrefillPageAttentionConfig,
    )
    from jax.sharding import Mesh
    from jax.sharding import PartitionSpec as P

    operands = arrays(heads=(16, 8))
    kernel = PrefillPageAttention()
    config = PrefillPageAttentionConfig(
        block_k=128, num_warps=4, num_stages=2, platform="auto", backend="any"
    )
    function, arguments = kernel.create_shard_map_wrapper(
        *operands,
        cfg=config,
        mesh=Mesh(np.array(jax.devices()), ("heads",)),
        in_specs=(P(None, "heads"), P("heads"), P("heads"), P(), P()),
        out_specs=P(None, "heads"),
    )
    assert_same_bits(function(*arguments), prefill_page_attention(*operands))


def test_after_unregistering_ejkernels_own_kernel_runs_again():
    operands = arrays()
    pagefill.ejkernel.unregister()
    assert not pagefill.ejkernel.is_registered()
    assert not calls_pagefill(*operands)
    assert_same_bits(
        jax.jit(lambda *a: prefill_page_attention(*a, platform="xla"))(*operands),
        theirs(*operands),
    )
    pagefill.ejkernel.register()
    assert calls_pagefill(*operands)


def test_on_another_default_backend_ejkernels_own_kernel_runs(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    operands = arrays()
    kernel = kernel_registry.get("prefill_page_attention", Platform.XLA, Backend.ANY)
    assert TARGET not in jax.jit(lambda *a: kernel(*a)).lower(*operands).as_text()


@pytest.mark.gpu
@pytest.mark.skipif(
    "cuda" not in PLATFORMS or jax.default_backend() != "gpu",
    reason="no GPU that JAX and pagefill see (JAX_PLATFORMS=cuda,cpu)",
)
@pytest.mark.parametrize(("shape", "options"), PAIRS[:2] + PAIRS[-1:], ids=str)
def test_on_an_nvidia_gpu_ejkernels_call_runs_pagefill(shape, options):
    operands = arrays(**shape)
    assert operands[0].devices().pop().platform == "gpu"
    assert calls_pagefill(*operands, **options)
    got = prefill_page_attention(*operands, **options)
    assert got.devices().pop().platform == "gpu"
    # On the CPU: on a GPU XLA multiplies float32 with fewer bits.
    want = theirs(*jax.device_put(operands, jax.devices("cpu")[0]), **options)
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=0, atol=2e-5)
    assert_same_bits(got, pagefill.jax.prefill_page_attention(*operands, **options))
    pagefill.ejkernel.unregister()
    assert not calls_pagefill(*operands, **options)
