"""``Add``: the sum of two maps."""

from dataclasses import dataclass

from ..step import MapStep, register_step


@register_step
@dataclass(frozen=True)
class Add(MapStep):
    """The sum of the maps in slots ``source`` and ``other``, which have one size, into ``out``.

    Attributes:
        squeeze: whether the output's channel means are the next squeeze.
    """

    kind = 12
    source: int
    other: int
    out: int
    squeeze: bool
    channels: int

    def run(self, state, folded):
        state.write(self.out, state.read(self.source) + state.read(self.other), self.squeeze)
