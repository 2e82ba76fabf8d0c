"""python -m bench.gpu: pagefill beside the attention of others on an NVIDIA GPU, into one JSON file."""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import statistics
import subprocess
import sys
import time
from pathlib import Path

from .shapes import CASES, Case

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


class Run:
    """Runs python -m bench.gpu.measure until all cases have a result: where a peer ends or blocks that
    process, the next one does the rest without it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.failed: dict[str, str] = {}
        self.waiting = [case.name for case in CASES if wanted(case, arguments.only)]
        self.run: dict = {"gpu": {}, "versions": {}, "peaks": {}, "failed": self.failed, "results": []}

    def all_cases(self) -> None:
        while self.waiting:
            self._one_process()

    def _one_process(self) -> None:
        command = [sys.executable, "-m", "bench.gpu.measure", "--cases", *self.waiting]
        if self.arguments.peers:
            command += ["--peers", *self.arguments.peers]
        command += ["--failed", json.dumps(self.failed)]
        if not self.run["gpu"]:
            command.append("--describe")
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        last, reason = {"event": "start"}, ""
        buffer = b""
        while True:
            ready, _, _ = select.select([process.stdout], [], [], self.arguments.patience)
            if not ready:
                reason = f"did not come back within {self.arguments.patience} s"
                process.kill()
                break
            read = os.read(process.stdout.fileno(), 1 << 16)
            if not read:
                break
            *lines, buffer = (buffer + read).split(b"\n")
            for line in lines:
                event = json.loads(line)
                if event["event"] == "lost":
                    reason = event["reason"]
                else:
                    last = event
                    self._take(event)
        code = process.wait()
        if self.waiting:
            self._blame(last, reason or f"the process ended with {code}")

    def _take(self, event: dict) -> None:
        kind = event["event"]
        if kind == "machine":
            self.run.update({key: event[key] for key in ("gpu", "versions", "peaks")})
            print(describe(self.run), flush=True)
        elif kind == "result":
            self.waiting.remove(event["case"])
            self.run["results"].append(event["result"])
            self._write()
            print(table(event["case"], event["result"]), flush=True)

    def _blame(self, last: dict, reason: str) -> None:
        """The peer that was being prepared; without one it is not known whose fault it was, and the case
        is left out."""
        print(f"\nThe process that measured ended: {reason}", flush=True)
        if last["event"] == "peer":
            self.failed[last["peer"]] = f"{last['case']}: {reason}"
            print(f"Going on without {last['peer']}.", flush=True)
        elif last["event"] in ("case", "turns"):
            self.waiting.remove(last["case"])
            self.run.setdefault("cases_lost", {})[last["case"]] = f"{last['event']}: {reason}"
            print(f"Going on without {last['case']}.", flush=True)
        else:
            sys.exit(f"python -m bench.gpu.measure does not start: {reason}")
        self._write()

    def _write(self) -> None:
        self.arguments.output.parent.mkdir(parents=True, exist_ok=True)
        self.arguments.output.write_text(json.dumps(self.run, indent=1))


def wanted(case: Case, patterns: list[str] | None) -> bool:
    text = f"{case.kind} {case.name}"
    return not patterns or any(re.search(pattern, text) for pattern in patterns)


def describe(run: dict) -> str:
    gpu = ", ".join(f"{key} {value}" for key, value in run["gpu"].items())
    versions = ", ".join(f"{key} {value}" for key, value in run["versions"].items())
    peaks = run["peaks"]
    return (
        f"{gpu}\n{versions}\nmatrix product {peaks['matrix_flops'] / 1e12:.0f} TFLOP/s, "
        f"copy {peaks['copy_bytes'] / 1e12:.2f} TB/s"
    )


def table(name: str, result: dict) -> str:
    """One line a peer: median, least and most microseconds, rate, time over pagefill's."""
    case = next(case for case in CASES if case.name == name)
    state = ", ".join(result["state"].values())
    lines = [f"\n{case.kind} {name}, heads {case.shape.heads} ({state})"]
    base = result["peers"][0]
    for peer in result["peers"]:
        seconds = peer["seconds"]
        if not seconds:
            lines.append(f"  {peer['peer']:27} {peer['status']}: {peer.get('reason', '')}")
            continue
        median = statistics.median(seconds)
        times = " ".join(f"{t * 1e6:9.2f}" for t in (median, min(seconds), max(seconds)))
        ratio = f"{median / statistics.median(base['seconds']):6.3f}" if base["seconds"] else ""
        details = f"error {peer['error']:.1e}; {peer['how']}; {peer['note']}"
        lines.append(f"  {peer['peer']:27} {times} us {case.rate_text(median):>13} {ratio}  {details}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="script/bench gpu", description=__doc__)
    names = ", ".join(f"{case.kind} {case.name}" for case in CASES)
    parser.add_argument("--only", nargs="+", metavar="REGEX", help=f"cases, of {names}")
    parser.add_argument("--peers", nargs="+", metavar="REGEX", help="peers by name, beside pagefill")
    parser.add_argument("--patience", type=float, default=600, help="seconds for a peer (%(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench" / "gpu.json")
    arguments = parser.parse_args()
    begin = time.perf_counter()
    run = Run(arguments)
    if not run.waiting:
        parser.error(f"--only: expected some of {names}, got {' '.join(arguments.only)}")
    run.all_cases()
    print(f"\nwrote {arguments.output.name} after {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
