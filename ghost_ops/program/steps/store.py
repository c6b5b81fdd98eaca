"""``Store``: a map as a result."""

from dataclasses import dataclass

from ..step import Step, register_step


@register_step
@dataclass(frozen=True)
class Store(Step):
    """A slot that is returned. Several at the end of a program return several results."""

    kind = 7
    is_result = True
    returns_map = True
    source: int

    def result_shape(self, batch, channels, sizes):
        return (batch, channels[self.source].count, *sizes[self.source])

    def run(self, state, folded):
        pass

    def result(self, state):
        return state.read(self.source)
