"""FlashAttention-3 as vllm's wheel builds it, through its torch operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..inputs import Inputs
from . import CONTIGUOUS, Call

LIBRARY = Path("vllm_flash_attn", "_vllm_fa3_C.abi3.so")


def _operators() -> Any:
    """The package around the library is not imported: it is large, and asks for much."""
    package = find_spec("vllm")
    if package is None:
        raise ImportError("no module named vllm")
    paths = [Path(folder, LIBRARY) for folder in package.submodule_search_locations or ()]
    found = [path for path in paths if path.is_file()]
    if not found:
        raise ImportError(f"vllm has no {LIBRARY}")
    torch.ops.load_library(str(found[0]))
    return torch.ops._vllm_fa3_C


def _positional(operator: Any, given: dict[str, Any]) -> tuple:
    """In the order of this version's schema. What is not given must be optional."""
    arguments = []
    names = {argument.name for argument in operator.default._schema.arguments}
    if unknown := given.keys() - names:
        raise TypeError(f"{operator}: this version has no {', '.join(sorted(unknown))}")
    for argument in operator.default._schema.arguments:
        if argument.name in given:
            arguments.append(given[argument.name])
        elif argument.has_default_value():
            arguments.append(argument.default_value)
        elif argument.type.kind() == "OptionalType":
            arguments.append(None)
        else:
            raise TypeError(f"{operator}: this version wants {argument.name}: {argument.type}")
    return tuple(arguments)


def _schedule(operators: Any, inputs: Inputs, page_size: int) -> torch.Tensor:
    """What vllm computes once a step for all layers."""
    shape = inputs.shape
    given = {
        "batch_size": shape.num_seqs,
        "max_seqlen_q": shape.chunk,
        "max_seqlen_k": shape.context,
        "num_heads": shape.num_q_heads,
        "num_heads_k": shape.num_kv_heads,
        "headdim": shape.head_dim,
        "headdim_v": shape.head_dim,
        "qkv_dtype": torch.bfloat16,
        "seqused_k": inputs.lengths(),
        "cu_seqlens_q": inputs.starts(shape.chunk),
        "page_size": page_size,
        "max_seqlen_k_new": 0,
        "is_causal": True,
        "window_size_left": -1,
        "window_size_right": -1,
        "has_softcap": False,
        "num_splits": 0,
        "sm_margin": 0,
    }
    operator = operators.get_scheduler_metadata
    return operator(*_positional(operator, given))


def prepare(inputs: Inputs, page_size: int) -> Iterator[Call]:
    operators = _operators()
    shape = inputs.shape
    outputs = inputs.outputs()
    given = {
        "cu_seqlens_q": inputs.starts(shape.chunk),
        "max_seqlen_q": shape.chunk,
        "max_seqlen_k": shape.context,
        "softmax_scale": shape.head_dim**-0.5,
        "is_causal": True,
        "window_size_left": -1,
        "window_size_right": -1,
        "softcap": 0.0,
        "is_rotary_interleaved": True,
        "num_splits": 0,  # as it thinks best
        "sm_margin": 0,
        "cp_world_size": 1,
        "cp_rank": 0,
    }
    if page_size == CONTIGUOUS:
        keys, values = (tokens.flatten(1, 2) for tokens in (inputs.keys, inputs.values))
        given |= {"cu_seqlens_k": inputs.starts(shape.context)}
    else:
        keys, values = inputs.pages(page_size)
        given |= {"seqused_k": inputs.lengths(), "page_table": inputs.page_table(page_size)}

    def call(more: dict[str, Any], note: str) -> Call:
        def run_of(index: int) -> Callable[[], None]:
            operands = {"q": inputs.query[index], "k": keys[index], "v": values[index]}
            operands |= {"out": outputs[index]}
            arguments = _positional(operators.fwd, given | operands | more)
            return lambda: operators.fwd(*arguments)

        runs = [run_of(index) for index in range(inputs.num_sets)]
        return Call(runs, lambda: outputs[0], note, outputs)

    if page_size != CONTIGUOUS:
        schedule = _schedule(operators, inputs, page_size)
        yield call({"scheduler_metadata": schedule}, "scheduled ahead")
    yield call({}, "")
