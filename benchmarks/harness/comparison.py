"""Gradients and outputs against float64, measured by what eager PyTorch's are off by in the same dtype."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import nn

FACTOR = 2.0  # the root mean square of our errors over that of eager's
SINGLE = 4.0  # one result's error over eager's, where a few elements may be right by luck
VANISHING = 10.0  # the same where the exact result is zero, so that rounding is all there is
# Errors that are always allowed, relative to a result's norm: of all results in the root mean square, and of a single
# one FLIP times that. In float32 one rounding in some millions flips a ReLU: a few elements of a gradient then change
# by all that they are, which eager may be spared by luck.
FLOOR = {torch.float32: 1e-3, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
FLIP = 10.0
Results = dict[str, torch.Tensor]


@dataclass
class Comparison:
    """Errors of many results of one kind, ours and eager's, each in the Euclidean norm relative to the exact one.

    Attributes:
        dtype: what eager and ours computed in.
        wrong: what is out of bounds, in words.
    """

    dtype: torch.dtype
    wrong: list[str] = field(default_factory=list)
    _ours: list[float] = field(default_factory=list)
    _eager: list[float] = field(default_factory=list)
    _worst: tuple[float, str, float, float] = (0.0, "", 0.0, 0.0)

    def add(self, where: str, ours: Results, eager: Results, exact: Results) -> None:
        """Compares results that were computed together, such as a net's gradients, by name."""
        floor, pairs = FLOOR[self.dtype], {}
        for name, right in exact.items():
            what, got = f"{name} of {where}", ours.get(name)
            if got is None or got.shape != right.shape or not bool(got.isfinite().all()):
                found = "missing" if got is None else f"{tuple(got.shape)} for {tuple(right.shape)}, or not finite"
                self.wrong.append(f"{what}: {found}")
                continue
            off, of_eager, size = (float(t.double().norm()) for t in (got - right, eager[name] - right, right))
            if size <= 1e-6 * float(eager[name].double().norm()):  # a bias before a BatchNorm
                if off > VANISHING * of_eager:
                    self.wrong.append(f"{what}: {off:.2g} for 0, eager {of_eager:.2g}")
            elif size:
                pairs[name] = off / size, of_eager / size
        usual = _root_mean_square([e for _, e in pairs.values()])
        for name, (error, of_eager) in pairs.items():
            allowed = max(FLIP * floor, SINGLE * max(of_eager, usual))
            if error > allowed:
                self.wrong.append(f"{name} of {where}: error {error:.2g}, allowed {allowed:.2g}, eager {of_eager:.2g}")
            self._worst = max(self._worst, (error / allowed, f"{name} of {where}", error, of_eager))
            self._ours.append(error)
            self._eager.append(of_eager)

    def judge(self) -> dict:
        """The figures; also adds to ``wrong`` where the errors taken together are too large."""
        ours, eager = _root_mean_square(self._ours), _root_mean_square(self._eager)
        allowed = max(FLOOR[self.dtype], FACTOR * eager)
        if not ours <= allowed:
            self.wrong.append(f"all results: error {ours:.2g}, allowed {allowed:.2g}, eager {eager:.2g}")
        _, what, error, of_eager = self._worst
        worst = {"what": what, "error": error, "eager": of_eager}
        return {"results": len(self._ours), "error": ours, "eager": eager, "nearest": worst, "wrong": self.wrong[:20]}


def _root_mean_square(values: list[float]) -> float:
    return math.sqrt(sum(v * v for v in values) / len(values)) if values else 0.0


def state_of(net: nn.Module) -> Results:
    """Running statistics before a step; ``results_of`` tells how they moved."""
    return {name: t.detach().clone() for name, t in net.named_buffers()}


def results_of(net: nn.Module, before: Results | None = None, **outputs: torch.Tensor | None) -> Results:
    """Outputs, every parameter's gradient and, with the state before it, what a step added to running statistics."""
    found = {name: t.detach() for name, t in outputs.items() if t is not None}
    found |= {f"gradient of {name}": p.grad.detach() for name, p in net.named_parameters() if p.grad is not None}
    for name, t in () if before is None else net.named_buffers():
        found[f"step of {name}"] = (t.detach() - before[name].to(t.dtype)).double()
    return found
