"""What a step knows of a convolution or linear layer, and the tensors that it computes with."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..activations import NONE, WITH_SLOPES

BIAS, NORM, GAMMA, BETA, SLOPES = 1, 2, 4, 8, 16
Fold = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def bits(value: float) -> int:
    """The bits of a double, as which it stands in a list of integers."""
    return struct.unpack("<q", struct.pack("<d", value))[0]


def real(number: int) -> float:
    """The double that stands in a list as this integer."""
    return struct.unpack("<d", struct.pack("<q", number))[0]


class Folded(NamedTuple):
    """The tensors of a layer whose BatchNorm is folded in."""

    weight: torch.Tensor | None
    bias: torch.Tensor | None
    slopes: torch.Tensor | None


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer with its BatchNorm and activation, as far as a program must know it.

    Its parameters follow each other in the program's list of tensors: weight, then what ``parts`` says is there of
    bias, gamma, beta, running mean and variance, PReLU's weight.

    Attributes:
        parts: sum of BIAS, NORM (mean and variance), GAMMA, BETA, SLOPES.
        eps: the BatchNorm's.
        act: code of the activation after it.
        slope: LeakyReLU's.
    """

    parts: int = 0
    eps: float = 0.0
    act: int = NONE
    slope: float = 0.0

    @property
    def packs_slopes(self) -> bool:
        """Whether one slope a channel is packed with it."""
        return self.act in WITH_SLOPES

    def encode(self) -> list[int]:
        return [self.parts, bits(self.eps), self.act, bits(self.slope)]

    @classmethod
    def decode(cls, numbers: Iterator[int]) -> Layer:
        parts, eps, act, slope = (next(numbers) for _ in range(4))
        return cls(parts, real(eps), act, real(slope))

    def folded(self, shape: tuple[int, ...], tensors: Iterator[torch.Tensor], fold: Fold) -> Folded:
        """Takes the parameters of the layer, whose weight has this shape, and folds its BatchNorm in."""
        weight = next(tensors).reshape(shape)
        parts = (next(tensors) if self.parts & part else None for part in (BIAS, GAMMA, BETA, NORM, NORM, SLOPES))
        bias, gamma, beta, mean, var, slopes = parts
        if mean is not None:
            weight, bias = fold(weight, bias, gamma, beta, mean, var, self.eps)
        return Folded(weight, weight.new_zeros(shape[0]) if bias is None else bias, slopes)
