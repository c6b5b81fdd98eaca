"""Dense nets for CIFAR: what the GhostNet paper makes Ghost-VGG-16 and Ghost-ResNet-56 of."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ghost_ops.models.ghost_vgg import LAYERS


class VGG16(nn.Module):
    """Li et al. 2017 (arXiv 1608.08710): VGG-16 with BatchNorms and two linear layers."""

    def __init__(self, width: int = 1, **factory) -> None:
        super().__init__()
        layers, channels = [], 3
        for out in LAYERS:
            out //= width
            if out:
                conv = nn.Conv2d(channels, out, 3, padding=1, **factory)
                layers += [conv, nn.BatchNorm2d(out, **factory), nn.ReLU(inplace=True)]
                channels = out
            else:
                layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(channels, channels, **factory),
            nn.BatchNorm1d(channels, **factory),
            nn.ReLU(inplace=True),
            nn.Linear(channels, 10, **factory),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class _BasicBlock(nn.Module):
    def __init__(self, inp: int, planes: int, stride: int, **factory) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inp, planes, 3, stride, 1, bias=False, **factory)
        self.bn1 = nn.BatchNorm2d(planes, **factory)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False, **factory)
        self.bn2 = nn.BatchNorm2d(planes, **factory)
        self.stride, self.more = stride, (planes - inp) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1 or self.more:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more, self.more))
        return F.relu(y + x)


class ResNet56(nn.Module):
    """He et al. 2016 (arXiv 1512.03385), section 4.2, with shortcuts without parameters."""

    def __init__(self, **factory) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False, **factory)
        self.bn1 = nn.BatchNorm2d(16, **factory)
        channels = 16
        for number, planes in enumerate((16, 32, 64), start=1):
            blocks = []
            for index in range(9):
                blocks.append(_BasicBlock(channels, planes, 1 if index or number == 1 else 2, **factory))
                channels = planes
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))
