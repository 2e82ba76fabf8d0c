"""python -m bench.report FOLDER RESULTS...: writes FOLDER/REPORT.md and FOLDER/figures/."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import figures, shapes
from .markdown import image, in_cell, link_to_readme, table
from .peers import PAGEFILL, PEERS
from .results import Result, Run, load

TARGET_PREFILL, TARGET_DECODE = 1.1, 1.8  # times the best peer
QUIET = 0.03  # of the time that threads may wait for a core; the system's own work needs some

INTRODUCTION = """\
# pagefill beside its peers

Written by `script/bench`, which installs the peers, measures and writes this file again; do not edit it.
{readme} says how it measures and what each peer does besides. All peers had the same
inputs and as many threads, took turns in one process, and were checked against float64. Rates count
useful work only: 4 * head_dim for each visible (query, key) pair and head. Shares are of the float32
multiply-add peak, of decode (one query a sequence) of the read bandwidth, both measured by
`pagefill bench` before and after each shape. Times are medians of rounds.

`512 @ 4096, 32/8/128` is a chunk of 512 queries that ends a context of 4096 tokens, with 32 query heads,
8 KV heads and head_dim 128.
"""


def cell(result: Result, peer: str) -> str:
    if peer not in result.peers:
        return ""
    if peer not in result.measured():
        return result.peers[peer].status
    if result.shape.is_decode:
        time = f"{result.peers[peer].median * 1e3:.2f} ms"
        return f"{time}, {result.bandwidth(peer) / 1e9:.1f} GB/s, {result.share_of_bandwidth(peer):.0%}"
    return f"{result.flops(peer) / 1e9:.1f}, {result.share_of_peak(peer):.0%}"


def ratio_cell(result: Result) -> str:
    ratio = result.ratio()
    if ratio is None:
        return "none measured"
    return f"{ratio:.2f} ({result.best_peer().peer})"


def rates(results: list[Result], unit: str) -> str:
    """One row a shape, one column a peer that was measured on some of them."""
    peers = [peer.name for peer in PEERS if any(peer.name in r.measured() for r in results)]
    heading = [unit, *peers, "best peer's time / pagefill's"]
    rows = [[r.shape.text, *(cell(r, peer) for peer in peers), ratio_cell(r)] for r in results]
    return table(heading, rows)


def machine_section(run: Run) -> str:
    return "\n".join(
        (
            "## Machine and versions\n",
            table(["machine", ""], [list(row) for row in run.machine.items()]),
            table(["version", ""], [list(row) for row in run.versions.items()]),
        )
    )


def threads_text(threads: int) -> str:
    return f"{threads} thread" + ("s" if threads > 1 else "")


def run_section(run: Run, folder: Path) -> str:
    peaks = [result.peak_flops / 1e9 for result in run.results]
    bandwidths = [result.peak_bandwidth / 1e9 for result in run.results]
    parts = [
        f"## {threads_text(run.threads).capitalize()}\n",
        f"float32 peak {min(peaks):.1f} to {max(peaks):.1f} GFLOP/s, read bandwidth "
        f"{min(bandwidths):.1f} to {max(bandwidths):.1f} GB/s over the shapes.\n",
        noise_text(run),
    ]
    for dtypes in shapes.STANDARD_DTYPES:
        standard = run.part("standard", dtypes.name)
        name = dtypes.name.replace(", ", "-").replace(" ", "-")
        if not standard:
            continue
        parts.append(f"### {dtypes.name}\n")
        prefill = [result for result in standard if not result.shape.is_decode]
        decode = [result for result in standard if result.shape.is_decode]
        if prefill:
            parts.append(rates(prefill, "GFLOP/s, share of the float32 peak"))
        if decode:
            parts.append(rates(decode, "time, cache read, share of the bandwidth"))
        title = f"Share of the peak, {dtypes.name}, {threads_text(run.threads)}"
        path = folder / "figures" / f"share-{name}-{run.threads}.svg"
        parts.append(image(title, figures.shares(standard, title, path)))
    for dtypes in shapes.CONTEXT_DTYPES:
        context = run.part("context", dtypes.name)
        if not context:
            continue
        parts.append(f"### Time against context, {dtypes.name}\n")
        parts.append(rates(context, "GFLOP/s, share of the float32 peak"))
        title = f"Time against context, {dtypes.name}, {threads_text(run.threads)}"
        path = folder / "figures" / f"context-{dtypes.name}-{run.threads}.svg"
        parts.append(image(title, figures.times(run, dtypes.name, title, path)))
    for dtypes in shapes.DECODE_DTYPES:
        decode = run.part("decode", dtypes.name)
        if decode:
            parts.append(f"### Decode by heads and batch, {dtypes.name}\n")
            parts.append(rates(decode, "time, cache read, share of the bandwidth"))
    parts += [rows_text(run), head_dims_text(run)]
    return "\n".join(part for part in parts if part)


def rows_text(run: Run) -> str:
    """What the rows of a short chunk cost beside one row."""
    lines, shapes_of_rows = [], []
    for dtypes in shapes.ROWS_DTYPES:
        results = [r for r in run.part("rows", dtypes.name) if PAGEFILL.name in r.measured()]
        if not results or results[0].shape.chunk != 1:
            continue
        shapes_of_rows = [r.shape for r in results]
        times = [r.peers[PAGEFILL.name].median for r in results]
        lines.append([dtypes.name, *(f"{t * 1e3:.2f} ms, {t / times[0]:.2f}" for t in times)])
    if not lines:
        return ""
    heading = ["time, over one row's", *(shape.text for shape in shapes_of_rows)]
    return "### Few rows\n\n" + table(heading, lines)


def head_dims_text(run: Run) -> str:
    results = [r for dtypes in shapes.HEAD_DIMS_DTYPES for r in run.part("head dims", dtypes.name)]
    if not results:
        return ""
    rows = [[r.shape.text, r.dtypes.name, cell(r, PAGEFILL.name)] for r in results]
    heading = ["shape", "dtypes", "GFLOP/s, share of the float32 peak"]
    return "### Other head dims\n\n" + table(heading, rows)


def noise_text(run: Run) -> str:
    """Says so where other work on the machine took the cores."""
    noisy = [result.waited_share for result in run.results if result.waited_share > QUIET]
    if not noisy:
        return ""
    return (
        f"**The machine was not quiet**: in {len(noisy)} of {len(run.results)} comparisons the "
        f"threads had to wait for a core, up to {max(noisy):.0%} of the time. Run it again.\n"
    )


def losses_section(runs: list[Run]) -> str:
    """Where a peer is faster, and where pagefill is not as far ahead as it is to be."""
    losing, short = [], []
    for run in runs:
        for result in run.results:
            ratio = result.ratio()
            target = TARGET_DECODE if result.shape.is_decode else TARGET_PREFILL
            if ratio is None or ratio >= target:
                continue
            row = [threads_text(run.threads), result.shape.text, result.dtypes.name]
            row += [result.best_peer().peer, f"{ratio:.2f}", f"{target:.1f}"]
            (losing if ratio < 1 else short).append(row)
    heading = ["threads", "shape", "dtypes", "best peer", "its time / pagefill's", "target"]
    parts = ["## Where pagefill loses\n", table(heading, losing) if losing else "Nowhere.\n"]
    if short:
        parts += ["Ahead, but by less than the target:\n", table(heading, short)]
    return "\n".join(parts)


def absent_section(runs: list[Run]) -> str:
    """Who was not measured on what, and why, once each."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for result in (result for run in runs for result in run.results):
        for peer in result.peers.values():
            if peer.status != "measured":
                where = reasons.setdefault((peer.peer, peer.status, peer.reason), [])
                text = f"{result.shape.text}: {result.dtypes.name}"
                if text not in where:
                    where.append(text)
    if not reasons:
        return ""
    rows = [
        [peer, status, in_cell(reason), "; ".join(summary(where))]
        for (peer, status, reason), where in sorted(reasons.items())
    ]
    return "## Not measured\n\n" + table(["peer", "status", "reason", "where"], rows)


