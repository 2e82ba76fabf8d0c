"""Problems for the tests of all faces, as NumPy arrays; the oracle; and how to compare."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import case_file

Array = npt.NDArray[Any]

INPUTS = ("query", "key_cache", "value_cache", "context_len", "page_indices")
EXTRAS = ("sinks", "kv_start", "key_scale", "value_scale")
NUMBERS = {"softmax_scale": float, "attn_logits_soft_cap": float, "sliding_window": int}


@dataclass
class Case:
    """The arguments of prefill_page_attention, and what comes out in float64 (where known)."""

    query: Array
    key_cache: Array
    value_cache: Array
    context_len: Array
    page_indices: Array
    options: dict[str, Any] = field(default_factory=dict)
    expected: Array | None = None
    expected_lse: Array | None = None

    @property
    def arguments(self) -> tuple[Array, ...]:
        """The positional ones."""
        return tuple(getattr(self, name) for name in INPUTS)


def golden(path: Path) -> Case:
    """A case of tests/golden/."""
    arrays, metadata = case_file.load(path)
    options: dict[str, Any] = {name: arrays[name] for name in EXTRAS if name in arrays}
    options |= {name: kind(metadata[name]) for name, kind in NUMBERS.items() if name in metadata}
    return Case(
        *(arrays[name] for name in INPUTS),
        options=options,
        expected=arrays["expected_f64"],
        expected_lse=arrays["expected_lse_f64"],
    )


def random_case(
    chunk_size: int = 5,
    context_len: int = 37,
    num_q_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 16,
    page_size: int = 8,
    dtype: Any = np.float32,
    seed: int = 0,
) -> Case:
    """One sequence in shuffled pages of a cache that has more of them."""
    random = np.random.default_rng(seed)
    num_pages = -(-context_len // page_size)
    pages = random.permutation(num_pages + 3)[:num_pages].astype(np.int32)
    cache_shape = (num_kv_heads, num_pages + 3, page_size, head_dim)

    def normal(shape: tuple[int, ...]) -> Array:
        return random.standard_normal(shape, np.float32).astype(dtype)

    return Case(
        normal((chunk_size, num_q_heads, head_dim)),
        normal(cache_shape),
        normal(cache_shape),
        np.array([context_len], np.int32),
        pages,
    )


def with_oracle(case: Case) -> Case:
    """The same with the formula's results in float64."""
    query, keys, values = (a.astype(np.float64) for a in case.arguments[:3])
    chunk_size, num_q_heads, head_dim = query.shape
    num_kv_heads, _, page_size, v_head_dim = values.shape
    context_len = int(case.context_len[0])
    slots = [(case.page_indices[j // page_size], j % page_size) for j in range(context_len)]
    pages, offsets = map(list, zip(*slots, strict=True))
    scale = case.options.get("softmax_scale", 1 / np.sqrt(head_dim))
    case.expected = np.zeros((chunk_size, num_q_heads, v_head_dim))
    case.expected_lse = np.full((chunk_size, num_q_heads), -np.inf)
    for head in range(num_q_heads):
        kv_head = head * num_kv_heads // num_q_heads
        k, v = keys[kv_head][pages, offsets], values[kv_head][pages, offsets]
        for i in range(chunk_size):
            seen = context_len - chunk_size + i + 1
            if seen <= 0:
                continue
            scores = scale * (k[:seen] @ query[i, head])
            weights = np.exp(scores - scores.max())
            case.expected[i, head] = weights @ v[:seen] / weights.sum()
            case.expected_lse[i, head] = scores.max() + np.log(weights.sum())
    return case


# Unit roundoff of the output's last rounding, and of float32 sums of some hundred terms of size 1.
_ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
_SUM = 2.0**-24 * 256


def assert_close(case: Case, output: Any, lse: Any = None) -> None:
    """Within rounding of the float64 results. Rounded weights (bfloat16 pairs) move an output by at
    most 2^-8 of its head's largest value."""
    assert case.expected is not None
    assert case.expected_lse is not None
    output = np.asarray(output)
    largest = np.abs(np.nan_to_num(case.value_cache.astype(np.float64))).max()
    scales = case.options.get("value_scale")
    if scales is not None:
        largest *= np.abs(scales[np.isfinite(scales)]).max()
    pairs = case.query.dtype == case.key_cache.dtype and case.query.dtype.name == "bfloat16"
    bound = _ROUNDOFF[output.dtype.name] * np.abs(case.expected) + _SUM * largest
    bound += 2.0**-8 * largest if pairs else 0.0
    assert (np.abs(output.astype(np.float64) - case.expected) <= bound).all()
    if lse is not None:
        # A score of size s is off by 2^-24 * s a term; lse is as large as the largest score.
        finite = np.isfinite(case.expected_lse)
        error = np.abs(np.asarray(lse, np.float64) - case.expected_lse)[finite]
        assert (error <= _SUM * (1 + np.abs(case.expected_lse[finite]))).all()
        assert (np.asarray(lse)[~finite] == -np.inf).all()


def bits(array: Any) -> bytes:
    """The array's memory, row-major."""
    return np.ascontiguousarray(np.asarray(array)).tobytes()
