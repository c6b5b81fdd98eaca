"""``Conv``: a dense convolution."""

from dataclasses import dataclass

from ...activations import activate
from ..layer import Layer
from ..packed_layer import Channels, GroupedProduct, Product
from ..step import MapStep, register_step


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
        kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w: along height and width;
            both ends of a side are padded with as many zeros.
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
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    padding_h: int
    padding_w: int
    dilation_h: int
    dilation_w: int
    groups: int
    layer: Layer

    @property
    def kernel(self) -> tuple[int, int]:
        return self.kernel_h, self.kernel_w

    @property
    def stride(self) -> tuple[int, int]:
        return self.stride_h, self.stride_w

    @property
    def padding(self) -> tuple[int, int]:
        return self.padding_h, self.padding_w

    @property
    def dilation(self) -> tuple[int, int]:
        return self.dilation_h, self.dilation_w

    def layers(self):
        return [(self.layer, (self.filters, self.channels // self.groups, *self.kernel))]

    def packed_layers(self, channels):
        (layer,) = self.layers()
        return [Product(*layer) if self.groups == 1 else GroupedProduct(*layer, self.groups)]

    def output_channels(self, channels):
        return Channels(self.filters)

    def output_size(self, sizes, entry):
        size = entry if self.source < 0 else sizes[self.source]
        sides = zip(size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides)

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
