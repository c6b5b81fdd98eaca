"""``Flatten``: all numbers of a map as features."""

from dataclasses import dataclass

from ..step import Step, register_step


@register_step
@dataclass(frozen=True)
class Flatten(Step):
    """The numbers of the map in slot ``source`` as so many features: channels, rows of each, columns of each row.

    An input of another size, of which more or fewer come, is refused.
    """

    kind = 20
    source: int
    channels: int
    features: int

    def result_shape(self, batch, channels, sizes):
        return (batch, self.features)

    def run(self, state, folded):
        flat = state.read(self.source).flatten(1)
        if flat.shape[1] != self.features:
            came = f"got one of which come {flat.shape[1]}"
            raise ValueError(f"program: x: expected a size of which {self.features} features come, {came}")
        state.features = flat
