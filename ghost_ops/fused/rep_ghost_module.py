"""A RepGhost module whose branches are merged: a 1x1 convolution and a depthwise one of its result.

RepGhost (Chen et al., arXiv:2211.06088) adds in training what a Ghost module concatenates, and merges the branches for
inference. With branches it is :mod:`.branched_module`. In eval this one is one program of two steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from ..activations import code_of
from ..nn import RepGhostModule
from .block import Reads
from .builder import Builder
from .errors import Unfusable
from .examples import merged
from .layer_block import LayerBlock
from .layers import ConvBNAct, does_nothing, is_conv, is_norm
from .registry import register_block
from .structure import Structure


@dataclass(frozen=True)
class RepGhostParts:
    """The pieces of a RepGhost module.

    Attributes:
        layers: paths of its convolutions and of the BatchNorms and activations behind them, in the order of the calls.
    """

    layers: tuple[str, ...]


class RepGhostLayers(NamedTuple):
    primary: ConvBNAct
    cheap: ConvBNAct


@register_block
class RepGhostModuleBlock(LayerBlock):
    """A 1x1 convolution and a depthwise one, each with the BatchNorm and the activation that may follow."""

    kind = "RepGhost module"
    Parts = RepGhostParts

    @classmethod
    def find(cls, module: nn.Module) -> RepGhostParts | None:
        pieces = [(path, m) for path, m in module.named_modules() if not m._modules and not does_nothing(m)]
        convs = [m for _, m in pieces if is_conv(m)]
        if len(convs) != 2 or not all(is_conv(m) or is_norm(m) or code_of(m) is not None for _, m in pieces):
            return None
        primary, cheap = convs
        if primary.groups != 1 or not 1 < cheap.groups == cheap.in_channels == primary.out_channels:
            return None
        if primary.kernel_size != (1, 1) or cheap.out_channels != cheap.in_channels or cheap.stride != (1, 1):
            return None
        return RepGhostParts(tuple(path for path, _ in pieces))

    @classmethod
    def examples(cls) -> dict[str, Callable[[], nn.Module]]:
        return {
            "RepGhost, re-parameterised": lambda: merged(RepGhostModule(8, 16)),
        }

    @classmethod
    def match(cls, candidate: object) -> tuple[RepGhostParts, Reads] | None:
        """Two such convolutions stand in many modules of other kinds: these are not mentioned."""
        try:
            return super().match(candidate)
        except Unfusable:
            return None

    def read(self, structure: Structure, parts: RepGhostParts) -> RepGhostLayers:
        layers = structure.conv_bn_acts(parts.layers)
        if len(layers) != 2:
            raise Unfusable("it calls other modules than its two convolutions, or in another order")
        primary, cheap = layers
        if not primary.is_pointwise():
            raise Unfusable("its primary convolution is not a 1x1 convolution of stride 1")
        if not cheap.is_cheap(primary.conv.out_channels):
            raise Unfusable(cheap.why_not_cheap(primary.conv.out_channels))
        return RepGhostLayers(primary, cheap)

    def compute(self, layers: RepGhostLayers, x: torch.Tensor) -> torch.Tensor:
        return self.call(layers.cheap, self.call(layers.primary, x))

    def lower(self, layers: RepGhostLayers, builder: Builder, source: int) -> int:
        return builder.chain(layers, source)
