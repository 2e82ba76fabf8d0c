"""ONNX Runtime's GroupQueryAttention: a contiguous cache, to which it appends the chunk itself."""

from __future__ import annotations

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from ..inputs import Inputs
from . import Call, Unsupported

ELEMENT_TYPES = {
    "float32": TensorProto.FLOAT,
    "bfloat16": TensorProto.BFLOAT16,
    "int8": TensorProto.INT8,
}
# The results are the attention's output and the cache with the chunk in it.
RESULTS = ("output", "present_key", "present_value")
# Rotation, bias and sinks, between total_sequence_length and the scales.
ABSENT = [""] * 5


def _operands(inputs: Inputs) -> dict[str, tuple[int, int]]:
    """Element type and rank of each, in the node's order."""
    floats = ELEMENT_TYPES[inputs.dtypes.query]
    cache = ELEMENT_TYPES[inputs.dtypes.cache]
    operands = {
        "query": (floats, 3),
        "key": (floats, 3),
        "value": (floats, 3),
        "past_key": (cache, 4),
        "past_value": (cache, 4),
        "seqlens_k": (TensorProto.INT32, 1),
        "total_sequence_length": (TensorProto.INT32, 1),
    }
    if inputs.dtypes.cache == "int8":
        operands.update(k_scale=(TensorProto.FLOAT, 4), v_scale=(TensorProto.FLOAT, 4))
    return operands


def _model(inputs: Inputs) -> bytes:
    """A graph of that one node."""
    shape = inputs.shape
    operands = _operands(inputs)
    attributes = {"num_heads": shape.num_q_heads, "kv_num_heads": shape.num_kv_heads}
    names = list(operands)
    if inputs.dtypes.cache == "int8":
        attributes |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
        attributes |= {"kv_cache_bit_width": 8}
        names[7:7] = ABSENT
    node = helper.make_node(
        "GroupQueryAttention", names, RESULTS, domain="com.microsoft", **attributes
    )
    results = (operands["query"], operands["past_key"], operands["past_value"])
    graph = helper.make_graph(
        [node],
        "attention",
        *(
            [
                helper.make_tensor_value_info(name, kind, [None] * rank)
                for name, (kind, rank) in infos
            ]
            for infos in (operands.items(), zip(RESULTS, results))
        ),
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def _session(inputs: Inputs, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(_model(inputs), options, ["CPUExecutionProvider"])
    except Exception as error:
        raise Unsupported(str(error)) from error


def _quantised(cache: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 of [num_seqs, num_kv_heads, context, head_dim], and a scale for each channel of each head."""
    scale = np.abs(cache).max(axis=(0, 2), keepdims=True) / 127
    return np.rint(cache / scale).astype(np.int8), scale


def prepare(inputs: Inputs, threads: int) -> Call:
    shape = inputs.shape
    if (inputs.dtypes.query, inputs.dtypes.cache) == ("float32", "bfloat16"):
        raise Unsupported("the cache has query's dtype or is quantised")
    session = _session(inputs, threads)
    past = shape.context - shape.chunk
    query = inputs.query.reshape(shape.num_seqs, shape.chunk, -1)
    new_tokens = [
        np.ascontiguousarray(tokens[:, past:]).reshape(shape.num_seqs, shape.chunk, -1)
        for tokens in (inputs.keys, inputs.values)
    ]
    caches = [
        np.ascontiguousarray(tokens.swapaxes(1, 2)) for tokens in (inputs.keys, inputs.values)
    ]
    scales = []
    if inputs.dtypes.cache == "int8":
        caches, scales = zip(*map(_quantised, caches))
    lengths = [np.full(shape.num_seqs, shape.context - 1, np.int32)]
    lengths += [np.array([shape.context], np.int32)]
    values = [
        onnxruntime.OrtValue.ortvalue_from_numpy(array)
        for array in (query, *new_tokens, *caches, *lengths, *scales)
    ]
    output = onnxruntime.OrtValue.ortvalue_from_numpy(np.full_like(query, np.nan))
    binding = session.io_binding()
    for name, value in zip(_operands(inputs), values):
        binding.bind_ortvalue_input(name, value)
    # One buffer is the past and the present: nothing is copied but the chunk.
    for name, value in zip(RESULTS, (output, values[3], values[4])):
        binding.bind_ortvalue_output(name, value)

    return Call(
        lambda: session.run_with_iobinding(binding),
        lambda: output.numpy().astype(np.float64).reshape(inputs.query.shape),
        "contiguous cache; also appends the chunk",
    )
