"""``Store``: a map as the result."""

from dataclasses import dataclass

from ..step import Step, register_step


@register_step
@dataclass(frozen=True)
class Store(Step):
    """The slot that is returned."""

    kind = 7
    source: int

    def result_shape(self, batch, channels, sizes):
        return (batch, channels[self.source].count, *sizes[self.source])

    def run(self, state, folded):
        pass

    def result(self, state):
        return state.read(self.source)
