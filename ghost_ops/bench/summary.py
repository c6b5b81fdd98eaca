"""Ours against each peer, and against the best of several, over all cases of a kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .engines import EVERY
from .peers import BASES, OURS
from .rows import Row
from .timing import geometric_mean

BEST_OF = {
    "best of PyTorch": ("eager_nchw", "eager", "folded", "compile", "compile_frozen"),
    "best of ONNX Runtime and OpenVINO": ("onnxruntime", "openvino", "openvino_nhwc"),
    "best of all": tuple(name for name, peer in EVERY.items() if peer.group != "ours"),
}


@dataclass(frozen=True)
class Summary:
    """One of ours against a peer over all cases of a kind, batch and thread count.

    Attributes:
        mean: geometric mean of the speed-ups, each case counted as often as the net has it.
        worst, worst_case: the least speed-up, and where; below 1 is a loss.
        losses, cases: in how many of the cases ours is slower.
        ours: which of ours.
    """

    kind: str
    batch: int
    threads: int
    peer: str
    mean: float
    worst: float
    worst_case: str
    losses: int
    cases: int
    ours: str = OURS


def summarise(rows: Iterable[Row]) -> list[Summary]:
    """Geometric means over the cases: each of ours against each peer and against the best of several."""
    groups: dict[tuple, dict[str, dict[str, Row]]] = {}
    for row in rows:
        if row.speedups and row.group != "ours":
            groups.setdefault((row.kind, row.batch, row.threads), {}).setdefault(row.peer, {})[row.case] = row
    lines = []
    for key, peers in groups.items():
        best = {} if key[0] == "train" else {name: _best(peers, members) for name, members in BEST_OF.items()}
        for ours in BASES:
            for name, by_case in {**peers, **best}.items():
                found = [row for row in by_case.values() if ours in row.speedups]
                if found:
                    lines.append(_summary(key, name, ours, found))
    return lines


def _best(peers: dict[str, dict[str, Row]], members: Sequence[str]) -> dict[str, Row]:
    """The fastest row of these peers, by case."""
    chosen: dict[str, Row] = {}
    for row in (row for member in members for row in peers.get(member, {}).values()):
        if row.case not in chosen or row.seconds < chosen[row.case].seconds:
            chosen[row.case] = row
    return chosen


def _summary(key: tuple[str, int, int], name: str, ours: str, rows: list[Row]) -> Summary:
    speedups = [row.speedups[ours] for row in rows]
    mean, worst = geometric_mean(speedups, [row.count for row in rows]), min(speedups)
    losses = sum(speedup < 1 for speedup in speedups)
    return Summary(*key, name, mean, worst, rows[speedups.index(worst)].case, losses, len(rows), ours)
