"""``Slice``: some of a map's channels."""

from dataclasses import dataclass

from ..step import MapStep, register_step


@register_step
@dataclass(frozen=True)
class Slice(MapStep):
    """Channels [begin, end) of the map in slot ``source``, as a view in slot ``out``."""

    kind = 11
    source: int
    out: int
    begin: int
    end: int

    def output_channels(self, channels):
        return channels[self.source].sliced(self.begin, self.end)

    def run(self, state, folded):
        state.write(self.out, state.read(self.source)[:, self.begin : self.end])
