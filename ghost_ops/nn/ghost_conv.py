"""``GhostConv2d``: a Ghost module that stands for a convolution only, without BatchNorms and activations."""

from __future__ import annotations

import math

import torch
from torch import nn

from . import _arguments


class GhostConv2d(nn.Module):
    """Half of a convolution's output, the rest by cheap depthwise operations on that half, in plain PyTorch.

    Source: Han et al. 2020 (GhostNet, arXiv 1911.11907), section 3.1, as Huawei's ``ghost_resnet.py`` has it; keys
    ``conv1`` and ``conv2`` as there.

    m = ceil(oup / ratio) channels y1 = conv1(x), and m(ratio - 1) channels y2 = conv2(y1), a depthwise convolution; the
    output is the first ``oup`` channels of concat(y1, y2).

    Args:
        inp, oup: input and output channels.
        kernel_size: odd size of the first convolution, padded by half of it.
        ratio: output channels per channel of the first convolution, at least 2.
        dw_size: odd size of the depthwise convolution.
        stride: of the first convolution.
        bias: whether both convolutions have one.
        device, dtype: of the parameters.

    Shape: N x inp x H x W to N x oup x ceil(H / stride) x ceil(W / stride).

    Raises:
        ValueError: a channel count or stride below 1, a ratio below 2, an even or non-positive kernel size.
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
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        owner, factory = type(self).__name__, {"bias": bias, "device": device, "dtype": dtype}
        _arguments.positive(owner, inp=inp, oup=oup, ratio=ratio, stride=stride)
        _arguments.odd(owner, kernel_size=kernel_size, dw_size=dw_size)
        if ratio < 2:
            raise ValueError(f"{owner}: ratio: expected at least 2, got {ratio}")
        self.oup = oup
        m = math.ceil(oup / ratio)
        self.conv1 = nn.Conv2d(inp, m, kernel_size, stride, kernel_size // 2, **factory)
        self.conv2 = nn.Conv2d(m, m * (ratio - 1), dw_size, 1, dw_size // 2, groups=m, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(x)
        return torch.cat([y, self.conv2(y)], dim=1)[:, : self.oup]
