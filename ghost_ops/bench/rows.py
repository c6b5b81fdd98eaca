"""What a run finds: a row for each peer on each case, and for each part of a frozen net."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .peers import BASES, FROZEN, FROZEN_BFLOAT16, OURS
from .timing import Timing

# Relative to the largest element: for float32 an order above what rounding makes of a net, for bfloat16 three times.
TOLERANCES = {"float32": 1e-4, "bfloat16": 3e-2}
OK, WRONG, MISSING, FAILED = "ok", "wrong", "missing", "failed"
_BASE_OF_KIND = {"frozen": FROZEN, "rival": FROZEN, "frozen_bfloat16": FROZEN_BFLOAT16}


def base_of(kind: str) -> str:
    """The one of ours beside which the rows of a kind are shown."""
    return _BASE_OF_KIND.get(kind, OURS)


@dataclass
class Row:
    """One peer on one case.

    Attributes:
        kind: module, net, train, train_module; of ``--frozen``: frozen, frozen_bfloat16, rival.
        case, batch, threads, count: which; how many modules of the net are like this.
        peer, label, group: who.
        status: ok; wrong (its result is not the reference's); missing (not installed); failed (it raised).
        reason: of a status that is not ok.
        error: largest difference from float64 over the largest element; of a training step, see ``training``.
        seconds, spread: median and interquartile range; None unless ok.
        samples: seconds a call, one a round.
        speedup: how many times longer than ours it takes, ours being what ``base_of`` says of the kind.
        speedups: the same for each of ours that was timed beside it, by name.
        flops, bytes, roof, share: the work, the least seconds for it on this machine, roof over seconds.
        saved_bytes: of a training step: what autograd keeps for the backward.
        resident_bytes: of a training step: what it adds to the peak resident memory of a process.
        dtype: of the products.
        agreement: of a bfloat16 net: the share of images whose largest logit is the one of float32.
    """

    kind: str
    case: str
    batch: int
    threads: int
    count: int
    peer: str
    label: str
    group: str
    status: str = OK
    reason: str = ""
    error: float | None = None
    seconds: float | None = None
    spread: float | None = None
    samples: list[float] = field(default_factory=list)
    speedup: float | None = None
    flops: int | None = None
    bytes: int | None = None
    roof: float | None = None
    share: float | None = None
    saved_bytes: int | None = None
    resident_bytes: int | None = None
    speedups: dict[str, float] = field(default_factory=dict)
    dtype: str = "float32"
    agreement: float | None = None

    def take(self, timing: Timing) -> None:
        self.seconds, self.spread, self.samples = timing.median, timing.spread, list(timing.samples)
        if self.roof is not None:
            self.share = self.roof / self.seconds

    def refuse(self, status: str, reason: str) -> None:
        """No result that was not compared, or was wrong, has a speed."""
        self.status, self.reason = status, reason
        self.seconds = self.spread = self.share = self.speedup = None
        self.samples, self.speedups = [], {}


@dataclass
class PartRow:
    """A part of a frozen net, or with the name "net" all of it.

    Attributes:
        case, batch, threads, dtype: of the net.
        part: stem, the path of a bottleneck, tail (last convolution, pooling, head, classifier), net.
        status, reason, error: as of a ``Row``.
        seconds, spread, samples: within a pass over all parts, so that it finds in the caches what the parts before
            have left there.
        flops, bytes: of its convolutions and linear layers; of input, output and packed weights.
        roof, share: the least seconds for it on this machine; roof over seconds.
        peak_share: its FLOPs a second over the machine's.
    """

    case: str
    batch: int
    threads: int
    dtype: str
    part: str
    status: str = OK
    reason: str = ""
    error: float | None = None
    seconds: float | None = None
    spread: float | None = None
    samples: list[float] = field(default_factory=list)
    flops: int | None = None
    bytes: int | None = None
    roof: float | None = None
    share: float | None = None
    peak_share: float | None = None


def relate(rows: list[Row]) -> list[Row]:
    """Fill in the speed-ups of rows that were timed together."""
    ours = {row.peer: row.seconds for row in rows if row.peer in BASES and row.seconds}
    for row in rows:
        row.speedups = {name: row.seconds / seconds for name, seconds in ours.items()} if row.seconds else {}
        row.speedup = row.speedups.get(base_of(row.kind))
    return rows


def error_of(result: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest difference over the largest element of the reference; infinite for another shape or for NaN."""
    if result.shape != reference.shape:
        return float("inf")
    scale = reference.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    error = float((result.double() - reference).abs().max() / scale)
    return error if error == error else float("inf")
