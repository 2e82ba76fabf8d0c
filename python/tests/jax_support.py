"""What the tests of the JAX face share. Imported before jax: it asks XLA for eight CPU devices."""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

GOLDEN = sorted((Path(__file__).parents[2] / "tests" / "golden").rglob("*.safetensors"))
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I32": np.int32,
    "I8": np.int8,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
}
_NUMBERS = {"softmax_scale": float, "attn_logits_soft_cap": float, "sliding_window": int}
RUN_TIME_ERRORS = (ValueError, jax.errors.JaxRuntimeError)
"""What a bad length or page number is: the first where XLA runs the call in the calling thread."""
NAMES = ("query", "key_cache", "value_cache", "context_len", "page_indices")


@dataclass
class Case:
    """Arguments of prefill_page_attention by their names, and what is expected."""

    arrays: dict[str, np.ndarray]
    options: dict[str, Any]
    expected: dict[str, np.ndarray]

    @property
    def operands(self) -> list[np.ndarray]:
        return [self.arrays[name] for name in NAMES]


def read_case(path: Path) -> Case:
    """A case file of tests/golden: safetensors."""
    data = path.read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    metadata = header.pop("__metadata__", {})
    tensors = {
        name: np.frombuffer(
            data[8 + size + entry["data_offsets"][0] : 8 + size + entry["data_offsets"][1]],
            _DTYPES[entry["dtype"]],
        ).reshape(entry["shape"])
        for name, entry in header.items()
    }
    options: dict[str, Any] = {
        name: _NUMBERS[name](text) for name, text in metadata.items() if name != "description"
    }
    options |= {name: tensors.pop(name) for name in ("key_scale", "value_scale") if name in tensors}
    expected = {name: tensors.pop(name) for name in list(tensors) if name.startswith("expected")}
    return Case(tensors, options, expected)


def problem(
    chunk: int = 24,
    context: int = 100,
    heads: tuple[int, int] = (8, 2),
    head_dim: int = 64,
    page_size: int = 16,
    spare_pages: int = 3,
    dtype: Any = np.float32,
    cache_dtype: Any = None,
    seed: int = 0,
) -> Case:
    """One sequence with pages at random."""
    random = np.random.default_rng(seed)
    num_pages = -(-context // page_size)
    total = num_pages + spare_pages
    shape = (heads[1], total, page_size, head_dim)
    cache_dtype = cache_dtype or dtype
    arrays = {
        "query": random.standard_normal((chunk, heads[0], head_dim), np.float32).astype(dtype),
        "key_cache": random.standard_normal(shape, np.float32).astype(cache_dtype),
        "value_cache": random.standard_normal(shape, np.float32).astype(cache_dtype),
        "context_len": np.array([context], np.int32),
        "page_indices": random.permutation(total)[:num_pages].astype(np.int32),
    }
    return Case(arrays, {}, {})


def bits(array: Any) -> np.ndarray:
    """The bits of the elements, so that NaNs and zeros compare as what they are."""
    array = np.asarray(array)
    return array.view(f"uint{8 * array.dtype.itemsize}")


def assert_same_bits(got: Any, want: Any) -> None:
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(bits(got), bits(want))


def shard_map(function: Any, mesh: Any, in_specs: Any, out_specs: Any) -> Any:
    """jax.shard_map, or what it was before that was its name."""
    if hasattr(jax, "shard_map"):
        return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)
    from jax.experimental import shard_map as old

    return old.shard_map(function, mesh, in_specs, out_specs, check_rep=False)
