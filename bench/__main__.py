"""python -m bench: measures each number of threads and writes the report; script/bench calls it."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from . import shapes
from .machine import BUILD
from .peers import PEERS

HERE = Path(__file__).resolve().parent


def parse_arguments() -> argparse.Namespace:
    cores = len(os.sched_getaffinity(0))
    names = list(dict.fromkeys(shape.name for shape in shapes.ALL))
    parser = argparse.ArgumentParser(prog="script/bench", description="pagefill beside its peers.")
    parser.add_argument("--quick", action="store_true", help="small shapes, few rounds")
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        default=sorted({1, cores}),
        metavar="N",
        help="numbers of threads, one after another (1, and all cores)",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="of turns (9; quick: 3)")
    parser.add_argument("--only", nargs="+", metavar="SHAPE", help=", ".join(names))
    parser.add_argument(
        "--peers", nargs="+", metavar="PEER", help=", ".join(f'"{p.name}"' for p in PEERS[1:])
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="folder of REPORT.md and figures/ (bench/; where the run is quick or a part, build/bench/)",
    )
    arguments = parser.parse_args()
    known = [peer.name for peer in PEERS]
    for name in arguments.peers or ():
        if name not in known:
            parser.error(f"--peers: expected some of {', '.join(known)}, got {name}")
    if not arguments.quick:
        for name in arguments.only or ():
            if name not in names:
                parser.error(f"--only: expected some of {', '.join(names)}, got {name}")
    return arguments


def run(command: list, **options: object) -> None:
    """Ends this program with the command's code where that fails; the command has said why."""
    code = subprocess.run(command, check=False, **options).returncode
    if code != 0:
        sys.exit(code)


def main() -> None:
    arguments = parse_arguments()
    partial = arguments.quick or arguments.only or arguments.peers
    folder = arguments.output or (BUILD / "report" if partial else HERE)
    passed = ["--quick"] if arguments.quick else []
    if arguments.rounds:
        passed += ["--rounds", str(arguments.rounds)]
    for option in ("only", "peers"):
        if getattr(arguments, option):
            passed += [f"--{option}", *getattr(arguments, option)]

    # pagefill is not installed: its Python files, and the library that was built for this.
    environment = os.environ | {
        "PYTHONPATH": str(HERE.parent / "python"),
        "PAGEFILL_LIBRARY": str(BUILD / "src" / "libpagefill.so"),
    }
    results = []
    for threads in arguments.threads:
        results.append(BUILD / f"threads-{threads}.json")
        measure = [sys.executable, "-m", "bench.measure", "--threads", str(threads)]
        run([*measure, "--output", results[-1], *passed], env=environment)
    one_token = BUILD / "one-token.txt"
    with one_token.open("w") as lines:
        run([HERE / "one_token.sh"], stdout=lines)
    report = [sys.executable, "-m", "bench.report", folder, *results]
    run([*report, "--one-token", one_token])


if __name__ == "__main__":
    main()
