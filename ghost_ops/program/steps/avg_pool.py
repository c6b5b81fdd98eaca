"""``AvgPool``: average pooling over windows."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import nn
from torch.nn.modules.utils import _pair

from ..step import MapStep, Size, convolved_size, register_step


@register_step
@dataclass(frozen=True)
class AvgPool(MapStep):
    """The mean of each window, from slot ``source`` to ``out``. Padding is at most half of the kernel.

    Attributes:
        kernel, stride, padding: of rows, and of columns.
        counts_padding: whether padding counts as zeros; else a mean is over the pixels that are there.
    """

    kind = 16
    source: int
    out: int
    channels: int
    kernel: Size
    stride: Size
    padding: Size
    counts_padding: bool

    @classmethod
    def of_module(cls, module, source, out, channels):
        if type(module) is not nn.AvgPool2d or module.ceil_mode or module.divisor_override is not None:
            return None
        sizes = map(_pair, (module.kernel_size, module.stride, module.padding))
        return cls(source, out, channels, *sizes, module.count_include_pad)

    @staticmethod
    def module_of(function, arguments, options):
        if function is not F.avg_pool2d:
            return None
        names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        return nn.AvgPool2d(**{**dict(zip(names, arguments)), **options})

    def output_size(self, sizes, entry):
        return convolved_size(sizes[self.source], self.kernel, self.stride, self.padding)

    def run(self, state, folded):
        x = state.read(self.source)
        out = F.avg_pool2d(x, self.kernel, self.stride, self.padding, False, self.counts_padding)
        state.write(self.out, out)
