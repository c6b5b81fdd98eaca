"""What all GhostNets have in common: a stem, bottlenecks in stages, a head."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..nn import _arguments
from ..nn.squeeze_excite import make_divisible
from ..surgery import fuse
from ._arguments import check_sizes

HEAD = 1280
Stage = tuple[tuple[int, int, int, float, int], ...]  # depthwise kernel, expansion, output channels, SE ratio, stride


class _ConvBnAct(nn.Module):
    """1x1 convolution, BatchNorm, ReLU: the last stage, with its keys as in timm's and Huawei's nets."""

    def __init__(self, in_chs: int, out_chs: int, **factory) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chs, out_chs, 1, bias=False, **factory)
        self.bn1 = nn.BatchNorm2d(out_chs, **factory)
        self.act1 = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act1(self.bn1(self.conv(x)))


class StagedNet(nn.Module):
    """A GhostNet of any version: stem, stages of bottlenecks, 1x1 convolution, pooling, head.

    Args:
        stages: its bottlenecks; all channels are multiplied by ``width`` and rounded to multiples of 4.
        block: makes the bottleneck of this index from input, expanded and output channels, depthwise kernel, stride and
            SE ratio.
        last: channels before the pooling, per expanded channel of the last bottleneck.
        fused: whether :func:`ghost_ops.fuse` is called on the net, which takes seconds.

    Shape: N x in_chans x H x W, any floating dtype, NCHW or channels_last, to N x num_classes.

    Raises:
        ValueError: a width that is not positive, a negative num_classes, no channels, a dropout outside [0, 1].
        TypeError: a width or dropout that is not a number, a num_classes or in_chans that is not an int.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        block: Callable[..., nn.Module],
        width: float,
        num_classes: int,
        in_chans: int,
        dropout: float,
        *,
        last: int = 1,
        fused: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        owner, factory = type(self).__name__, {"device": device, "dtype": dtype}
        _arguments.number(owner, "a positive number", lambda value: value > 0, width=width)
        check_sizes(owner, num_classes, in_chans)
        _arguments.number(owner, "a probability", lambda value: 0 <= value <= 1, dropout=dropout)

        channels = make_divisible(16 * width, 4)
        self.conv_stem = nn.Conv2d(in_chans, channels, 3, 2, 1, bias=False, **factory)
        self.bn1 = nn.BatchNorm2d(channels, **factory)
        self.act1 = nn.ReLU(inplace=True)

        made, index = [], 0
        for stage in stages:
            blocks = []
            for kernel, expansion, out, se_ratio, stride in stage:
                mid_chs, out_chs = make_divisible(expansion * width, 4), make_divisible(out * width, 4)
                blocks.append(block(index, channels, mid_chs, out_chs, kernel, stride, se_ratio, **factory))
                channels, index = out_chs, index + 1
            made.append(nn.Sequential(*blocks))
        out_chs = make_divisible(expansion * width * last, 4)
        made.append(nn.Sequential(_ConvBnAct(channels, out_chs, **factory)))
        self.blocks = nn.Sequential(*made)

        self.conv_head = nn.Conv2d(out_chs, HEAD, 1, **factory)
        self.act2 = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(HEAD, num_classes, **factory) if num_classes else nn.Identity()
        if fused:
            fuse(self)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """The last feature map: N x C x ceil(H / 32) x ceil(W / 32), C being the input channels of ``conv_head``."""
        return self.blocks(self.act1(self.bn1(self.conv_stem(x))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.forward_features(x).mean((2, 3), keepdim=True)
        return self.classifier(self.dropout(self.act2(self.conv_head(x)).flatten(1)))
