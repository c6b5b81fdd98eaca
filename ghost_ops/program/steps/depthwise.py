"""``Depthwise``: a depthwise convolution."""

from dataclasses import dataclass

from ..layer import Layer
from ..packed_layer import DepthwiseTaps
from ..step import MapStep, register_step


@register_step
@dataclass(frozen=True)
class Depthwise(MapStep):
    """A depthwise convolution padded by kernel // 2, from slot ``source`` to ``out``.

    Attributes:
        squeeze: whether the output's channel means are the next squeeze.
    """

    kind = 3
    source: int
    out: int
    squeeze: bool
    channels: int
    kernel: int
    stride: int
    layer: Layer

    def layers(self):
        return [(self.layer, (self.channels, 1, self.kernel, self.kernel))]

    def packed_layers(self, channels):
        source = channels[self.source]
        return [DepthwiseTaps(*layer, source.lanes(), source.width) for layer in self.layers()]

    def output_size(self, sizes, entry):
        return tuple((n - 1) // self.stride + 1 for n in sizes[self.source])

    def run(self, state, folded):
        x, padding = state.read(self.source), self.kernel // 2
        out = state.convolve(x, folded[0], self.layer, self.stride, padding, groups=self.channels)
        state.write(self.out, out, self.squeeze)
