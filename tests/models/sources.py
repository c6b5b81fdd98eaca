"""The first public codes of GhostNet, in the structure and with the keys that their checkpoints have."""

from __future__ import annotations

import torch
from torch import nn

from ghost_ops.models.ghostnet import STAGES
from ghost_ops.nn.squeeze_excite import make_divisible

from ..zoo import ArticleBottleneck, conv_bn

BLOCKS = [block for stage in STAGES for block in stage]


class FirstCodeNet(nn.Module):
    """iamhankai/ghostnet.pytorch as it is now; before it, d-li14's, and before that, the very first.

    Args:
        shortcut_relu: shortcuts of 3x3 with a ReLU, as d-li14's.
        all_depthwise: a depthwise convolution in every bottleneck, at stride 1 too, as the very first.
        dropout: whether a dropout stands before the last layer, which moves its key.
    """

    def __init__(self, width=1.0, num_classes=7, shortcut_relu=False, all_depthwise=False, dropout=True):
        super().__init__()
        channels = make_divisible(16 * width, 4)
        layers = [conv_bn(3, channels, 3, 2, act=nn.ReLU(inplace=True))]
        for kernel, expansion, out, se_ratio, stride in BLOCKS:
            out, hidden = make_divisible(out * width, 4), make_divisible(expansion * width, 4)
            block = ArticleBottleneck(channels, hidden, out, kernel, stride, se_ratio > 0)
            if stride == 1 and not all_depthwise:
                block.conv[1] = nn.Sequential()
            if len(block.shortcut) and not shortcut_relu:
                block.shortcut[0] = conv_bn(channels, channels, kernel, stride, groups=channels)
            layers.append(block)
            channels = out
        self.features = nn.Sequential(*layers)
        self.squeeze = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
        )
        self.classifier = nn.Sequential(
            nn.Linear(hidden, 1280, bias=False),
            nn.BatchNorm1d(1280),
            nn.ReLU(inplace=True),
            *([nn.Dropout(0.2)] if dropout else []),
            nn.Linear(1280, num_classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.squeeze(self.features(x)).flatten(1))
