"""Types of the NumPy face's arguments, for type checkers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt

from pagefill._c.options import Lengths
from pagefill._c.views import Array

if TYPE_CHECKING:
    from typing_extensions import Unpack as Unpack

Output: TypeAlias = "npt.NDArray[Any]"
State: TypeAlias = "tuple[npt.NDArray[Any], npt.NDArray[np.float32]]"


class Where(TypedDict, total=False):
    """How a call runs."""

    num_threads: int | None
    backend: str | None
    cpu_target: str | None


class AttentionOptions(Where, total=False):
    """The keyword arguments that both attention calls have, but return_lse."""

    softmax_scale: float | None
    mask_value: float
    attn_logits_soft_cap: float | None
    sliding_window: int | None
    sinks: Array | None
    kv_start: Lengths | None
    key_scale: Array | None
    value_scale: Array | None
    out: Array | None
    out_lse: Array | None
