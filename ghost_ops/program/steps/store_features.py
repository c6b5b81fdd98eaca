"""``StoreFeatures``: features as one of several results."""

from dataclasses import dataclass

from ..step import Step, register_step


@register_step
@dataclass(frozen=True)
class StoreFeatures(Step):
    """The features, as they are where it stands, are returned. A program that returns nothing else needs none."""

    kind = 19
    is_result = True
    channels: int

    def result_shape(self, batch, channels, sizes):
        return (batch, self.channels)

    def run(self, state, folded):
        state.stored.append(state.known(state.features, "features"))

    def result(self, state):
        return state.stored.pop(0)
