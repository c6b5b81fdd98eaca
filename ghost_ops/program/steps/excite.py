"""``Excite``: the excitation of squeeze-and-excite."""

from dataclasses import dataclass

from ...activations import apply_gate
from ..layer import Layer
from ..step import Step, register_step


@register_step
@dataclass(frozen=True)
class Excite(Step):
    """The excitation of the squeeze: gate(expand(reduce(squeeze)))."""

    kind = 4
    reads_squeeze = True
    channels: int
    hidden: int
    gate: int
    reduce: Layer
    expand: Layer

    def layers(self):
        shapes = (self.hidden, self.channels, 1, 1), (self.channels, self.hidden, 1, 1)
        return [(self.reduce, shapes[0]), (self.expand, shapes[1])]

    def run(self, state, folded):
        hidden = state.linear(state.known(state.squeeze, "a squeeze"), folded[0], self.reduce)
        state.excitation = apply_gate(state.linear(hidden, folded[1], self.expand), self.gate)
