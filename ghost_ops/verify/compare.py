"""How far a result is from float64, beside eager PyTorch's, and what is said of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch

FACTOR = 2.0  # our error may be this many times that of eager PyTorch
ULPS, GRADIENT_ULPS = 2.0, 8.0  # by luck eager may be exact: as many units in the last place are always allowed
DTYPES = (torch.float32, torch.bfloat16)
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
NEARBY = 8  # calls beside one that is past its bound: of sums that cancel a single one is luck
KINK = 2.0**-20  # a change of all arguments by which no float32 gradient may change much

Tensors = dict[str, torch.Tensor]
Call = TypeVar("Call")
Measures = tuple[float, float, float]  # our error, eager's, ours over what is allowed


@dataclass(frozen=True)
class Outcome:
    """An operator or a block in a dtype, layout and direction, the worst of its results over all draws.

    Attributes:
        operator: name of the operator, or kind of the block.
        direction: ``"forward"`` or ``"backward"`` of an operator; ``"inference"``, ``"training"`` or ``"frozen"`` of a
            block.
        backend: the backend that ran.
        calls: number of draws.
        error, eager_error: errors relative to the largest element, for the result nearest to its bound or past it.
        ratio: error over what is allowed; above 1 is a failure.
        what: which result, of which call; or why there is none.
        example: of a block, which way of writing it; empty of an operator.
    """

    operator: str
    dtype: str
    layout: str
    direction: str
    backend: str
    calls: int
    error: float
    eager_error: float
    ratio: float
    what: str
    example: str = ""

    @property
    def ok(self) -> bool:
        return self.ratio <= 1


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def compare(
    ours: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor, ulps: float, size: torch.Tensor | None = None
) -> Measures:
    """Our error and eager's, relative to the largest element, and ours over what is allowed (infinite: not finite).

    Errors are taken in the largest element and in the Euclidean norm, and the one nearer to its bound counts. ``size``
    is the scale of the result, where that is not the result itself.
    """
    if ours.shape != exact.shape or ours.dtype != eager.dtype:
        return float("inf"), 0.0, float("inf")
    if not exact.numel():
        return 0.0, 0.0, 0.0
    eps, found = torch.finfo(ours.dtype).eps, []
    for norm, floor in ((float("inf"), ulps * eps), (2, ulps * eps / 2)):
        error, of_eager, scale = (
            float(torch.linalg.vector_norm(v.double(), norm))
            for v in (ours - exact, eager - exact, exact if size is None else size)
        )
        allowed = FACTOR * of_eager + floor * max(scale, 1e-30)
        if not error < float("inf"):
            return float("inf"), of_eager / max(scale, 1e-30), float("inf")
        found.append((error / max(scale, 1e-30), of_eager / max(scale, 1e-30), error / allowed))
    return max(found, key=lambda measures: measures[2])


def measure_call(
    measure: Callable[[Call], dict[str, Measures]], call: Call, others: Iterable[Call]
) -> dict[str, Measures]:
    """The measures of a call by name; of what is past its bound the median of the call's and those of nearby calls.

    Args:
        measure: what measures a call.
        call: the call.
        others: nearby calls, which are made only where a result is past its bound.
    """
    found = [measure(call)]
    if any(_ratio(measures) > 1 for measures in found[0].values()):
        found += map(measure, others)
    return {
        name: measures if _ratio(measures) <= 1 else sorted((some[name] for some in found), key=_ratio)[len(found) // 2]
        for name, measures in found[0].items()
    }


def nearby(t: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A little different float64 values, for which rounding goes another way."""
    return t * (1 + 2.0**-6 * torch.randn(t.shape, generator=generator, dtype=t.dtype))


def _ratio(measures: Measures) -> float:
    return measures[2]


def jumps(here: Tensors, there: Tensors) -> bool:
    """Whether results for arguments that differ by ``KINK`` differ by far more.

    So they do where a gradient jumps within the reach of float32's rounding, as at a ReLU whose argument is almost
    zero. There the exact gradient is one of two, and which of them rounding gives is luck.
    """
    return any((here[n] - there[n]).abs().max() > 1e-3 * here[n].abs().max().clamp(min=1e-3) for n in here)


class Worst:
    """The measures of the result that is nearest to its bound, or past it."""

    def __init__(self) -> None:
        self.measures, self.what = (0.0, 0.0, -1.0), ""

    def add(self, measures: Measures, what: str) -> None:
        if measures[2] > self.measures[2]:
            self.measures, self.what = measures, what

    def fail(self, what: str) -> None:
        """There is no result."""
        self.add((float("inf"), 0.0, float("inf")), what)
