"""``Activation``: an activation that follows no convolution, such as that of a sum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from ...activations import activate
from ..layer import SLOPES, Fold, Folded, Layer
from ..packed_layer import Channels, PackedLayer, Reader
from ..step import MapStep, register_step
from ..weights.format import WeightFormat


class _Slopes(PackedLayer):
    """The slopes of the activation, and nothing else."""

    def size(self, weights: WeightFormat) -> int:
        return self._width * self.layer.packs_slopes

    def pack(self, folded: Folded, weights: WeightFormat) -> list[torch.Tensor]:
        return self._pack_slopes(folded)

    def unpack(self, reader: Reader, kinds: tuple[int, ...]) -> Folded:
        return Folded(None, None, self._unpack_slopes(reader, kinds))


@register_step
@dataclass(frozen=True)
class Activation(MapStep):
    """The activation of a layer without weight, from slot ``source`` to ``out``.

    Attributes:
        squeeze: whether the output's channel means are the next squeeze.
        layer: its activation; PReLU's weight is its only parameter.
    """

    kind = 9
    source: int
    out: int
    squeeze: bool
    channels: int
    layer: Layer

    def folded(self, tensors: Iterator[torch.Tensor], fold: Fold) -> list[Folded]:
        return [Folded(None, None, next(tensors) if self.layer.parts & SLOPES else None)]

    def packed_layers(self, channels: Mapping[int, Channels]) -> list[PackedLayer]:
        source = channels[self.source]
        return [_Slopes(self.layer, (self.channels,), source.lanes(), source.width)]

    def run(self, state, folded):
        out = activate(state.read(self.source), self.layer.act, self.layer.slope, folded[0].slopes)
        state.write(self.out, out, self.squeeze)
