"""``Ghost``: a Ghost module, or a 1x1 convolution."""

from dataclasses import dataclass, field

import torch

from ..layer import Layer
from ..packed_layer import Channels, DepthwiseTaps, Product
from ..step import ONLY_IF, MapStep, register_step


@register_step
@dataclass(frozen=True)
class Ghost(MapStep):
    """A Ghost module, or with ``cheap_channels`` 0 a 1x1 convolution.

    Attributes:
        source, out: slots.
        residual: slot that is added, or -1.
        scaled: whether the input is multiplied by the excitation.
        squeeze: whether the output's channel means are the next squeeze.
        channels, primary, cheap_channels, out_channels: number of channels of the input, the primary convolution, the
            cheap operation, the output.
        kernel: the cheap operation's.
        layer, cheap: the two convolutions; ``cheap`` is None with ``cheap_channels`` 0.
    """

    kind = 2
    source: int
    out: int
    residual: int
    scaled: bool
    squeeze: bool
    channels: int
    primary: int
    cheap_channels: int
    out_channels: int
    kernel: int
    layer: Layer
    cheap: Layer | None = field(metadata={ONLY_IF: "cheap_channels"})

    def layers(self):
        primary = self.layer, (self.primary, self.channels, 1, 1)
        cheap = self.cheap, (self.cheap_channels, 1, self.kernel, self.kernel)
        return [primary, cheap] if self.cheap_channels else [primary]

    def packed_layers(self, channels):
        primary, *cheap = self.layers()
        kept = self.out_channels - self.primary  # channels past the slice are not packed
        return [Product(*primary), *(DepthwiseTaps(*layer, torch.arange(kept), kept) for layer in cheap)]

    def output_channels(self, channels):
        return Channels.of(self.primary, self.out_channels - self.primary)

    def run(self, state, folded):
        x = state.read(self.source)
        if self.scaled:
            x = x * state.known(state.excitation, "an excitation")[:, :, None, None]
        out = state.convolve(x, folded[0], self.layer)
        if self.cheap_channels:
            made = state.convolve(out, folded[1], self.cheap, padding=self.kernel // 2, groups=self.primary)
            out = torch.cat([out, made], 1)[:, : self.out_channels]
        if self.residual >= 0:
            out = out + state.read(self.residual)
        state.write(self.out, out, self.squeeze)
