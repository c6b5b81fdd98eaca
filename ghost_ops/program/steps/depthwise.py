"""``Depthwise``: a depthwise convolution."""

from __future__ import annotations

from dataclasses import dataclass

from ..layer import Layer
from ..packed_layer import DepthwiseTaps
from ..step import MapStep, Size, convolved_size, register_step


@register_step
@dataclass(frozen=True)
class Depthwise(MapStep):
    """A depthwise convolution, from slot ``source`` to ``out``.

    Attributes:
        squeeze: whether the output's channel means are the next squeeze.
        kernel, stride, padding, dilation: of rows, and of columns.
    """

    kind = 3
    source: int
    out: int
    squeeze: bool
    channels: int
    kernel: Size
    stride: Size
    padding: Size
    dilation: Size
    layer: Layer

    @classmethod
    def same(
        cls, source: int, out: int, squeeze: bool, channels: int, kernel: int, stride: int, layer: Layer
    ) -> Depthwise:
        """One with a square kernel, padded by half of it."""
        sizes = ((size, size) for size in (kernel, stride, kernel // 2, 1))
        return cls(source, out, squeeze, channels, *sizes, layer)

    @property
    def is_same(self) -> bool:
        """Whether its kernel is square, odd and not dilated, padded by half of it, with one stride."""
        (kernel, other), (stride, across) = self.kernel, self.stride
        regular = kernel == other and kernel % 2 == 1 and stride == across
        return regular and self.padding == (kernel // 2,) * 2 and (self.dilation == (1, 1) or kernel == 1)

    def layers(self):
        return [(self.layer, (self.channels, 1, *self.kernel))]

    def packed_layers(self, channels):
        source = channels[self.source]
        return [DepthwiseTaps(*layer, source.lanes(), source.width) for layer in self.layers()]

    def output_size(self, sizes, entry):
        return convolved_size(sizes[self.source], self.kernel, self.stride, self.padding, self.dilation)

    def run(self, state, folded):
        x = state.read(self.source)
        out = state.convolve(x, folded[0], self.layer, self.stride, self.padding, self.channels, self.dilation)
        state.write(self.out, out, self.squeeze)
