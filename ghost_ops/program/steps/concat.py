"""``Concat``: maps side by side in one."""

from dataclasses import dataclass

import torch

from ..step import MapStep, Slots, register_step


@register_step
@dataclass(frozen=True)
class Concat(MapStep):
    """The channels of several maps of one size, in order, as one map in slot ``out``.

    Attributes:
        sources: slots, at least two; one may stand more than once.
        squeeze: whether the output's channel means are the next squeeze.
    """

    kind = 10
    out: int
    squeeze: bool
    sources: Slots

    def output_channels(self, channels):
        first, *others = (channels[slot] for slot in self.sources)
        return first.concatenated(*others)

    def output_size(self, sizes, entry):
        return sizes[self.sources[0]]

    def run(self, state, folded):
        state.write(self.out, torch.cat([state.read(slot) for slot in self.sources], 1), self.squeeze)
