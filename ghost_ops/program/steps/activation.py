"""``Activation``: an activation that follows no convolution, such as that of a sum."""

from dataclasses import dataclass

from ...activations import NONE, PRELU, activate, code_of, module_of, slope_of
from ..layer import SLOPES, Folded, Layer
from ..packed_layer import PackedLayer
from ..step import MapStep, register_step


class _Slopes(PackedLayer):
    """The slopes of the activation, and nothing else."""

    def size(self, weights):
        return self._width * self.layer.packs_slopes

    def pack(self, folded, weights):
        return self._pack_slopes(folded)

    def unpack(self, reader, kinds):
        return Folded(None, None, self._unpack_slopes(reader, kinds))


@register_step
@dataclass(frozen=True)
class Activation(MapStep):
    """The activation of a layer without weight, from slot ``source`` to ``out``.

    Attributes:
        squeeze: whether the output's channel means are the next squeeze.
        layer: its activation; PReLU's weight is its only parameter.
    """

    kind = 9
    source: int
    out: int
    squeeze: bool
    channels: int
    layer: Layer

    @classmethod
    def of_module(cls, module, source, out, channels):
        code = code_of(module)
        if code in (None, NONE):
            return None
        layer = Layer(SLOPES if code == PRELU else 0, act=code, slope=slope_of(module, code))
        return cls(source, out, False, channels, layer)

    @staticmethod
    def module_of(function, arguments, options):
        return module_of(function, arguments, options)

    def folded(self, tensors, fold):
        return [Folded(None, None, next(tensors) if self.layer.parts & SLOPES else None)]

    def packed_layers(self, channels):
        source = channels[self.source]
        return [_Slopes(self.layer, (self.channels,), source.lanes(), source.width)]

    def run(self, state, folded):
        out = activate(state.read(self.source), self.layer.act, self.layer.slope, folded[0].slopes)
        state.write(self.out, out, self.squeeze)
