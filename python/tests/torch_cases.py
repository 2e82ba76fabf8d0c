"""The problems of cases.py as tensors, and what every test file of the PyTorch face uses."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from cases import Case, random_case
from torch import Tensor

BY_NAME = ("bfloat16", "float8_e4m3fn", "float8_e5m2")  # NumPy has no such dtypes of its own
SAME_SIZE = {1: np.int8, 2: np.int16}


def tensor(array: Any) -> Tensor:
    """The array's memory as a tensor."""
    name = array.dtype.name
    if name in BY_NAME:
        return torch.from_numpy(array.view(SAME_SIZE[array.itemsize])).view(getattr(torch, name))
    return torch.from_numpy(array)


def tensors(case: Case) -> tuple[list[Tensor], dict[str, Any]]:
    """The positional arguments and the options."""
    options = {
        name: tensor(value) if isinstance(value, np.ndarray) else value
        for name, value in case.options.items()
    }
    return [tensor(array) for array in case.arguments], options


def bits(given: Tensor) -> bytes:
    """The tensor's elements, row-major."""
    return given.contiguous().view(torch.uint8).numpy().tobytes()


def random_tensors(**shape: Any) -> list[Tensor]:
    """query, key_cache, value_cache, context_len, page_indices of cases.random_case."""
    return tensors(random_case(**shape))[0]


def int32(*numbers: Any) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def random_batch(seed: int = 0) -> list[Tensor]:
    """query, key_cache, value_cache, query_starts, context_lens, page_table: a chunk, a sequence
    without rows and a decode token in one cache, and two rows of padding."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(8, 4, 16, generator=generator)
    keys = torch.randn(2, 12, 8, 16, generator=generator)
    values = torch.randn(2, 12, 8, 16, generator=generator)
    table = torch.randperm(12, generator=generator).view(3, 4).to(torch.int32)
    return [query, keys, values, int32(0, 5, 5, 6), int32(30, 17, 9), table]


def random_tokens(batch: list[Tensor], seed: int = 1) -> tuple[Tensor, Tensor]:
    """New keys and values for each row of the batch."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch[0].shape[0], batch[1].shape[0], batch[1].shape[3])
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
