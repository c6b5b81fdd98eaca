"""Classifiers and face embedders of other projects, written plainly in the structure that these have."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .blocks import ArticleGhostModule, HuaweiBottleneck, ResNetGhostModule, conv_bn

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


class GhostResNetBottleneck(nn.Module):
    def __init__(self, inp: int, planes: int, stride: int, ratio: int) -> None:
        super().__init__()
        options = {"ratio": ratio, "bias": False}
        self.conv1 = ResNetGhostModule(inp, planes, 1, **options)
        self.conv2 = ResNetGhostModule(planes, planes, 3, stride=stride, padding=1, **options)
        self.conv3 = ResNetGhostModule(planes, 4 * planes, 1, **options)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inp != 4 * planes:
            self.downsample = nn.Sequential(ResNetGhostModule(inp, 4 * planes, 1, stride=stride, **options))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.conv2(self.relu(self.conv1(x))))
        out = self.conv3(out)
        out += residual
        return self.relu(out)


class GhostResNet50(nn.Module):
    """huawei-noah's ghost_resnet.py at s = 2: every convolution after the stem is a Ghost module without BatchNorm."""

    def __init__(self, ratio: int = 2, num_classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(64), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        stages, channels = [], 64
        for planes, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            blocks = []
            for index in range(count):
                blocks.append(GhostResNetBottleneck(channels, planes, 1 if index else stride, ratio))
                channels = 4 * planes
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


class GhostBasicBlock(nn.Module):
    """CIFAR's residual block of Ghost modules; its shortcut of stride 2 drops pixels and pads channels."""

    def __init__(self, inp: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ArticleGhostModule(inp, planes, 3, stride=stride)
        self.conv2 = ArticleGhostModule(planes, planes, 3, relu=False)
        self.stride, self.more = stride, planes - inp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv2(self.conv1(x))
        if self.more:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more // 2))
        return F.relu(out + x)


class GhostResNet56(nn.Module):
    """The article's ResNet-56 for CIFAR-10 (akamaster/pytorch_resnet_cifar10 with its convolutions replaced), s = 2."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = conv_bn(3, 16, 3, act=nn.ReLU())
        blocks, channels = [], 16
        for planes, stride in ((16, 1), (32, 2), (64, 2)):
            for index in range(9):
                blocks.append(GhostBasicBlock(channels, planes, 1 if index else stride))
                channels = planes
        self.layers = nn.Sequential(*blocks)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.layers(self.conv1(x)).mean((2, 3)))


class GhostVGG16(nn.Module):
    """The article's VGG-16 for CIFAR-10 (kuangliu/pytorch-cifar with its convolutions replaced), s = 2."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        layers, channels = [], 3
        for out in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
            layers.append(ArticleGhostModule(channels, out, 3) if out else nn.MaxPool2d(2, 2))
            channels = out or channels
        self.features = nn.Sequential(*layers, nn.AvgPool2d(1, 1))
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).flatten(1))
