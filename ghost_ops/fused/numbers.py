"""Numbers that the result of a layer is multiplied by and that are added to it, as those of ``x / 5 + 0.5``."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import nn

NO_NUMBERS = 1.0, 0.0
_EXACT = 1e-9  # of a line through values in float64
_INSIDE = 0.02, 0.98  # values of a gate that are off its ends


class Numbers(nn.BatchNorm1d):
    """A BatchNorm that multiplies by a number and adds another: so a program folds them into the layer before.

    Attributes:
        scale, shift: the numbers.
    """

    def __init__(self, like: torch.Tensor, scale: float, shift: float) -> None:
        super().__init__(len(like), eps=0.0, device=like.device, dtype=like.dtype)
        self.scale, self.shift = scale, shift
        with torch.no_grad():
            self.weight.fill_(scale)
            self.bias.fill_(shift)
        self.eval().requires_grad_(False)


def with_numbers(
    weight: torch.Tensor, bias: torch.Tensor | None, numbers: tuple[float, float]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias of a layer whose result is multiplied by the first number, with the second added."""
    if numbers == NO_NUMBERS:
        return weight, bias
    scale, shift = numbers
    bias = weight.new_full(weight.shape[:1], shift) if bias is None else bias * scale + shift
    return weight * scale, bias


def line_through(logits: torch.Tensor, gates: torch.Tensor) -> tuple[float, float] | None:
    """The numbers of which ``gates`` is ``clamp(logits * scale + shift, 0, 1)``; None where it is no such line.

    Args:
        logits, gates: as many values in float64.
    """
    inside = (gates > _INSIDE[0]) & (gates < _INSIDE[1])
    x, y = logits[inside], gates[inside]
    if len(x) < 3:
        return None
    low, high = x.argmin(), x.argmax()
    if float(x[high] - x[low]) < _INSIDE[0]:
        return None
    scale = _simple(float((y[high] - y[low]) / (x[high] - x[low])))
    shift = _simple(float(y[low] - scale * x[low]))
    return (scale, shift) if bool(((x * scale + shift - y).abs() < _EXACT).all()) else None


def _simple(value: float) -> float:
    """The number that somebody wrote, where it is a fraction of small numbers but for rounding."""
    fraction = float(Fraction(value).limit_denominator(1000))
    return fraction if abs(fraction - value) < _EXACT else value
