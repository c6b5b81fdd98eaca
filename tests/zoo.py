"""Ghost modules, SE layers and bottlenecks as they exist in the wild, each in the structure of its source."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.nets.blocks import (
    ArticleGhostModule,
    HuaweiBottleneck,
    HuaweiSqueezeExcite,
    conv_bn,
    hard_sigmoid,
)

__all__ = [
    "ArticleGhostModule",
    "HuaweiBottleneck",
    "HuaweiSqueezeExcite",
    "conv_bn",
    "hard_sigmoid",
]


class ArticleSELayer(nn.Module):
    def __init__(self, channel, reduction=4, gate=None):
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        hidden = channel // reduction
        self.fc = nn.Sequential(nn.Linear(channel, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channel))
        if gate is not None:
            self.fc.append(gate)

    def forward(self, x):
        b, c, _, _ = x.size()
        y = self.fc(self.avg_pool(x).view(b, c)).view(b, c, 1, 1)
        return x * (torch.clamp(y, 0, 1) if len(self.fc) == 3 else y)


class HardSigmoid(nn.Module):
    """d-li14's ``h_sigmoid``: a module with a module inside."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU6(inplace=True)

    def forward(self, x):
        return self.relu(x + 3) / 6


class ArticleBottleneck(nn.Module):
    def __init__(self, inp, hidden, oup, kernel_size, stride, use_se):
        super().__init__()
        self.conv = nn.Sequential(
            ArticleGhostModule(inp, hidden),
            conv_bn(hidden, hidden, kernel_size, stride, groups=hidden),
            ArticleSELayer(hidden) if use_se else nn.Sequential(),
            ArticleGhostModule(hidden, oup, relu=False),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or inp != oup:
            first = conv_bn(inp, inp, 3, stride, groups=inp, act=nn.ReLU(inplace=True))
            self.shortcut = nn.Sequential(first, nn.Conv2d(inp, oup, 1, bias=False), nn.BatchNorm2d(oup))

    def forward(self, x):
        return self.conv(x) + self.shortcut(x)


# YOLO's (ultralytics/nn/modules)


class YoloConv(nn.Module):
    default_act = nn.SiLU()  # one module, shared by all

    def __init__(self, c1, c2, k=1, s=1, g=1, act=True):
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, k // 2, groups=g, bias=False)
        self.bn = nn.BatchNorm2d(c2, eps=1e-3, momentum=0.03)
        self.act = self.default_act if act is True else nn.Identity()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class YoloGhostConv(nn.Module):
    def __init__(self, c1, c2, k=1, s=1, act=True):
        super().__init__()
        c_ = c2 // 2
        self.cv1 = YoloConv(c1, c_, k, s, act=act)
        self.cv2 = YoloConv(c_, c_, 5, 1, g=c_, act=act)

    def forward(self, x):
        y = self.cv1(x)
        return torch.cat((y, self.cv2(y)), 1)


class YoloGhostBottleneck(nn.Module):
    def __init__(self, c1, c2, k=3, s=1):
        super().__init__()
        c_ = c2 // 2
        self.conv = nn.Sequential(
            YoloGhostConv(c1, c_),
            YoloConv(c_, c_, k, s, g=c_, act=False) if s == 2 else nn.Identity(),
            YoloGhostConv(c_, c2, act=False),
        )
        self.shortcut = nn.Identity()
        if s == 2:
            self.shortcut = nn.Sequential(YoloConv(c1, c1, k, s, g=c1, act=False), YoloConv(c1, c2, act=False))

    def forward(self, x):
        return self.conv(x) + self.shortcut(x)


# PicoDet's (act, none), Ghost-ResNet's (bias, no BatchNorm, unused children), GhostNetV3's as deployed


class PicoGhostModule(nn.Module):
    def __init__(self, inp, oup, dw_size=3):
        super().__init__()
        primary = math.ceil(oup / 2)
        self.primary_conv = conv_bn(inp, primary, 1, act=nn.Hardswish())
        self.cheap_operation = conv_bn(primary, primary, dw_size, groups=primary)

    def forward(self, x):
        y = self.primary_conv(x)
        return torch.cat([y, self.cheap_operation(y)], dim=1)


class ResNetGhostModule(nn.Conv2d):
    def __init__(self, inp, oup, kernel_size, dw_size=3, ratio=2, stride=1, padding=0, bias=True):
        super().__init__(inp, oup, kernel_size, stride, padding, bias=bias)
        self.weight = None
        self.init_channels = math.ceil(oup / ratio)
        new = self.init_channels * (ratio - 1)
        self.conv1 = nn.Conv2d(inp, self.init_channels, kernel_size, stride, padding)
        self.conv2 = nn.Conv2d(self.init_channels, new, dw_size, 1, dw_size // 2, groups=self.init_channels)
        self.bn1 = nn.BatchNorm2d(self.init_channels)
        self.weight1 = nn.Parameter(torch.randn(self.init_channels, inp, kernel_size, kernel_size))

    def forward(self, input):
        x1 = self.conv1(input)
        x2 = self.conv2(x1)[:, : self.out_channels - self.init_channels, :, :]
        return torch.cat([x1, x2], 1)


class DeployedV3GhostModule(nn.Module):
    def __init__(self, inp, oup):
        super().__init__()
        primary = oup // 2
        self.gate_fn, self.short_conv = nn.Sigmoid(), nn.Identity()  # not called in this mode
        self.primary_activation, self.cheap_activation = nn.ReLU(inplace=True), nn.ReLU(inplace=True)
        self.primary_conv = nn.Sequential(nn.Conv2d(inp, primary, 1), self.primary_activation)
        cheap = nn.Conv2d(primary, primary, 3, 1, 1, groups=primary)
        self.cheap_operation = nn.Sequential(cheap, self.cheap_activation)

    def forward(self, x):
        x1 = self.primary_conv(x)
        return torch.cat([x1, self.cheap_operation(x1)], dim=1)


# Look-alikes: the structure of a Ghost module, another computation


class ScaledGhostModule(ArticleGhostModule):
    def forward(self, x):
        return super().forward(x) * 1.001


class SwappedGhostModule(ArticleGhostModule):
    def forward(self, x):
        x1 = self.primary_conv(x)
        return torch.cat([self.cheap_operation(x1), x1], dim=1)


class DropoutGhostModule(ArticleGhostModule):
    """Only in training is it another."""

    def forward(self, x):
        return F.dropout(super().forward(x), 0.1, self.training)


class LayerScaleGhostModule(ArticleGhostModule):
    """A factor that is one as initialised."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gamma = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return super().forward(x) * self.gamma


class TwoInputGhostModule(ArticleGhostModule):
    def forward(self, x, skip=None):
        out = super().forward(x)
        return out if skip is None else out + skip


class TwiceSELayer(ArticleSELayer):
    """Its squeeze is not the mean."""

    def forward(self, x):
        return super().forward(x + x.amax((2, 3), keepdim=True))


class WideBottleneck(HuaweiBottleneck):
    """Its shortcut counts twice."""

    def forward(self, x):
        return super().forward(x) + self.shortcut(x)


class Net(nn.Module):
    """A small net around blocks: stem, blocks, head."""

    def __init__(self, *blocks, channels=8, out=12):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, 2, 1)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(out, 5)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))
