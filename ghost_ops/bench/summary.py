"""Targets against each baseline, and against the best of several, over all cases of a kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .baselines import FUSED, TARGETS
from .results import Result
from .timing import geometric_mean

BEST_OF = {  # None: all baselines that ran
    "best of PyTorch": ("eager_nchw", "eager", "folded", "compile", "compile_frozen"),
    "best of ONNX Runtime and OpenVINO": ("onnxruntime", "openvino", "openvino_nhwc"),
    "best of all": None,
}


@dataclass(frozen=True)
class Summary:
    """A target against a baseline over all cases of a kind, batch and thread count.

    Attributes:
        mean: geometric mean of the speed-ups, each case counted as often as the net has it.
        worst, worst_case: the least speed-up, and where; below 1 is a loss.
        losses, cases: in how many of the cases the target is slower.
    """

    kind: str
    batch: int
    threads: int
    baseline: str
    mean: float
    worst: float
    worst_case: str
    losses: int
    cases: int
    target: str = FUSED


def summarise(rows: Iterable[Result]) -> list[Summary]:
    """Geometric means over the cases: each target against each baseline and against the best of several."""
    groups: dict[tuple, dict[str, dict[str, Result]]] = {}
    for row in rows:
        if row.speedups and row.group != "target":
            groups.setdefault((row.kind, row.batch, row.threads), {}).setdefault(row.baseline, {})[row.case] = row
    lines = []
    for key, baselines in groups.items():
        best = (
            {}
            if key[0] in ("train", "zoo_train")
            else {name: _best(baselines, members) for name, members in BEST_OF.items()}
        )
        for target in TARGETS:
            for name, by_case in {**baselines, **best}.items():
                found = [row for row in by_case.values() if target in row.speedups]
                if found:
                    lines.append(_summary(key, name, target, found))
    return lines


def _best(baselines: dict[str, dict[str, Result]], members: Sequence[str] | None) -> dict[str, Result]:
    """The fastest result of these baselines, by case."""
    chosen: dict[str, Result] = {}
    for row in (row for member in members or baselines for row in baselines.get(member, {}).values()):
        if row.case not in chosen or row.seconds < chosen[row.case].seconds:
            chosen[row.case] = row
    return chosen


def _summary(key: tuple[str, int, int], name: str, target: str, rows: list[Result]) -> Summary:
    speedups = [row.speedups[target] for row in rows]
    mean, worst = geometric_mean(speedups, [row.count for row in rows]), min(speedups)
    losses = sum(speedup < 1 for speedup in speedups)
    return Summary(*key, name, mean, worst, rows[speedups.index(worst)].case, losses, len(rows), target)
