"""``Load``: the input as it is."""

from dataclasses import dataclass

from ..packed_layer import Channels
from ..step import MapStep, register_step


@register_step
@dataclass(frozen=True)
class Load(MapStep):
    """The input, N x channels x H x W, into slot ``out``. ``by_lanes``: some step reads whole vectors of it."""

    kind = 0
    out: int
    channels: int
    by_lanes: bool

    def output_channels(self, channels):
        return Channels.of(self.channels)

    def output_size(self, sizes, entry):
        return entry

    def run(self, state, folded):
        state.write(self.out, state.input(self.channels))
