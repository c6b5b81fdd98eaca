"""``Linear``: a linear layer."""

from dataclasses import dataclass

from ..layer import Layer
from ..step import Step, register_step


@register_step
@dataclass(frozen=True)
class Linear(Step):
    """A linear layer of the features."""

    kind = 6
    channels: int
    features: int
    layer: Layer

    def layers(self):
        return [(self.layer, (self.features, self.channels, 1, 1))]

    def result_shape(self, batch, channels, sizes):
        return (batch, self.features)

    def run(self, state, folded):
        state.features = state.linear(state.known(state.features, "features"), folded[0], self.layer)
