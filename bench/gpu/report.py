"""python -m bench.gpu.report FILE: GPU_REPORT.md and figures/ from what python -m bench.gpu measured."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from ..markdown import image, in_cell, link_to_readme, table
from . import figures
from .peers import PAGEFILL, PEERS, Peer
from .results import LAYOUTS, OTHERS, OURS, NotResults, PeerResult, Result, Run, load
from .shapes import ERROR_LIMIT, PAGE_SIZE

HERE = Path(__file__).resolve().parent
KINDS = {
    "prefill": "Prefill: TFLOP/s of useful work, 4 * head_dim for each visible (query, key) pair and head",
    "decode": "Decode: GB/s of cache read",
    "launch": "Launches: microseconds a call",
}


def introduction(run: Run, folder: Path) -> str:
    return f"""\
# pagefill beside its peers on a GPU

Written by `python -m bench.gpu.report` from what `script/bench gpu` measured on an
{run.gpu.get("name", "unknown GPU")}; do not edit it. {link_to_readme(folder)} says how it measures and what is
called of each peer. bfloat16, causal. pagefill stands beside the others with pages of {PAGE_SIZE}, at
random through the cache. Times are medians of rounds.

`512 @ 8192, 32/8/128` is a chunk of 512 queries that ends a context of 8192 tokens, with 32 query heads,
8 KV heads and head_dim 128.
"""


def ratio_text(result: Result, best: PeerResult | None) -> str:
    ratio = result.ratio(best)
    return f"{ratio:.3f} ({best.peer.name})" if best and ratio else "none"


def losses(run: Run) -> str:
    """By name the shapes where a best peer is faster, and those that have no ratio."""
    faster, unknown = [], [f"- {name}: {in_cell(reason)}\n" for name, reason in run.missing.items()]
    for result in run.results:
        if not result.measured([PAGEFILL]):
            unknown.append(f"- {result.case.text}: {PAGEFILL.name} was not measured\n")
            continue
        bests = [result.best(peers) for peers in LAYOUTS.values()]
        texts = [ratio_text(result, best) for best in bests if (result.ratio(best) or 1) < 1]
        if texts:
            faster.append(f"- {result.case.text}: {', '.join(texts)}\n")
    known = sum(bool(result.measured([PAGEFILL])) for result in run.results)
    text = f"### Where pagefill loses: {len(faster)} of {known} shapes\n\n"
    text += "".join(faster) or "Nowhere.\n"
    if unknown:
        text += f"\nWithout a result:\n\n{''.join(unknown)}"
    return text


def ratios_section(run: Run, folder: Path) -> str:
    rows = [
        [r.case.text, *(ratio_text(r, r.best(peers)) for peers in LAYOUTS.values())]
        for r in run.results
    ]
    title = f"Best peer's time over pagefill's, {run.gpu.get('name', 'GPU')}"
    return "\n".join(
        (
            "## Beside the best peer\n",
            f"The best peer's time / pagefill's with pages of {PAGE_SIZE}: of the peers on contiguous "
            f"memory, of those with pages of {PAGE_SIZE}, and of those with larger ones. Below 1 pagefill "
            "loses. A peer that gave wrong numbers or none for a shape has no part in it (see Not "
            "measured).\n",
            losses(run),
            "### All shapes\n",
            table(["shape", *LAYOUTS], rows),
            image(title, figures.ratios(run, title, folder / "figures" / "gpu-ratio.svg")),
        )
    )


def ways(results: list[Result], peer: Peer) -> set[str]:
    """In which it was asked; pagefill is asked in one, and its notes say which kernel ran."""
    if peer in OURS:
        return set()
    return {found.note for result in results for found in result.measured([peer])} - {""}


def rate_cell(result: Result, peer: Peer, several_ways: bool) -> str:
    found = result.peers.get(peer.name)
    if found is None:
        return ""
    if not found.seconds:
        return found.status
    text = result.case.rate_text(found.median).split()[0]
    best = result.best(PEERS)
    if best and found.median == best.median:
        text = f"**{text}**"
    return f"{text}, {in_cell(found.note)}" if several_ways and found.note else text


def rates_section(run: Run, kind: str, folder: Path) -> str:
    results = run.of(kind)
    missing = [name for name in run.missing if name.startswith(kind)]
    parts = [f"## {KINDS[kind]}\n"]
    if results:
        peers = [peer for peer in (PAGEFILL, *OTHERS) if any(r.measured([peer]) for r in results)]
        asked = {peer.name: ways(results, peer) for peer in peers}
        heading = [
            f"{peer.name}, {in_cell(*asked[peer.name])}"
            if len(asked[peer.name]) == 1
            else peer.name
            for peer in peers
        ]
        rows = [
            [r.case.shape.text, *(rate_cell(r, peer, len(asked[peer.name]) > 1) for peer in peers)]
            for r in results
        ]
        parts.append(table([results[0].case.rate(1)[1], *heading], rows))
    if missing:
        parts.append(f"Without a result: {'; '.join(missing)}.\n")
    if kind == "prefill":
        title = f"TFLOP/s of prefill, {run.gpu.get('name', 'GPU')}"
        path = folder / "figures" / "gpu-prefill.svg"
        parts.append(image(title, figures.prefill_rates(run, title, path)))
    return "\n".join(part for part in parts if part)


def pages_section(run: Run) -> str:
    """Shapes on which more than one page size was measured."""
    rows = []
    for result in run.results:
        base = result.best([PAGEFILL])
        if base is None or len(result.measured(OURS)) < 2:
            continue
        row = [result.case.text, result.case.rate_text(base.median)]
        for peer in OURS[1:]:
            found = result.best([peer])
            ratio = result.ratio(base, to=peer)
            if found and ratio:
                row.append(f"{result.case.rate_text(found.median)}, {ratio:.3f}")
            else:
                row.append(rate_cell(result, peer, several_ways=False))
        rows.append(row)
    if not rows:
        return ""
    return (
        "## pagefill's page sizes\n\n"
        f"Rates, and the time with pages of {PAGE_SIZE} over the time with this size.\n\n"
        + table(["shape", *(peer.name for peer in OURS)], rows)
    )


def turns_text(run: Run) -> str:
    """What the turns were, as they were recorded."""
    measured = [found for result in run.results for found in result.measured(PEERS)]
    rounds = sorted({len(found.seconds) for found in measured})
    graphs = [re.match(r"a graph of (\d+) calls", found.how) for found in measured]
    calls = [int(match[1]) for match in graphs if match]
    alone = dict.fromkeys(found.peer.name for found, match in zip(measured, graphs) if not match)
    text = f"{' or '.join(map(str, rounds))} rounds were timed of each peer and shape, in rotating order. "
    if calls:
        text += (
            f"A turn was a CUDA graph of {min(calls)} to {max(calls)} calls between two events. "
        )
    if alone:
        text += f"Not captured into a graph, on some shapes: {', '.join(alone)}. "
    return text


def machine_section(run: Run) -> str:
    states = list(dict.fromkeys(key for result in run.results for key in result.state))
    rows = [[r.case.text, *(r.state.get(key, "") for key in states)] for r in run.results]
    versions = {"pagefill": "not recorded"} | run.versions
    return "\n".join(
        (
            "## How it was measured\n",
            turns_text(run)
            + "Prefill and launches have the same inputs call after call, so that the L2 is warm; decode "
            "calls take turns over copies of the inputs, several times the L2 together, so that the cache "
            "is read from memory. An output is wrong where rms(output - reference) / rms(reference) is above "
            f"{ERROR_LIMIT:.0e}, before the turns or after them.\n",
            "To measure again and write this file:\n",
            "    script/bench gpu\n"
            "    build/bench/gpu-venv/bin/python -m bench.gpu.report build/bench/gpu.json\n",
            table(["machine", ""], [list(row) for row in run.gpu.items()]),
            table(["version", ""], [list(row) for row in versions.items()]),
            f"Beside it torch's bfloat16 matrix product had {run.matrix_flops / 1e12:.0f} TFLOP/s, a captured "
            f"cudaMemcpyAsync {run.copy_bytes / 1e9:.0f} GB/s of reads and writes together; kernels move more.\n",
            "Clocks, power and temperature right after the last turn of each shape:\n",
            table(["shape", *states], rows),
        )
    )


def absent_section(run: Run) -> str:
    """Who was not measured on what, and why, once each."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for result in run.results:
        for found in result.peers.values():
            if not found.seconds:
                key = (found.peer.name, found.status, found.reason)
                reasons.setdefault(key, []).append(result.case.text)
    rows = [["all", "no result", in_cell(why), name] for name, why in run.missing.items()]
    for (peer, status, reason), where in sorted(reasons.items()):
        everywhere = len(where) == len(run.results)
        rows.append(
            [peer, status, in_cell(reason), "all shapes" if everywhere else "; ".join(where)]
        )
    if not rows:
        return ""
    return "## Not measured\n\n" + table(["peer", "status", "reason", "where"], rows)


