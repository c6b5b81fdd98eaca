"""``Squeeze``: the squeeze of a map whose step makes none."""

from dataclasses import dataclass

from ..step import Step, register_step


@register_step
@dataclass(frozen=True)
class Squeeze(Step):
    """The channel means of the map in slot ``source`` are the next squeeze: of the input, a slice, a max pooling."""

    kind = 18
    source: int
    channels: int

    def run(self, state, folded):
        state.squeeze = state.mean(state.read(self.source))
