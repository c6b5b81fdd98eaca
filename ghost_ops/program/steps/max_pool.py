"""``MaxPool``: max pooling."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.utils import _pair

from ..step import MapStep, register_step


@register_step
@dataclass(frozen=True)
class MaxPool(MapStep):
    """The largest value of each square window, from slot ``source`` to ``out``; NaN counts as the largest.

    Padding is at most half of the kernel, and never the largest.
    """

    kind = 8
    source: int
    out: int
    channels: int
    kernel: int
    stride: int
    padding: int

    @classmethod
    def of_module(cls, module, source, out, channels):
        if type(module) is not nn.MaxPool2d:
            return None
        kernel, stride, padding, dilation = map(
            _pair, (module.kernel_size, module.stride, module.padding, module.dilation)
        )
        square = all(pair[0] == pair[1] for pair in (kernel, stride, padding)) and dilation == (1, 1)
        if not square or module.ceil_mode or module.return_indices:
            return None
        return cls(source, out, channels, kernel[0], stride[0], padding[0])

    @staticmethod
    def module_of(function, arguments, options):
        if function not in (F.max_pool2d, torch.max_pool2d):
            return None
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
        return nn.MaxPool2d(**dict(zip(names, arguments)), **options)

    def output_size(self, sizes, entry):
        return tuple((n + 2 * self.padding - self.kernel) // self.stride + 1 for n in sizes[self.source])

    def run(self, state, folded):
        state.write(self.out, F.max_pool2d(state.read(self.source), self.kernel, self.stride, self.padding))
