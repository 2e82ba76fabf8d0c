"""OpenVINO's PagedAttention, the operator of its continuous batching; it appends the chunk itself."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import openvino as ov
from openvino import op, opset13

from ..inputs import Inputs
from ..shapes import Shape
from . import Call, Unsupported

PAGE_SIZE = 32  # the only one of the CPU plugin

OV_DTYPES = {"float32": ov.Type.f32, "bfloat16": ov.Type.bf16, "int8": ov.Type.u8}
PAGES_OF_A_FILL = 16


def _model(shape: Shape, floats: ov.Type) -> ov.Model:
    """A graph of that one node. Its inputs are described in OpenVINO's openvino/op/paged_attention.hpp."""

    def parameter(name: str, dtype: ov.Type, *dims: int) -> ov.Node:
        node = opset13.parameter(ov.PartialShape(list(dims)), dtype, name)
        node.output(0).set_names({name})
        return node

    def absent(dtype: type) -> ov.Node:
        return opset13.constant(np.zeros(0, dtype))

    def scalar(value: float, dtype: type) -> ov.Node:
        return opset13.constant(np.array(value, dtype))

    kv_dim = shape.num_kv_heads * shape.head_dim
    parameters = [
        parameter("query", floats, -1, shape.num_q_heads * shape.head_dim),
        parameter("key", floats, -1, kv_dim),
        parameter("value", floats, -1, kv_dim),
        parameter("key_cache", ov.Type.dynamic, -1, -1, -1, -1),
        parameter("value_cache", ov.Type.dynamic, -1, -1, -1, -1),
        parameter("past_lens", ov.Type.i32, -1),
        parameter("subsequence_begins", ov.Type.i32, -1),
        parameter("block_indices", ov.Type.i32, -1),
        parameter("block_indices_begins", ov.Type.i32, -1),
        parameter("max_context_len", ov.Type.i32),
    ]
    options = [
        scalar(shape.head_dim**-0.5, np.float32),  # scale
        scalar(0, np.int32),  # sliding_window
        absent(np.float32),  # alibi_slopes
        parameters[9],  # max_context_len
        absent(np.int32),  # score_aggregation_window
        absent(np.int32),  # rotated_block_indices
        absent(np.int32),  # rotation_deltas
        absent(np.float32),  # rotation_trig_lut
        absent(np.float32),  # xattention_threshold
        scalar(0, np.int32),  # xattention_block_size
        scalar(0, np.int32),  # xattention_stride
        absent(np.float32),  # sinks
        scalar(0, np.int32),  # adaptive_rkv_start_size
        absent(np.int32),  # adaptive_rkv_evictable_sizes
        absent(np.int32),  # adaptive_rkv_diversity_block_set_indices
        absent(np.int32),  # adaptive_rkv_diversity_block_set_indices_begins
        absent(np.int32),  # token_type_ids
        absent(np.uint8),  # qq_bias
        absent(np.int32),  # qq_bias_begins
    ]
    node = op._PagedAttentionExtension([n.output(0) for n in parameters[:9] + options])
    # The plugin takes the shape of the caches from these.
    node.get_rt_info()["num_k_heads"] = shape.num_kv_heads
    node.get_rt_info()["k_head_size"] = shape.head_dim
    node.get_rt_info()["num_v_heads"] = shape.num_kv_heads
    node.get_rt_info()["v_head_size"] = shape.head_dim
    return ov.Model([opset13.result(node.output(0))], parameters, "attention")


def _tensor(array: np.ndarray) -> ov.Tensor:
    """A view of the array, which must outlive it."""
    if array.dtype.name == "bfloat16":
        return ov.Tensor(array.view(np.uint16), ov.Shape(list(array.shape)), ov.Type.bf16)
    return ov.Tensor(array, shared_memory=True)


