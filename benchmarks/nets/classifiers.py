"""Face embedders of other projects, written plainly in the structure that these have."""

from __future__ import annotations

import torch
from torch import nn

from .blocks import HuaweiBottleneck, conv_bn

# Kernel, expansion, output channels, squeeze-and-excite, stride of GhostNet's bottlenecks
GHOSTNET = (
    (3, 16, 16, False, 1), (3, 48, 24, False, 2), (3, 72, 24, False, 1), (5, 72, 40, True, 2), (5, 120, 40, True, 1),
    (3, 240, 80, False, 2), (3, 200, 80, False, 1), (3, 184, 80, False, 1), (3, 184, 80, False, 1),
    (3, 480, 112, True, 1), (3, 672, 112, True, 1), (5, 672, 160, True, 2), (5, 960, 160, False, 1),
    (5, 960, 160, True, 1), (5, 960, 160, False, 1), (5, 960, 160, True, 1),
)  # fmt: skip


def ghostnet_blocks(stem: int = 16, act=nn.ReLU, attention: bool = False) -> nn.ModuleList:
    """GhostNet's sixteen bottlenecks; of V2 the first two have no attention."""
    blocks, channels = nn.ModuleList(), stem
    for index, (kernel, hidden, out, se, stride) in enumerate(GHOSTNET):
        blocks.append(HuaweiBottleneck(channels, hidden, out, kernel, stride, se, act, attention and index > 1))
        channels = out
    return blocks


class GhostFaceNet(nn.Module):
    """Hazqeel09/GhostFaceNet, after HamadYA/GhostFaceNets: GhostNet with PReLU, and a depthwise head over the map.

    The first two strides of a face net are those of the stem and of the second bottleneck, on images of 112 x 112.
    """

    def __init__(self, attention: bool = False, side: int = 112, embedding: int = 512) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16, 3, 2, act=nn.PReLU())
        self.blocks = nn.Sequential(*ghostnet_blocks(act=nn.PReLU, attention=attention))
        self.last = conv_bn(160, 960, 1, act=nn.PReLU())
        self.conv_dw = nn.Conv2d(960, 960, -(-side // 32), groups=960, bias=False)
        self.bn1 = nn.BatchNorm2d(960)
        self.conv = nn.Conv2d(960, embedding, 1, bias=False)
        self.bn2 = nn.BatchNorm1d(embedding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.last(self.blocks(self.stem(x)))
        return self.bn2(self.conv(self.bn1(self.conv_dw(x))).flatten(1))
