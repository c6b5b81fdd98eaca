"""``ScaleFeatures``: features, each times a number of its own plus another."""

from dataclasses import dataclass

import torch

from ...activations import activate
from ..layer import Layer
from ..packed_layer import DepthwiseTaps
from ..step import Step, register_step


@register_step
@dataclass(frozen=True)
class ScaleFeatures(Step):
    """A BatchNorm of the features, with the activation after it: the weight has one number for each."""

    kind = 21
    channels: int
    layer: Layer

    def layers(self):
        return [(self.layer, (self.channels, 1, 1, 1))]

    def packed_layers(self, channels):
        return [DepthwiseTaps(*layer, torch.arange(self.channels), self.channels) for layer in self.layers()]

    def result_shape(self, batch, channels, sizes):
        return (batch, self.channels)

    def run(self, state, folded):
        v = state.known(state.features, "features")
        weight, bias, slopes = (None if t is None else t.to(v.dtype) for t in folded[0])
        state.features = activate(v * weight.flatten() + bias, self.layer.act, self.layer.slope, slopes)
