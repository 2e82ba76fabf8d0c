"""What the results say of the GPU and of the versions; nothing that names the machine itself."""

from __future__ import annotations

import shutil
import subprocess
from importlib import metadata

import torch

from ..machine import describe_pagefill
from .peers import PEERS
from .timing import TURN_SECONDS, prepare_turn

GPU_FIELDS = ("name", "driver_version", "power.limit", "clocks.max.sm", "clocks.max.mem")
STATE_FIELDS = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")
COPIED_BYTES, MATRIX_SIZE = 4 << 30, 8192


def _nvidia_smi(fields: tuple[str, ...]) -> dict[str, str]:
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "--id=0"]
    if shutil.which(command[0]) is None:
        return {}
    line = subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()
    return dict(zip(fields, (value.strip() for value in line.split(","))))


def describe_gpu() -> dict[str, str]:
    properties = torch.cuda.get_device_properties(0)
    return {
        **_nvidia_smi(GPU_FIELDS),
        "multiprocessors": str(properties.multi_processor_count),
        "L2": f"{properties.L2_cache_size / 2**20:.0f} MiB",
        "memory": f"{properties.total_memory / 2**30:.0f} GiB",
    }


def state() -> dict[str, str]:
    """Clocks, power and temperature, read while the GPU is still warm from what was timed."""
    return _nvidia_smi(STATE_FIELDS)


def describe_versions() -> dict[str, str]:
    versions = {"pagefill": describe_pagefill(), "CUDA of torch": torch.version.cuda or "none"}
    packages = dict.fromkeys(peer.package for peer in PEERS if peer.package)
    for package in (*packages, "nvidia-cutlass-dsl", "apache-tvm-ffi", "nvidia-cudnn-cu13"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    versions["cuDNN"] = str(torch.backends.cudnn.version())
    return versions


def measure_peaks() -> dict[str, float]:
    """Of a bfloat16 matrix product (operations) and a copy (bytes read and written), a second."""
    size = (MATRIX_SIZE, MATRIX_SIZE)
    left, right = (torch.randn(size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(left)
    source = torch.empty(COPIED_BYTES, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)

    def best(run) -> float:
        turn = prepare_turn([run])
        return min(turn.seconds() for _ in range(max(5, int(5e-2 / TURN_SECONDS))))

    flops = 2 * MATRIX_SIZE**3 / best(lambda: torch.mm(left, right, out=product))
    return {"matrix_flops": flops, "copy_bytes": 2 * COPIED_BYTES / best(lambda: target.copy_(source))}
