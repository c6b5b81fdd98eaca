"""``MaxPool``: max pooling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F

from ..step import MapStep, Size, register_step


@register_step
@dataclass(frozen=True)
class MaxPool(MapStep):
    """The largest value of each square window, from slot ``source`` to ``out``; NaN counts as the largest.

    Padding is at most half of the kernel, and never the largest.
    """

    kind = 8
    source: int
    out: int
    channels: int
    kernel: int
    stride: int
    padding: int

    def output_size(self, sizes: Mapping[int, Size], entry: Size) -> Size:
        return tuple((n + 2 * self.padding - self.kernel) // self.stride + 1 for n in sizes[self.source])

    def run(self, state, folded):
        state.write(self.out, F.max_pool2d(state.read(self.source), self.kernel, self.stride, self.padding))
