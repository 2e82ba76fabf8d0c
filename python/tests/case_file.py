"""Case files (docs/conventions.md, "Case files"): read, and written for the command to run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I8": np.int8,
    "I32": np.int32,
}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
Arrays = dict[str, npt.NDArray[Any]]


def load(path: Path) -> tuple[Arrays, dict[str, str]]:
    """The tensors and the metadata of a file."""
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    metadata = header.pop("__metadata__", {})
    arrays = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        flat = np.frombuffer(data[begin + first : begin + last], DTYPES[entry["dtype"]])
        arrays[name] = flat.reshape(entry["shape"]).copy()
    return arrays, metadata


def save(path: Path, arrays: Arrays, metadata: dict[str, str]) -> None:
    """Writes a file that `load` reads."""
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, array in arrays.items():
        offsets = [end, end := end + array.nbytes]
        entry = {"dtype": NAMES[array.dtype], "shape": list(array.shape), "data_offsets": offsets}
        header[name] = entry
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(
        len(text).to_bytes(8, "little") + text + b"".join(a.tobytes() for a in arrays.values())
    )
