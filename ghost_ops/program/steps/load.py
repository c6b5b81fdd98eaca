"""``Load``: the input as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..packed_layer import Channels
from ..step import MapStep, Size, register_step


@register_step
@dataclass(frozen=True)
class Load(MapStep):
    """The input, N x channels x H x W, into slot ``out``. ``by_lanes``: some step reads whole vectors of it."""

    kind = 0
    out: int
    channels: int
    by_lanes: bool

    def output_channels(self, channels: Mapping[int, Channels]) -> Channels:
        return Channels(self.channels)

    def output_size(self, sizes: Mapping[int, Size], entry: Size) -> Size:
        return entry

    def run(self, state, folded):
        state.write(self.out, state.input(self.channels))
