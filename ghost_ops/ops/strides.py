"""Strides of gradients: those of their parameters, as PyTorch's own operators give them.

Autograd takes a gradient that differs only in the strides of axes of size 1 as it is. DistributedDataParallel wants the
parameter's strides to the letter: it warns of others, and copies.
"""

from __future__ import annotations

import torch


def restride(gradient: torch.Tensor, strides: tuple[int, ...]) -> torch.Tensor:
    """The gradient with these strides, where only axes of size 1 have others; else as it is."""
    own = gradient.stride()
    if own == strides or any(n > 1 and a != b for n, a, b in zip(gradient.shape, own, strides)):
        return gradient
    return gradient.as_strided(gradient.shape, strides)


def as_matrix(weight: torch.Tensor) -> torch.Tensor:
    """The view of a linear layer's weight, or a 1x1 convolution's, as a matrix. Its gradient gets the weight's strides,
    where that of ``flatten`` would not if the weight is channels_last."""
    if weight.dim() == 2 or weight.stride()[2:] == (1, 1):
        return weight.flatten(1)
    return weight.as_strided(weight.shape[:2], weight.stride()[:2])