class _PagedAttention:
    """The compiled operator and its cache."""

    def __init__(self, inputs: Inputs, threads: int) -> None:
        floats = OV_DTYPES[inputs.dtypes.query]
        config = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": floats,
            "KV_CACHE_PRECISION": OV_DTYPES[inputs.dtypes.cache],
        }
        compiled = ov.Core().compile_model(_model(inputs.shape, floats), "CPU", config)
        self.request = compiled.create_infer_request()
        num_pages = inputs.page_table(PAGE_SIZE).size
        for name in ("key_cache", "value_cache"):
            port = compiled.input(name)
            dims = [dim.get_length() for dim in list(port.get_partial_shape())[1:]]
            tensor = ov.Tensor(port.get_element_type(), ov.Shape([num_pages, *dims]))
            self.request.set_tensor(name, tensor)

    def set_tokens(
        self,
        operands: tuple[np.ndarray, np.ndarray, np.ndarray],
        past_len: int,
        page_table: np.ndarray,
    ) -> None:
        """queries, keys and values [num_seqs, tokens, heads, head_dim] that follow past_len others.

        page_table: int32 [num_seqs, num_pages], with the pages of past and new tokens and no more.
        """
        num_seqs, tokens = operands[0].shape[:2]
        names = ("query", "key", "value")
        self.arrays = {
            name: np.ascontiguousarray(operand)
            .astype(operands[0].dtype)
            .reshape(num_seqs * tokens, -1)
            for name, operand in zip(names, operands)
        }
        self.arrays["past_lens"] = np.full(num_seqs, past_len, np.int32)
        self.arrays["subsequence_begins"] = np.arange(num_seqs + 1, dtype=np.int32) * tokens
        self.arrays["block_indices"] = page_table.reshape(-1)
        self.arrays["block_indices_begins"] = (
            np.arange(num_seqs + 1, dtype=np.int32) * page_table.shape[1]
        )
        self.arrays["max_context_len"] = np.array(past_len + tokens, np.int32)
        for name, array in self.arrays.items():  # which keeps what the tensors are views of
            self.request.set_tensor(name, _tensor(array))

    def output(self) -> np.ndarray:
        tensor = self.request.get_output_tensor(0)
        if tensor.get_element_type() == ov.Type.bf16:
            return np.array(tensor.data).view(ml_dtypes.bfloat16)
        return np.array(tensor.data)


def _fill(attention: _PagedAttention, inputs: Inputs) -> None:
    """The tokens before the chunk, in the cache's own format: each page as if it were a sequence."""
    shape = inputs.shape
    full_pages, rest = divmod(shape.context - shape.chunk, PAGE_SIZE)
    runs = [
        (first, min(first + PAGES_OF_A_FILL, full_pages), PAGE_SIZE)
        for first in range(0, full_pages, PAGES_OF_A_FILL)
    ]
    if rest > 0:
        runs.append((full_pages, full_pages + 1, rest))
    for sequence, pages in enumerate(inputs.page_table(PAGE_SIZE)):
        for first, last, tokens in runs:
            positions = slice(first * PAGE_SIZE, first * PAGE_SIZE + (last - first) * tokens)
            lengths = (last - first, tokens)
            keys, values = (
                array[sequence, positions].reshape(*lengths, *array.shape[2:])
                for array in (inputs.keys, inputs.values)
            )
            queries = np.zeros((*lengths, *inputs.query.shape[2:]), inputs.query.dtype)
            attention.set_tokens((queries, keys, values), 0, pages[first:last, None])
            attention.request.infer()


def prepare(inputs: Inputs, threads: int) -> Call:
    try:
        attention = _PagedAttention(inputs, threads)
    except RuntimeError as error:
        raise Unsupported(str(error)) from error
    _fill(attention, inputs)
    past = inputs.shape.context - inputs.shape.chunk
    operands = (inputs.query, inputs.keys[:, past:], inputs.values[:, past:])
    attention.set_tokens(operands, past, inputs.page_table(PAGE_SIZE))
    return Call(
        attention.request.infer,
        lambda: attention.output().astype(np.float64).reshape(inputs.query.shape),
        f"pages of {PAGE_SIZE}; also appends the chunk",
    )
