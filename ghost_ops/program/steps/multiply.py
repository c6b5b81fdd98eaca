"""``Multiply``: a map times a gate."""

from dataclasses import dataclass

import torch.nn.functional as F

from ..step import MapStep, register_step


@register_step
@dataclass(frozen=True)
class Multiply(MapStep):
    """The map in slot ``source`` times the one in slot ``gate``, into ``out``.

    A gate of another size is brought to the source's by nearest upsampling, as ``F.interpolate(gate, size)`` does it:
    the attention of GhostNetV2.

    Attributes:
        squeeze: whether the output's channel means are the next squeeze.
    """

    kind = 13
    source: int
    gate: int
    out: int
    squeeze: bool
    channels: int

    def reads(self):
        return {self.source, self.gate}

    def run(self, state, folded):
        x, gate = state.read(self.source), state.read(self.gate)
        if gate.shape[2:] != x.shape[2:]:
            gate = F.interpolate(gate, x.shape[2:])
        state.write(self.out, x * gate, self.squeeze)