def summary(where: list[str]) -> list[str]:
    """The dtypes alone where there are many shapes."""
    if len(where) <= 2:
        return where
    names = dict.fromkeys(text.rpartition(": ")[2] for text in where)
    counts = {name: sum(text.endswith(f": {name}") for text in where) for name in names}
    return [f"{name} ({count} shape{'s' if count > 1 else ''})" for name, count in counts.items()]


def one_token_section(path: Path | None) -> str:
    if path is None:
        return ""
    lines = [line.split() for line in path.read_text().splitlines()]
    (target, nanoseconds), (counted_target, instructions) = lines
    return (
        "## A call with next to nothing to do\n\n"
        "One token at context 1, 32/8/128, float32, a serial executor, the caller's workspace: "
        f"{int(nanoseconds) / 1e3:.2f} microseconds on {target}; {int(instructions):,} instructions on "
        f"{counted_target}, counted by callgrind (`bench/one_token.sh`), which does not know AVX-512.\n"
    )


def everything_section(runs: list[Run]) -> str:
    rows = []
    for run in runs:
        for result in run.results:
            for peer in result.peers.values():
                if peer.error_rms is None:
                    continue
                times = [f"{peer.median * 1e3:.2f}", f"{min(peer.seconds) * 1e3:.2f}"]
                rows.append(
                    [str(run.threads), result.shape.text, result.dtypes.name, peer.peer]
                    + (times if peer.seconds else [peer.status, ""])
                    + [str(len(peer.seconds)), f"{peer.error_rms:.1e}", f"{peer.error_largest:.1e}"]
                    + [peer.note]
                )
    heading = ["threads", "shape", "dtypes", "peer", "median ms", "best ms", "rounds"]
    heading += ["error", "largest", "what ran"]
    limits = ", ".join(f"{d.error_limit:.0e} for {d.name}" for d in shapes.STANDARD_DTYPES)
    return (
        "## All measurements\n\n"
        "error: rms(output - reference) / rms(reference), an output is wrong above "
        f"{limits}; largest: of the absolute differences.\n\n" + table(heading, rows)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--one-token", type=Path)
    arguments = parser.parse_args()
    runs = [load(path) for path in arguments.results]
    for name in ("share-*.svg", "context-*.svg"):  # gpu/report.py has its own in the same folder
        for old in (arguments.folder / "figures").glob(name):
            old.unlink()
    sections = [
        INTRODUCTION.format(readme=link_to_readme(arguments.folder)),
        "A quick run: small shapes, few rounds, to see that all works.\n" if runs[0].quick else "",
        machine_section(runs[0]),
        *(run_section(run, arguments.folder) for run in runs),
        losses_section(runs),
        absent_section(runs),
        one_token_section(arguments.one_token),
        everything_section(runs),
    ]
    arguments.folder.mkdir(parents=True, exist_ok=True)
    report = arguments.folder / "REPORT.md"
    report.write_text("\n".join(section for section in sections if section))
    print(f"wrote {report.name} and figures")


if __name__ == "__main__":
    main()
