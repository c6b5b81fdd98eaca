"""What a run finds: a result for each target and baseline on each case, and for each part of a frozen net."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .baselines import FROZEN, FROZEN_BFLOAT16, FUSED, TARGETS
from .timing import Timing

# Relative to the largest element. In float32 a net's rounding errors are ten times smaller, in bfloat16 three times.
TOLERANCES = {"float32": 1e-4, "bfloat16": 3e-2}
OK, WRONG, MISSING, FAILED = "ok", "wrong", "missing", "failed"
OTHER_MODEL = "other_model"  # a kind
NET = "net"  # the part that is the whole net
_TARGET_OF_KIND = {"frozen": FROZEN, OTHER_MODEL: FROZEN, "frozen_bfloat16": FROZEN_BFLOAT16}


def target_of(kind: str) -> str:
    """Name of the target that results of this kind are compared with."""
    return _TARGET_OF_KIND.get(kind, FUSED)


@dataclass(kw_only=True)
class Measured:
    """A comparison with float64, a time, and the machine's limit for it.

    Attributes:
        status: ok; wrong (its result is not the reference's); missing (not installed); failed (it raised).
        reason: why the status is not ok.
        error: largest difference from float64 over the largest element; see ``training`` for a training step's.
        seconds, spread: median and interquartile range; None unless the status is ok.
        samples: seconds a call, one a round.
        flops, bytes, roof, share: the work, the least seconds for it on this machine, roof over seconds.
    """

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

    def take(self, timing: Timing) -> None:
        self.seconds, self.spread, self.samples = timing.median, timing.spread, list(timing.samples)
        if self.roof is not None:
            self.share = self.roof / self.seconds


@dataclass
class Result(Measured):
    """One target or baseline on one case.

    Attributes:
        kind: module, net, train, train_module; with ``--frozen``: frozen, frozen_bfloat16, other_model.
        case, batch, threads, count: which case; how many modules of the net are like it.
        baseline, label, group: who ran: a name, its text for people, its group.
        speedup: how many times longer than the target that ``target_of`` names for the kind.
        speedups: the same for each target that was timed in the same run, by name.
        saved_bytes: what autograd keeps for the backward of a training step.
        resident_bytes: what a training step adds to the peak resident memory of a process; on a GPU, what a call adds
            to the device memory in use.
        dtype: the dtype of the products.
        agreement: for a bfloat16 net, the share of images whose largest logit is at float32's place.
        note: what there is to know beside the time, such as how many modules were fused.
    """

    kind: str
    case: str
    batch: int
    threads: int
    count: int
    baseline: str
    label: str
    group: str
    speedup: float | None = None
    saved_bytes: int | None = None
    resident_bytes: int | None = None
    speedups: dict[str, float] = field(default_factory=dict)
    dtype: str = "float32"
    agreement: float | None = None
    note: str = ""

    def refuse(self, status: str, reason: str) -> None:
        """A result that was not compared, or was wrong, has no speed."""
        self.status, self.reason = status, reason
        self.seconds = self.spread = self.share = self.speedup = None
        self.samples, self.speedups = [], {}


@dataclass
class PartResult(Measured):
    """A part of a frozen net, or the whole net where the part is "net".

    Its time is taken within a pass over all parts, so that it finds in the caches what the parts before it left there.

    Attributes:
        case, batch, threads, dtype: the net, and how it runs.
        part: stem, the path of a bottleneck, tail (last convolution, pooling, head, classifier), net.
        bytes: those of input, output and packed weights.
        peak_share: its FLOPs a second over the machine's.
    """

    case: str
    batch: int
    threads: int
    dtype: str
    part: str
    peak_share: float | None = None


def relate(results: list[Result]) -> list[Result]:
    """Fill in the speed-ups of results that were timed together."""
    targets = {r.baseline: r.seconds for r in results if r.baseline in TARGETS and r.seconds}
    for result in results:
        if result.seconds:
            result.speedups = {name: result.seconds / seconds for name, seconds in targets.items()}
        result.speedup = result.speedups.get(target_of(result.kind))
    return results


def error_of(result: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest difference over the largest element of the reference; infinite for another shape or for NaN."""
    if result.shape != reference.shape:
        return float("inf")
    scale = reference.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    error = float((result.double() - reference).abs().max() / scale)
    return error if error == error else float("inf")
