"""``Scale``: a map times the excitation."""

from dataclasses import dataclass

from ..step import MapStep, register_step


@register_step
@dataclass(frozen=True)
class Scale(MapStep):
    """The map in slot ``source`` times the excitation, into ``out``; where no product multiplies on its way.

    Attributes:
        squeeze: whether the output's channel means are the next squeeze.
    """

    kind = 17
    source: int
    out: int
    squeeze: bool
    channels: int

    def run(self, state, folded):
        scale = state.known(state.excitation, "an excitation")[:, :, None, None]
        state.write(self.out, state.read(self.source) * scale, self.squeeze)
