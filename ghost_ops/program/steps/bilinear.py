"""``BilinearUpsample``: bilinear upsampling."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import nn

from ..step import register_step
from .upsample import Upsample


@register_step
@dataclass(frozen=True)
class BilinearUpsample(Upsample):
    """Bilinear upsampling (or downsampling) without antialiasing, from slot ``source`` to ``out``.

    ``align_corners``: whether the centres of the corner pixels stay where they are, else the corners themselves.
    """

    kind = 22
    align_corners: bool

    @classmethod
    def of_module(cls, module, source, out, channels):
        known = type(module) in (nn.Upsample, nn.UpsamplingBilinear2d)
        if not known or module.mode != "bilinear" or module.recompute_scale_factor:
            return None
        return cls(source, out, channels, -1, *cls.sizes_of(module), bool(module.align_corners))

    def interpolate(self, x, size, scale):
        return F.interpolate(x, size, scale, "bilinear", self.align_corners)
