"""What the operators of a Ghost module over batch statistics have in common: their result, and the biases in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch


class TrainResult(NamedTuple):
    """Output of a Ghost module, and the batch statistics, which update the running ones.

    The variances are biased; ``primary_mean`` and ``cheap_mean`` are those of the convolutions with their biases.
    """

    out: torch.Tensor
    primary_mean: torch.Tensor
    primary_var: torch.Tensor
    cheap_mean: torch.Tensor
    cheap_var: torch.Tensor


def empty_statistics(x: torch.Tensor, shape: int | tuple[int, ...]) -> torch.Tensor:
    """An uninitialised vector of statistics of x, for the fakes of operators."""
    return x.new_empty(shape, dtype=torch.promote_types(x.dtype, torch.float32))


def shift_means(
    statistics: tuple, biases: tuple[torch.Tensor | None, torch.Tensor | None], shift: Callable
) -> tuple[torch.Tensor, ...]:
    """The statistics with the convolutions' biases added to the means (``torch.add``), or subtracted from them."""
    mean1, var1, mean2, var2 = statistics
    bias1, bias2 = biases
    if bias1 is not None:
        mean1 = shift(mean1, bias1.detach())
    if bias2 is not None:
        mean2 = shift(mean2, bias2.detach())
    return mean1, var1, mean2, var2


def zero_gradient(bias: torch.Tensor | None) -> torch.Tensor | None:
    """The gradient of a convolution's bias, which batch statistics remove from the output."""
    return None if bias is None else torch.zeros_like(bias)