def everything_section(run: Run) -> str:
    rows = [
        [result.case.text, found.peer.name]
        + [f"{t * 1e6:.2f}" for t in (found.median, min(found.seconds), max(found.seconds))]
        + [result.case.rate_text(found.median), f"{found.error:.1e}"]
        + [in_cell(text) for text in (found.how, found.note, "; ".join(found.rejected))]
        for result in run.results
        for found in result.measured(PEERS)
    ]
    heading = ["shape", "peer", "median us", "least", "most", "rate", "error", "turn", "what ran"]
    return "## All measurements\n\n" + table([*heading, "ways that were tried before"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.report", description=__doc__)
    parser.add_argument("file", type=Path, help="what python -m bench.gpu --output wrote")
    parser.add_argument(
        "--output",
        type=Path,
        default=HERE.parent,
        help="folder of GPU_REPORT.md and figures/ (bench/)",
    )
    arguments = parser.parse_args()
    try:
        run = load(arguments.file)
    except NotResults as problem:
        parser.error(f"{arguments.file}: {problem}")
    folder = arguments.output
    for old in (folder / "figures").glob("gpu-*.svg"):
        old.unlink()
    sections = [
        introduction(run, folder),
        ratios_section(run, folder),
        *(rates_section(run, kind, folder) for kind in KINDS),
        pages_section(run),
        machine_section(run),
        absent_section(run),
        everything_section(run),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    report = folder / "GPU_REPORT.md"
    report.write_text("\n".join(section for section in sections if section))
    print(f"wrote {report.name} and figures")


if __name__ == "__main__":
    main()
