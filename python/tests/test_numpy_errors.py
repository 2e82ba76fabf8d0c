"""Bad arguments give one error that names them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import Case, random_case

import pagefill

BAD: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (TypeError, "query: expected dtype float32", {"query": np.zeros((5, 4, 16))}),
    (ValueError, "query: expected shape", {"query": np.zeros((5, 16), np.float32)}),
    (ValueError, "query: expected shape", {"query": np.array(1, "f4"), "sliding_window": 2}),
    (ValueError, "value_cache: expected shape", {"value_cache": np.array(1, "f4")}),
    (ValueError, "query: expected num_q_heads a multiple", {"query": np.zeros((5, 3, 16), "f4")}),
    (ValueError, "head_dim", {"query": np.zeros((5, 4, 12), np.float32)}),
    (ValueError, "key_cache: expected shape", {"key_cache": np.zeros((2, 8, 16), np.float32)}),
    (
        TypeError,
        "value_cache: expected dtype float32, got int8",
        {"value_cache": np.zeros((2, 8, 8, 16), np.int8)},
    ),
    (ValueError, "context_len: expected", {"context_len": -1}),
    (ValueError, "context_len: expected", {"context_len": 2**40}),
    (ValueError, "context_len: expected numbers of 32 bits", {"context_len": np.array([2**40])}),
    (ValueError, "context_len: expected shape", {"context_len": np.array([1, 2], np.int32)}),
    (TypeError, "context_len: expected", {"context_len": 3.5}),
    (TypeError, "context_len: expected", {"context_len": True}),
    (TypeError, "context_len: expected dtype int32", {"context_len": np.array([3.5])}),
    (ValueError, "page_indices: expected", {"page_indices": np.full(5, 99, np.int32)}),
    (ValueError, "context_len: expected", {"page_indices": np.zeros(1, np.int32)}),
    (TypeError, "page_indices: expected dtype int32", {"page_indices": [0.5]}),
    (ValueError, "page_indices: expected rows of one length", {"page_indices": [[1], [2, 3]]}),
    (ValueError, "softmax_scale: expected", {"softmax_scale": float("nan")}),
    (ValueError, "softmax_scale: expected", {"softmax_scale": 1e300}),
    (TypeError, "softmax_scale: expected a number, got 'big'", {"softmax_scale": "big"}),
    (TypeError, "softmax_scale: expected a number", {"softmax_scale": True}),
    (ValueError, "softmax_scale: expected a finite number, got inf", {"softmax_scale": 10**400}),
    (TypeError, "softmax_scale: expected a number", {"softmax_scale": np.array([0.1])}),
    (ValueError, "mask_value: expected a finite number or -inf, got inf", {"mask_value": 10**400}),
    (TypeError, "mask_value: expected a number", {"mask_value": np.array([1.0, 2.0])}),
    (ValueError, "attn_logits_soft_cap: expected", {"attn_logits_soft_cap": 0}),
    (ValueError, "sliding_window: expected", {"sliding_window": 0}),
    (ValueError, "sliding_window: expected an integer of 64 bits", {"sliding_window": 2**70}),
    (ValueError, "sliding_window: .* 64 bits, got -1000", {"sliding_window": -(10**30)}),
    (ValueError, "context_len: .* of 32 bits, got -1000", {"context_len": -(10**30)}),
    (
        TypeError,
        "query: expected dtype float32 or bfloat16 or float16, got bool",
        {"query": np.zeros((5, 4, 16), bool)},
    ),
    (
        TypeError,
        "key_cache: expected dtype float32 or .* or int8 or .*_e5m2, got uint8",
        {"key_cache": np.zeros((2, 8, 8, 16), np.uint8)},
    ),
    (
        TypeError,
        "value_cache: expected dtype of key_cache, got uint8",
        {"value_cache": np.zeros((2, 8, 8, 16), np.uint8)},
    ),
    (
        TypeError,
        "out: expected dtype of query, or of output_a, got bool",
        {"out": np.zeros((5, 4, 16), bool)},
    ),
    (TypeError, "sinks: expected dtype float32, got bool", {"sinks": np.zeros(4, bool)}),
    (ValueError, r"query: expected shape \[chunk_size, ", {"query": np.zeros((5, 16), "f4")}),
    (ValueError, r"out: expected shape \[chunk_size=5, ", {"out": np.zeros((4, 4, 16), "f4")}),
    (TypeError, "sliding_window: expected an integer, got 2.5", {"sliding_window": 2.5}),
    (ValueError, "mask_value: expected", {"mask_value": float("nan")}),
    (TypeError, "mask_value: expected a number, got None", {"mask_value": None}),
    (ValueError, "sinks: expected shape", {"sinks": np.zeros(3, np.float32)}),
    (TypeError, "sinks: expected dtype float32", {"sinks": np.zeros(4)}),
    (ValueError, "kv_start: expected", {"kv_start": -1}),
    (ValueError, "key_scale: expected", {"key_scale": np.ones(1, np.float32)}),
    (ValueError, "num_threads: expected", {"num_threads": 5000}),
    (ValueError, "num_threads: expected None or 1 to 1024, got 0", {"num_threads": 0}),
    (ValueError, "num_threads: expected None or 1 to 1024, got -1", {"num_threads": -1}),
    (ValueError, "num_threads: expected", {"num_threads": 2**40}),
    (TypeError, "num_threads: expected an integer", {"num_threads": "two"}),
    (ValueError, 'backend: expected .*, got "abacus"', {"backend": "abacus"}),
    (TypeError, "backend: expected a name", {"backend": 3}),
    (TypeError, "cpu_target: expected a name", {"cpu_target": "avx2\0"}),
    (ValueError, "out: expected shape", {"out": np.zeros((5, 4, 8), np.float32)}),
    (ValueError, "out_lse: expected shape", {"out_lse": np.zeros((5, 3), np.float32)}),
    (TypeError, "out_lse: expected dtype float32", {"out_lse": np.zeros((5, 4))}),
]


@pytest.mark.parametrize(("error", "match", "changes"), BAD)
def test_a_bad_argument_is_named(
    error: type[Exception], match: str, changes: dict[str, Any]
) -> None:
    case = random_case()
    named = dict(zip(Case.__dataclass_fields__, case.arguments, strict=False)) | changes
    positional = [named.pop(name) for name in list(Case.__dataclass_fields__)[:5]]
    untouched = np.full((5, 4, 16), 7, np.float32)
    named.setdefault("out", untouched)
    with pytest.raises(error, match=match) as raised:
        pagefill.prefill_page_attention(*positional, **named)
    assert "\n" not in str(raised.value)
    assert (untouched == 7).all()


def test_an_unavailable_instruction_set_is_not_implemented_here() -> None:
    absent = [t.name for t in pagefill.list_backends()[0].targets if not t.available]
    if not absent:
        pytest.skip("this machine has every instruction set")
    with pytest.raises(NotImplementedError, match=absent[0]):
        pagefill.prefill_page_attention(*random_case().arguments, cpu_target=absent[0])


def test_an_unknown_keyword_is_refused_by_every_call() -> None:
    state = (np.zeros((1, 1, 8), np.float32), np.zeros((1, 1), np.float32)) * 2
    with pytest.raises(TypeError, match="threads"):
        pagefill.merge_attention_states(*state, threads=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="threads"):
        pagefill.choose_backend(threads=1)  # type: ignore[call-arg]


def test_the_environment_forces_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setitem(os.environ, "PAGEFILL_BACKEND", "reference")
    assert pagefill.choose_backend().backend == "reference"
    assert pagefill.choose_backend(backend="cpu").backend == "cpu"
    monkeypatch.setitem(os.environ, "PAGEFILL_NUM_THREADS", "many")
    with pytest.raises(ValueError, match="PAGEFILL_NUM_THREADS: expected"):
        pagefill.choose_backend()


@pytest.mark.parametrize(
    "window", [np.int8(100), np.uint8(100), np.int32(2**31 - 1), np.int64(2**63 - 1)], ids=repr
)
def test_a_window_may_be_an_integer_of_numpy(window: Any) -> None:
    case = random_case(chunk_size=200, context_len=300)
    wanted = pagefill.prefill_page_attention(*case.arguments, sliding_window=int(window))
    output = pagefill.prefill_page_attention(*case.arguments, sliding_window=window)
    assert output.tobytes() == wanted.tobytes()


def test_a_mask_value_below_all_floats_excludes_as_the_default_does() -> None:
    case = random_case()
    wanted = pagefill.prefill_page_attention(*case.arguments)
    output = pagefill.prefill_page_attention(*case.arguments, mask_value=-(10**400))
    assert output.tobytes() == wanted.tobytes()
