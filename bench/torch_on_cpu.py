"""Lets PyPI's torch for Linux start without the gigabytes of CUDA libraries that it asks for.

That wheel is linked with them, and uses none on a CPU. Here each of them gets a stand-in whose
functions all answer cudaErrorNoDevice, built with the system's compiler into the folder where the
wheel looks. torch's own code, all that is measured, is untouched.
"""

from __future__ import annotations

import re
import subprocess
import sysconfig
import tempfile
from collections import defaultdict
from pathlib import Path

NO_DEVICE = 100  # cudaErrorNoDevice
SITE = Path(sysconfig.get_path("purelib"))
TORCH = SITE / "torch" / "lib"

# Symbols without a version say by their names where they belong.
PREFIXES = {
    "cuFile": "libcufile.so.0",
    "cusparseLt": "libcusparseLt.so.0",
    "nccl": "libnccl.so.2",
    "pnccl": "libnccl.so.2",
    "nvshmem": "libnvshmem_host.so.3",
}


def run(*command: str) -> str:
    """What the command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def needed_libraries(libraries: list[Path]) -> set[str]:
    """The names of the CUDA libraries that torch's ask for."""
    listing = run("readelf", "--dynamic", "--wide", *map(str, libraries))
    names = set(re.findall(r"\(NEEDED\).*\[(.+?)\]", listing))
    names = {name for name in names if re.match(r"lib(cu|nccl|nv)", name)}
    return {name for name in names if not (TORCH / name).exists()}  # some wheels bring one along


def run_path_folder(library: Path) -> Path:
    """The first folder on the library's run path that is NVIDIA's; versions differ in it."""
    listing = run("readelf", "--dynamic", "--wide", str(library))
    path = re.search(r"\(R(?:UN)?PATH\).*\[(.+)\]", listing)
    folders = path[1].replace("$ORIGIN", str(library.parent)).split(":") if path else []
    return next(Path(folder).resolve() for folder in folders if "/nvidia/" in folder)


def needed_symbols(libraries: list[Path]) -> dict[str, dict[str, str]]:
    """The functions that torch's libraries call in each library, with the version they ask for."""
    symbols: dict[str, dict[str, str]] = defaultdict(dict)
    listing = run("nm", "-D", "--undefined-only", "--with-symbol-versions", *map(str, libraries))
    for name, version in re.findall(r"^ +[Uw] ([^@\s]+)(?:@+(\S+))?$", listing, re.MULTILINE):
        prefixes = [prefix for prefix in PREFIXES if name.startswith(prefix)]
        if prefixes:
            symbols[PREFIXES[prefixes[0]]][name] = version
        elif version:  # named after the library
            symbols[version][name] = version
    return symbols


def build_stand_in(stand_in: Path, symbols: dict[str, str], scratch: Path) -> None:
    """A library of this name in which each symbol is a function that fails."""
    source = scratch / "stand_in.c"
    source.write_text(
        "".join(f"int {s}(void) {{ return {NO_DEVICE}; }}\n" for s in sorted(symbols))
    )
    versions = scratch / "stand_in.map"
    nodes = set(symbols.values()) - {""}
    versions.write_text("".join(f"{node} {{ *; }};\n" for node in nodes) or "{ *; };\n")
    run(
        "gcc",
        "-shared",
        "-fPIC",
        "-w",
        f"-Wl,-soname,{stand_in.name}",
        f"-Wl,--version-script={versions}",
        "-o",
        str(stand_in),
        str(source),
    )


def main() -> None:
    libraries = sorted(TORCH.glob("*.so"))
    if not libraries:  # the report says so
        return
    symbols = needed_symbols(libraries)
    folder = run_path_folder(TORCH / "libtorch_global_deps.so")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for library in sorted(needed_libraries(libraries)):
            if not (folder / library).exists():
                build_stand_in(folder / library, symbols.get(library, {}), Path(scratch))


if __name__ == "__main__":
    main()
