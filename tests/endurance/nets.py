"""A small net with what GhostNets have: Ghost modules, strides, shortcuts, squeeze-and-excite."""

from __future__ import annotations

from torch import nn

from ghost_ops.models._staged import StagedNet
from ghost_ops.nn import GhostBottleneck

from ..helpers import randomise

STAGES = ((3, 16, 16, 0.0, 1),), ((3, 48, 24, 0.0, 2), (5, 72, 24, 0.25, 1)), ((5, 72, 40, 0.25, 2),)


def small_ghostnet(seed: int) -> nn.Module:
    def block(index: int, *arguments, **factory) -> GhostBottleneck:
        return GhostBottleneck(*arguments, **factory)

    return randomise(StagedNet(STAGES, block, 0.5, 10, 3, 0.0), seed)
