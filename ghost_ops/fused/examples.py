"""Blocks as people write them, for ``Block.examples``: what no class of ``ghost_ops.nn`` is."""

from __future__ import annotations

import torch
from torch import nn

from ..nn import GhostBottleneckV3, GhostModuleV3, RepGhostModule, SqueezeExcite


def conv_bn(
    channels: int, filters: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: nn.Module | None = None
) -> nn.Sequential:
    """A convolution without bias, a BatchNorm and, where one is given, an activation."""
    conv = nn.Conv2d(channels, filters, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(filters), *([] if act is None else [act]))


def merged(module: nn.Module) -> nn.Module:
    """The module, its branches and those of what is in it merged."""
    for child in list(module.modules()):
        if isinstance(child, (GhostBottleneckV3, GhostModuleV3, RepGhostModule)):
            child.reparameterize()
    return module


class YoloConv(nn.Module):
    """``Conv`` of ultralytics."""

    def __init__(
        self, channels: int, filters: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True
    ):
        super().__init__()
        self.conv = nn.Conv2d(channels, filters, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(filters, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU() if act else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.bn(self.conv(x)))


class YoloGhostConv(nn.Module):
    """``GhostConv`` of ultralytics."""

    def __init__(self, channels: int, filters: int, kernel: int = 1, stride: int = 1, act: bool = True) -> None:
        super().__init__()
        half = filters // 2
        self.cv1 = YoloConv(channels, half, kernel, stride, act=act)
        self.cv2 = YoloConv(half, half, 5, 1, half, act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.cv1(x)
        return torch.cat((y, self.cv2(y)), 1)


class YoloGhostBottleneck(nn.Module):
    """``GhostBottleneck`` of ultralytics."""

    def __init__(self, channels: int, filters: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        half, halves = filters // 2, stride == 2
        self.conv = nn.Sequential(
            YoloGhostConv(channels, half),
            YoloConv(half, half, kernel, stride, half, act=False) if halves else nn.Identity(),
            YoloGhostConv(half, filters, act=False),
        )
        self.shortcut = (
            nn.Sequential(
                YoloConv(channels, channels, kernel, stride, channels, act=False),
                YoloConv(channels, filters, act=False),
            )
            if halves
            else nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) + self.shortcut(x)


class InvertedResidual(nn.Module):
    """The block of MobileNetV2 and V3: 1x1, depthwise, squeeze-and-excite, 1x1, and the input added where it fits."""

    def __init__(
        self, channels: int, hidden: int, filters: int, kernel: int, stride: int, act: nn.Module, se: bool
    ) -> None:
        super().__init__()
        self.expand = conv_bn(channels, hidden, act=act)
        self.depthwise = conv_bn(hidden, hidden, kernel, stride, hidden, act)
        self.se = SqueezeExcite(hidden, 0.25) if se else nn.Identity()
        self.project = conv_bn(hidden, filters)
        self.adds = stride == 1 and channels == filters

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.project(self.se(self.depthwise(self.expand(x))))
        return out + x if self.adds else out
