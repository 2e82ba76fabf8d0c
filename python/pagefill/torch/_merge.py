"""merge_attention_states."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pagefill._c.library import check, lib
from pagefill._c.outputs import NAMES
from pagefill.torch import _arguments, _fake
from pagefill.torch._operators import define
from pagefill.torch._views import mark_written, new_view, optional_view, view
from pagefill.torch._where import CHOICE, context, where_of

_STATES = ("output_a", "lse_a", "output_b", "lse_b")
_PARAMETERS = {**dict.fromkeys(_STATES, "Tensor"), **CHOICE}


def _merge(a: Any, out: bytes, out_lse: bytes | None) -> None:
    states = [view(name, getattr(a, name)) for name in _STATES]
    where = context(a.output_a.get_device(), None, *where_of(a))
    check(lib.pagefill_merge_attention_states(*states, out, out_lse, where), NAMES)


def _new(tensor: Tensor) -> Tensor:
    # Not empty_like, which would take over strides of a tensor that is not contiguous.
    return tensor.new_empty(tensor.shape)


def _merge_new(a: Any) -> tuple[Tensor, Tensor]:
    output, lse = _new(a.output_a), _new(a.lse_a)
    _merge(a, new_view(output), new_view(lse))
    return output, lse


def _merge_out(a: Any) -> None:
    _merge(a, view("out", a.out), optional_view("out_lse", a.out_lse))
    mark_written(a.out, a.out_lse)


def _fake_new(a: Any) -> tuple[Tensor, Tensor]:
    _fake.merge(a)
    return _new(a.output_a), _new(a.lse_a)


_INTO_NEW = define("merge_attention_states", _PARAMETERS, "(Tensor, Tensor)", _merge_new, _fake_new)
_INTO_OUT = define(
    "merge_attention_states_out",
    {"out": "Tensor(a!)", "out_lse": "Tensor(b!)?", **_PARAMETERS},
    "()",
    _merge_out,
    _fake.merge,
)


def merge_attention_states(
    output_a: Tensor,
    lse_a: Tensor,
    output_b: Tensor,
    lse_b: Tensor,
    *,
    out: Tensor | None = None,
    out_lse: Tensor | None = None,
    num_threads: int | None = None,
    backend: str | None = None,
    cpu_target: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Combines attention over two disjoint sets of keys into attention over their union.

    Args:
        output_a, output_b: [total_tokens, num_q_heads, v_head_dim], float32, bfloat16 or float16.
        lse_a, lse_b: float32 [total_tokens, num_q_heads].
        out, out_lse: where to write the merged state; they may be those of a or of b.
        num_threads, backend, cpu_target: as in prefill_page_attention.

    Returns:
        The merged output and the merged log-sum-exp. The identity is (0, -inf).

    Raises:
        ValueError: a shape or stride that breaks a rule.
        TypeError: a dtype or a type.
        NotImplementedError: a tensor elsewhere than on the CPU or a CUDA device, or than the
            others; one that requires grad, in grad mode.
    """
    states = (
        _arguments.tensor("output_a", output_a),
        _arguments.tensor("lse_a", lse_a),
        _arguments.tensor("output_b", output_b),
        _arguments.tensor("lse_b", lse_b),
        *_arguments.where(num_threads, backend, cpu_target),
    )
    if out is None and out_lse is None:
        return _INTO_NEW(*states)  # type: ignore[no-any-return]
    out = _new(output_a) if out is None else _arguments.tensor("out", out)
    out_lse = _new(lse_a) if out_lse is None else _arguments.tensor("out_lse", out_lse)
    _INTO_OUT(out, out_lse, *states)
    return out, out_lse
