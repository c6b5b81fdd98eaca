"""The layout in which kernels read depthwise weights."""

from __future__ import annotations

import torch

from . import launch
from .sums import total


def as_taps(memory: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A depthwise weight, C x 1 x D x D, over memory in the layout of ``by_taps``."""
    c, _, height, width = shape
    return memory.as_strided(shape, (1, c, width * c, c), memory.storage_offset())


def by_taps(weight: torch.Tensor) -> torch.Tensor:
    """A depthwise weight, C x 1 x D x D, in the layout that kernels read: D x D x C in memory, channels side by side.

    A weight that has this layout already, as those of programs have, is returned unchanged.
    """
    c, d = weight.shape[0], weight.shape[-1]
    if weight.stride(0) == 1 and weight.stride(2) == d * c and weight.stride(3) == c:
        return weight
    to = launch.empty((d * d * c,), weight.dtype, weight.device)
    total(launch.vector(weight).view(1, c, d * d), to, steps=(1, c))
    return as_taps(to, weight.shape)
