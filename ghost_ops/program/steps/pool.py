"""``Pool``: global average pooling."""

from dataclasses import dataclass

from ..step import Step, register_step


@register_step
@dataclass(frozen=True)
class Pool(Step):
    """The squeeze as features."""

    kind = 5
    reads_squeeze = True
    channels: int

    def result_shape(self, batch, channels, sizes):
        return (batch, self.channels)

    def run(self, state, folded):
        state.features = state.known(state.squeeze, "a squeeze")
