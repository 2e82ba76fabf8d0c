"""What the report says of the machine and of the versions; nothing that names the machine itself."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "bench"
VECTOR_FLAGS = (
    "sse4_2 avx2 fma avx512f avx512_vnni avx512_bf16 avx512_fp16 amx_tile amx_bf16 amx_int8 "
    "asimd sve sve2 bf16"
).split()
PACKAGES = ("openvino", "onnxruntime", "torch", "ejkernel", "jax", "numpy")


def _cpu_info(field: str) -> str:
    """The first processor's line of that name."""
    match = re.search(rf"^{field}\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return match[1] if match else "unknown"


def _cache_sizes() -> str:
    caches = Path("/sys/devices/system/cpu/cpu0/cache")
    sizes = {
        (folder / "level").read_text().strip(): (folder / "size").read_text().strip()
        for folder in sorted(caches.glob("index*"))
        if (folder / "type").read_text().strip() != "Instruction"
    }
    return ", ".join(f"L{level} {size}" for level, size in sizes.items()) or "unknown"


def describe_machine() -> dict[str, str]:
    flags = (_cpu_info("flags") + " " + _cpu_info("Features")).split()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    virtual = ", a virtual machine" if "hypervisor" in flags else ""
    return {
        "processor": _cpu_info("model name") + virtual,
        "family, model, stepping": ", ".join(map(_cpu_info, ("cpu family", "model", "stepping"))),
        "cores": str(os.cpu_count()),
        "caches": _cache_sizes(),
        "vector extensions": ", ".join(flag for flag in VECTOR_FLAGS if flag in flags),
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
    }


def _output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return "unknown"
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()


def describe_pagefill() -> str:
    """The commit, and whether what is here differs from it."""
    return _output("git", "-C", str(ROOT), "describe", "--always", "--dirty") or "unknown"


def describe_versions() -> dict[str, str]:
    versions = {
        "pagefill": describe_pagefill(),
        "its compiler": _output("g++", "--version").partition("\n")[0],
        "Python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def waited_seconds() -> float:
    """How long the threads of this process were ready and had no core, since they began."""
    delays = (path.read_text().split()[1] for path in Path("/proc/self/task").glob("*/schedstat"))
    return sum(map(int, delays)) * 1e-9


def measure_peaks(threads: int) -> tuple[float, float]:
    """float32 operations and bytes read a second: what `pagefill bench` finds that the machine can do."""
    command = [BUILD / "pagefill", "bench", "--json", "--chunk", "1", "--context", "64"]
    command += ["--threads", str(threads), "--repeats", "5"]
    line = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    record = json.loads(line)
    return record["peak_flops"], record["peak_bandwidth"]
