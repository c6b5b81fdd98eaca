"""``Conv``: a dense convolution."""

from dataclasses import dataclass

from ...activations import activate
from ..layer import Layer
from ..packed_layer import Channels, GroupedProduct, Product
from ..step import MapStep, Size, convolved_size, register_step


@register_step
@dataclass(frozen=True)
class Conv(MapStep):
    """A convolution in which each filter reads all channels, or all of its group's.

    Attributes:
        source: slot, or -1: the program's input, N x channels x H x W.
        out: slot.
        residual: slot that is added to the result, or -1.
        residual_first: whether it is added before the activation.
        squeeze: whether the output's channel means are the next squeeze.
        channels, filters: number of channels of the input and of the output.
        kernel, stride, padding, dilation: of rows, and of columns; both ends of a side are padded with as many zeros.
        groups: into which channels and filters are cut.
        layer: the convolution.
    """

    kind = 1
    source: int
    out: int
    residual: int
    residual_first: bool
    squeeze: bool
    channels: int
    filters: int
    kernel: Size
    stride: Size
    padding: Size
    dilation: Size
    groups: int
    layer: Layer

    def layers(self):
        return [(self.layer, (self.filters, self.channels // self.groups, *self.kernel))]

    def packed_layers(self, channels):
        (layer,) = self.layers()
        return [Product(*layer) if self.groups == 1 else GroupedProduct(*layer, self.groups)]

    def output_channels(self, channels):
        return Channels.of(self.filters)

    def output_size(self, sizes, entry):
        size = entry if self.source < 0 else sizes[self.source]
        return convolved_size(size, self.kernel, self.stride, self.padding, self.dilation)

    def run(self, state, folded):
        x = state.input(self.channels) if self.source < 0 else state.read(self.source)
        (layer,), act = folded, self.layer
        if self.residual_first:
            layer, act = layer._replace(slopes=None), Layer()
        out = state.convolve(x, layer, act, self.stride, self.padding, self.groups, self.dilation)
        if self.residual >= 0:
            out = out + state.read(self.residual)
        if self.residual_first:
            slopes = folded[0].slopes
            slopes = None if slopes is None else slopes.to(x.dtype)
            out = activate(out, self.layer.act, self.layer.slope, slopes)
        state.write(self.out, out, self.squeeze)
