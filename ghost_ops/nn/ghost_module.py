"""``GhostModule``: half of the output by convolution, the rest by cheap depthwise operations on that half."""

from __future__ import annotations

import math

import torch
from torch import nn

from . import _arguments


def conv_bn_act(conv: nn.Conv2d, relu: bool, **factory) -> nn.Sequential:
    """The convolution, a BatchNorm, and a ReLU or an empty module."""
    act = nn.ReLU(inplace=True) if relu else nn.Sequential()
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels, **factory), act)


class GhostModule(nn.Module):
    """Ghost module in plain PyTorch: any device and dtype.

    Source: Han et al. 2020 (GhostNet, arXiv 1911.11907), section 3.1; state_dict keys as in Huawei's and timm's nets.

    m = ceil(oup / ratio) primary channels y1 = relu(bn(conv(x))); m(ratio - 1) cheap channels
    y2 = relu(bn(depthwise(y1))), channel j from y1's channel j // (ratio - 1); the output is the first ``oup`` channels
    of concat(y1, y2). At ratio 1 a plain convolution: ``cheap_operation`` is empty.

    Args:
        inp, oup: input and output channels.
        kernel_size: odd size of the primary convolution, padded by half of it.
        ratio: output channels per primary channel, at least 1.
        dw_size: odd size of the cheap depthwise convolution.
        stride: of the primary convolution.
        relu: ReLU after both halves.
        device, dtype: of the parameters.

    Shape: N x inp x H x W to N x oup x ceil(H / stride) x ceil(W / stride).

    Raises:
        ValueError: a channel count, ratio or stride below 1, an even or non-positive kernel size.
        TypeError: something else than an int.
    """

    def __init__(
        self,
        inp: int,
        oup: int,
        kernel_size: int = 1,
        ratio: int = 2,
        dw_size: int = 3,
        stride: int = 1,
        relu: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        owner, factory = type(self).__name__, {"device": device, "dtype": dtype}
        _arguments.positive(owner, inp=inp, oup=oup, ratio=ratio, stride=stride)
        _arguments.odd(owner, kernel_size=kernel_size, dw_size=dw_size)
        self.oup, self.ratio = oup, ratio
        primary = math.ceil(oup / ratio)
        cheap = primary * (ratio - 1)
        conv = nn.Conv2d(inp, primary, kernel_size, stride, kernel_size // 2, bias=False, **factory)
        self.primary_conv = conv_bn_act(conv, relu, **factory)
        self.cheap_operation = nn.Sequential()
        if cheap:
            conv = nn.Conv2d(primary, cheap, dw_size, 1, dw_size // 2, groups=primary, bias=False, **factory)
            self.cheap_operation = conv_bn_act(conv, relu, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        primary = self.primary_conv(x)
        if self.ratio == 1:
            return primary
        cheap = self.cheap_operation(primary)
        return torch.cat([primary, cheap], dim=1)[:, : self.oup]
