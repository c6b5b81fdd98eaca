"""Which of the activations that the operators know computes given values: told from numbers, not from names."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..activations import ACTIVATIONS, WITH_NUMBER, Function, has_module
from ._compare import agree


def fit(
    before: list[torch.Tensor], after: list[torch.Tensor], factors: list[torch.Tensor] | None = None
) -> Function | None:
    """The activation that makes each of the values ``after`` of those ``before``; None where none does.

    The values should reach far beyond where activations bend: ReLU and ReLU6 differ only above 6.

    Args:
        factors: what the activation was multiplied by; None for nothing.
    """
    factors = [torch.ones_like(t) for t in before] if factors is None else factors
    if not [t.shape for t in before] == [t.shape for t in after] == [t.shape for t in factors]:
        return None
    z, y, f = (torch.cat([t.flatten() for t in tensors]) for tensors in (before, after, factors))
    return next((function for function in _candidates(z, y, f) if agree(function(z) * f, y)), None)


def _candidates(z: torch.Tensor, y: torch.Tensor, factors: torch.Tensor) -> Iterator[Function]:
    for code, name in enumerate(ACTIVATIONS):
        if not has_module(name):
            continue
        if code not in WITH_NUMBER:
            yield Function(name)
            continue
        unit = Function(name, 1.0)(z.clamp(max=-1e-3)) * factors  # below zero the value is the slope times this
        at = int(unit.abs().argmax())
        if float(z.flatten()[at]) < 0 and float(unit.flatten()[at]) != 0:
            yield Function(name, float(y.flatten()[at] / unit.flatten()[at]))
