"""Ghost modules and bottlenecks, each in the structure of its source; the tests recognise them, the nets hold them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

Activation = Callable[..., nn.Module]


def conv_bn(inp, oup, kernel, stride=1, groups=1, act=None):
    conv = nn.Conv2d(inp, oup, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(oup), nn.Sequential() if act is None else act)


# The article's (iamhankai/ghostnet.pytorch, in the Sequential style of d-li14/mobilenetv3.pytorch)


class ArticleGhostModule(nn.Module):
    def __init__(self, inp, oup, kernel_size=1, ratio=2, dw_size=3, stride=1, relu=True, act: Activation = nn.ReLU):
        super().__init__()
        self.oup = oup
        primary = math.ceil(oup / ratio)
        acts = [_made(act) if relu else None for _ in range(2)]
        self.primary_conv = conv_bn(inp, primary, kernel_size, stride, act=acts[0])
        self.cheap_operation = conv_bn(primary, primary * (ratio - 1), dw_size, groups=primary, act=acts[1])

    def forward(self, x):
        x1 = self.primary_conv(x)
        x2 = self.cheap_operation(x1)
        return torch.cat([x1, x2], dim=1)[:, : self.oup, :, :]


def _made(act: Activation) -> nn.Module:
    return act() if act is nn.PReLU else act(inplace=True)


# Huawei's (Efficient-AI-Backbones/ghostnet_pytorch), of which timm's are descended


def hard_sigmoid(x, inplace=False):
    return x.add_(3.0).clamp_(0.0, 6.0).div_(6.0) if inplace else F.relu6(x + 3.0) / 6.0


class HuaweiSqueezeExcite(nn.Module):
    def __init__(self, channels, hidden, gate_fn=hard_sigmoid, act: Activation = nn.ReLU):
        super().__init__()
        self.gate_fn = gate_fn
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv_reduce = nn.Conv2d(channels, hidden, 1)
        self.act1 = _made(act)
        self.conv_expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x):
        return x * self.gate_fn(self.conv_expand(self.act1(self.conv_reduce(self.avg_pool(x)))))


class HuaweiBottleneck(nn.Module):
    """The bottleneck of V1; with ``attention`` that of V2, whose first Ghost module has DFC attention."""

    def __init__(self, inp, mid, oup, kernel=3, stride=1, se=False, act: Activation = nn.ReLU, attention=False):
        super().__init__()
        self.stride = stride
        self.ghost1 = (AttentionGhostModule if attention else ArticleGhostModule)(inp, mid, act=act)
        if stride > 1:
            self.conv_dw = nn.Conv2d(mid, mid, kernel, stride, kernel // 2, groups=mid, bias=False)
            self.bn_dw = nn.BatchNorm2d(mid)
        self.se = HuaweiSqueezeExcite(mid, mid // 4, act=act) if se else None
        self.ghost2 = ArticleGhostModule(mid, oup, relu=False)
        self.shortcut = nn.Sequential()
        if inp != oup or stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inp, inp, kernel, stride, kernel // 2, groups=inp, bias=False),
                nn.BatchNorm2d(inp),
                nn.Conv2d(inp, oup, 1, bias=False),
                nn.BatchNorm2d(oup),
            )

    def forward(self, x):
        residual = x
        x = self.ghost1(x)
        if self.stride > 1:
            x = self.bn_dw(self.conv_dw(x))
        if self.se is not None:
            x = self.se(x)
        x = self.ghost2(x)
        x += self.shortcut(residual)
        return x


class AttentionGhostModule(ArticleGhostModule):
    """GhostNetV2's, with its DFC attention."""

    def __init__(self, inp, oup, act: Activation = nn.ReLU):
        super().__init__(inp, oup, act=act)
        self.gate_fn = nn.Sigmoid()
        self.short_conv = nn.Sequential(
            nn.Conv2d(inp, oup, 1, bias=False),
            nn.BatchNorm2d(oup),
            nn.Conv2d(oup, oup, (1, 5), 1, (0, 2), groups=oup, bias=False),
            nn.BatchNorm2d(oup),
            nn.Conv2d(oup, oup, (5, 1), 1, (2, 0), groups=oup, bias=False),
            nn.BatchNorm2d(oup),
        )

    def forward(self, x):
        res = self.short_conv(F.avg_pool2d(x, 2, 2))
        out = super().forward(x)
        return out * F.interpolate(self.gate_fn(res), size=out.shape[-2:], mode="nearest")
