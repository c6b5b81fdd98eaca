"""``Shuffle``: channel shuffle."""

from dataclasses import dataclass

from torch import nn

from ..packed_layer import Channels
from ..step import MapStep, register_step


@register_step
@dataclass(frozen=True)
class Shuffle(MapStep):
    """Channel shuffle, from slot ``source`` to ``out``: channels as groups x channels of each, transposed.

    Attributes:
        groups: a divisor of ``channels``. The first channel of each group comes first, then the second of each.
    """

    kind = 14
    source: int
    out: int
    channels: int
    groups: int

    @classmethod
    def of_module(cls, module, source, out, channels):
        if type(module) is not nn.ChannelShuffle or channels % module.groups:
            return None
        return cls(source, out, channels, module.groups)

    def output_channels(self, channels):
        return Channels.of(self.channels)

    def run(self, state, folded):
        x = state.read(self.source)
        groups = x.unflatten(1, (self.groups, self.channels // self.groups))
        state.write(self.out, groups.transpose(1, 2).flatten(1, 2))
