"""``Conv``: the first convolution of a net."""

from dataclasses import dataclass

from ..layer import Layer
from ..packed_layer import Channels
from ..step import MapStep, register_step


@register_step
@dataclass(frozen=True)
class Conv(MapStep):
    """A dense convolution of the input, N x channels x H x W, into slot ``out``."""

    kind = 1
    out: int
    channels: int
    filters: int
    kernel: int
    stride: int
    padding: int
    layer: Layer

    def layers(self):
        return [(self.layer, (self.filters, self.channels, self.kernel, self.kernel))]

    def output_channels(self, channels):
        return Channels.of(self.filters)

    def output_size(self, sizes, entry):
        return tuple((n + 2 * self.padding - self.kernel) // self.stride + 1 for n in entry)

    def run(self, state, folded):
        out = state.convolve(state.input(self.channels), folded[0], self.layer, self.stride, self.padding)
        state.write(self.out, out)
