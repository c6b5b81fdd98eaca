"""Backbones and necks of detectors, written plainly in the structure that their projects have."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .blocks import HuaweiBottleneck, conv_bn
from .classifiers import GHOSTNET, ghostnet_blocks


class ConvModule(nn.Module):
    """nanodet's: convolution, BatchNorm, LeakyReLU; of ``depthwise`` there are two, the first one depthwise."""

    def __init__(self, inp: int, out: int, kernel: int, stride: int = 1, depthwise: bool = False) -> None:
        super().__init__()
        act = lambda: nn.LeakyReLU(0.1, inplace=True)
        first = conv_bn(inp, inp, kernel, stride, groups=inp, act=act()) if depthwise else nn.Identity()
        self.depthwise = first
        self.pointwise = conv_bn(inp, out, 1 if depthwise else kernel, 1 if depthwise else stride, act=act())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pointwise(self.depthwise(x))


def _leaky(inplace: bool = False) -> nn.Module:
    return nn.LeakyReLU(0.1, inplace)


class GhostPAN(nn.Module):
    """RangiLyu/nanodet's GhostPAN over GhostNet-100, as nanodet-plus has it: 96 channels, kernel 5, one extra level."""

    taken = (4, 10, 15)  # bottlenecks whose maps the neck reads: strides 8, 16, 32

    def __init__(self, channels: int = 96, kernel: int = 5) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16, 3, 2, act=nn.ReLU(inplace=True))
        self.blocks = ghostnet_blocks()
        ghost = lambda: HuaweiBottleneck(2 * channels, channels, channels, kernel, act=_leaky)
        down = lambda: ConvModule(channels, channels, kernel, 2, depthwise=True)
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear")
        self.reduce = nn.ModuleList(ConvModule(GHOSTNET[at][2], channels, 1) for at in self.taken)
        self.top_down = nn.ModuleList(ghost() for _ in range(2))
        self.downsamples, self.bottom_up = nn.ModuleList(down() for _ in range(2)), nn.ModuleList(ghost() for _ in "ab")
        self.extra_in, self.extra_out = down(), down()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, maps = self.stem(x), []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.taken:
                maps.append(x)
        small, middle, large = (reduce(m) for reduce, m in zip(self.reduce, maps, strict=True))
        inner = self.top_down[0](torch.cat([self.upsample(large), middle], 1))
        first = self.top_down[1](torch.cat([self.upsample(inner), small], 1))
        second = self.bottom_up[0](torch.cat([self.downsamples[0](first), inner], 1))
        third = self.bottom_up[1](torch.cat([self.downsamples[1](second), large], 1))
        return first, second, third, self.extra_in(large) + self.extra_out(third)


class ESSqueezeExcite(nn.Module):
    """PaddleDetection's, whose hard sigmoid is x / 6 + 0.5 cut to 0 to 1, with functions for its activations."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv1, self.conv2 = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * F.hardsigmoid(self.conv2(F.relu(self.conv1(self.avg_pool(x)))))


def _divisible(value: float, divisor: int) -> int:
    new = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return new + divisor if new < 0.9 * value else new


def channel_shuffle(x: torch.Tensor, groups: int) -> torch.Tensor:
    batch, channels, height, width = x.shape
    x = x.view(batch, groups, channels // groups, height, width).transpose(1, 2)
    return x.reshape(batch, channels, height, width)


class ESBlock(nn.Module):
    """At stride 1: half of the channels pass by; the others go through a Ghost module written inline."""

    def __init__(self, channels: int, mid: int) -> None:
        super().__init__()
        half, act = channels // 2, nn.Hardswish
        self.pw = conv_bn(half, mid // 2, 1, act=act())
        self.dw = conv_bn(mid // 2, mid // 2, 3, groups=mid // 2)
        self.se = ESSqueezeExcite(mid)
        self.linear = conv_bn(mid, half, 1, act=act())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept, x = x.chunk(2, 1)
        x = self.pw(x)
        x = self.linear(self.se(torch.cat([x, self.dw(x)], 1)))
        return channel_shuffle(torch.cat([kept, x], 1), 2)


class ESBlockDS(nn.Module):
    """At stride 2: two branches, and a depthwise separable convolution over both."""

    def __init__(self, inp: int, mid: int, out: int) -> None:
        super().__init__()
        act, half = nn.Hardswish, mid // 2
        self.dw1, self.linear1 = conv_bn(inp, inp, 3, 2, groups=inp), conv_bn(inp, out // 2, 1, act=act())
        self.pw2, self.dw2 = conv_bn(inp, half, 1, act=act()), conv_bn(half, half, 3, 2, groups=half)
        self.se, self.linear2 = ESSqueezeExcite(half), conv_bn(half, out // 2, 1, act=act())
        self.dw_mv1, self.pw_mv1 = conv_bn(out, out, 3, groups=out, act=act()), conv_bn(out, out, 1, act=act())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.linear1(self.dw1(x))
        second = self.linear2(self.se(self.dw2(self.pw2(x))))
        return self.pw_mv1(self.dw_mv1(torch.cat([first, second], 1)))


class ESNet(nn.Module):
    """PaddleDetection's backbone of PicoDet-M (scale 1); its maps of strides 8, 16 and 32."""

    ratios = (0.875, 0.5, 1.0, 0.625, 0.5, 0.75, 0.625, 0.625, 0.5, 0.625, 1.0, 0.625, 0.75)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv_bn(3, 24, 3, 2, act=nn.Hardswish())
        self.max_pool = nn.MaxPool2d(3, 2, 1)
        self.stages, channels, ratios = nn.ModuleList(), 24, iter(self.ratios)
        for out, count in ((128, 3), (256, 7), (512, 3)):
            mids = [_divisible(int(out * next(ratios)), 8) for _ in range(count)]
            blocks = [ESBlockDS(channels, mids[0], out), *(ESBlock(out, mid) for mid in mids[1:])]
            self.stages.append(nn.Sequential(*blocks))
            channels = out

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, maps = self.max_pool(self.conv1(x)), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps)
