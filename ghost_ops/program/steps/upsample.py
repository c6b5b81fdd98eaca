"""``Upsample``: nearest upsampling."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import nn
from torch.nn.modules.utils import _pair

from ..step import MapStep, Size, register_step


@register_step
@dataclass(frozen=True)
class Upsample(MapStep):
    """Nearest upsampling (or downsampling), from slot ``source`` to ``out``, as ``F.interpolate`` does it.

    Attributes:
        like: slot of a map whose size the result takes, or -1.
        size: height and width of the result, or (0, 0).
        row_scale, column_scale: factors of height and width where there is neither, else 0.
    """

    kind = 15
    source: int
    out: int
    channels: int
    like: int
    size: Size
    row_scale: float
    column_scale: float

    @classmethod
    def of_module(cls, module, source, out, channels):
        if (
            type(module) not in (nn.Upsample, nn.UpsamplingNearest2d)
            or module.mode != "nearest"
            or module.recompute_scale_factor
        ):
            return None
        return cls(source, out, channels, -1, *cls.sizes_of(module))

    @staticmethod
    def sizes_of(module):
        """The size and the factors of a module: one of the two is 0."""
        if module.size is not None:
            return _pair(module.size), 0.0, 0.0
        return (0, 0), *map(float, _pair(module.scale_factor))

    @staticmethod
    def module_of(function, arguments, options):
        if function is not F.interpolate:
            return None
        names = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
        given = {**dict(zip(names, arguments)), **options}
        if given.pop("antialias", False) or given.get("mode", "nearest") not in ("nearest", "bilinear"):
            return None
        fixed = given.get("size"), given.get("scale_factor")
        if not all(isinstance(n, int | float) for value in fixed if value is not None for n in _pair(value)):
            return None  # a size that is computed
        return nn.Upsample(**given)

    def reads(self):
        return super().reads() | ({self.like} if self.like >= 0 else set())

    def output_size(self, sizes, entry):
        if self.like >= 0:
            return sizes[self.like]
        if self.size != (0, 0):
            return self.size
        height, width = sizes[self.source]
        return int(height * self.row_scale), int(width * self.column_scale)

    def run(self, state, folded):
        x = state.read(self.source)
        if self.like < 0 and self.size == (0, 0):
            out = self.interpolate(x, None, (self.row_scale, self.column_scale))
        else:
            out = self.interpolate(x, self.size if self.like < 0 else state.read(self.like).shape[2:], None)
        state.write(self.out, out)

    def interpolate(self, x, size, scale):
        """The map of a size, or of its own times two factors."""
        return F.interpolate(x, size, scale)
