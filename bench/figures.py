"""The report's figures: share of the peak against shape, time against context."""

from __future__ import annotations

from pathlib import Path

from matplotlib.ticker import LogLocator, StrMethodFormatter

from .drawing import STYLE, grouped_bars, plt, save
from .peers import PEERS
from .results import Result, Run

# Okabe and Ito's colours, which the colour-blind tell apart; pagefill's is the strongest.
COLOURS = dict(
    zip(
        (peer.name for peer in PEERS),
        ("#d55e00", "#0072b2", "#009e73", "#e69f00", "#f0c987", "#999999"),
    )
)


def shares(results: list[Result], title: str, path: Path) -> str | None:
    """Bars: each peer's share of the float32 peak; of decode, of the read bandwidth."""
    peers = [peer.name for peer in PEERS if any(peer.name in r.measured() for r in results)]
    if not peers:
        return None
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.5, 3.4))
        series = {
            peer: {
                position: share(result, peer) * 100
                for position, result in enumerate(results)
                if peer in result.measured()
            }
            for peer in peers
        }
        grouped_bars(axes, [label(result) for result in results], series, COLOURS)
        axes.axhline(100, color="#444444", linewidth=0.8)
        axes.set_ylabel("% of the peak")
        axes.set_title(title, loc="left", fontsize=10)
        axes.legend(ncols=len(peers), loc="upper center", bbox_to_anchor=(0.5, -0.24))
        return save(figure, path)


def share(result: Result, peer: str) -> float:
    if result.shape.is_decode:
        return result.share_of_bandwidth(peer)
    return result.share_of_peak(peer)


def label(result: Result) -> str:
    shape = result.shape
    bound = "\n(bandwidth)" if shape.is_decode else ""
    return f"{shape.tokens}\n{shape.heads}/{shape.head_dim}{bound}"


def times(run: Run, dtypes: str, title: str, path: Path) -> str | None:
    """Lines: time against context, for a chunk of one length."""
    results = run.part("context", dtypes)
    if results:
        first = results[0].shape
        same = [
            r
            for r in run.part("standard", dtypes)
            if (r.shape.chunk, r.shape.head_dim, r.shape.num_seqs)
            == (first.chunk, first.head_dim, 1)
        ]
        results = sorted(same + results, key=lambda result: result.shape.context)
    if len(results) < 2:
        return None
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.5, 3.8))
        for peer in (peer.name for peer in PEERS):
            points = [
                (r.shape.context, r.peers[peer].median) for r in results if peer in r.measured()
            ]
            if points:
                axes.plot(*zip(*points), marker="o", markersize=4, label=peer, color=COLOURS[peer])
        contexts = [result.shape.context for result in results]
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(contexts, [f"{context // 1024}k" for context in contexts])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.minorticks_off()
        axes.set_xlabel(f"context, tokens ({results[0].shape.chunk} queries)")
        axes.set_ylabel("seconds")
        axes.set_title(title, loc="left", fontsize=10)
        axes.legend()
        return save(figure, path)
