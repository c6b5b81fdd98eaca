"""ResNets whose convolutions are Ghost modules: ResNet-50 for ImageNet, ResNet-56 for CIFAR."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..nn import GhostConv2d, GhostModule
from ._arguments import check_sizes
from .registry import register_model


class _Bottleneck(nn.Module):
    """ResNet's bottleneck of Ghost modules without BatchNorms."""

    def __init__(self, inp: int, planes: int, stride: int, **options) -> None:
        super().__init__()
        self.conv1 = GhostConv2d(inp, planes, 1, **options)
        self.conv2 = GhostConv2d(planes, planes, 3, stride=stride, **options)
        self.conv3 = GhostConv2d(planes, 4 * planes, 1, **options)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inp != 4 * planes:
            self.downsample = nn.Sequential(GhostConv2d(inp, 4 * planes, 1, stride=stride, **options))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.conv2(self.relu(self.conv1(x))))
        return self.relu(self.conv3(y) + residual)


class GhostResNet50(nn.Module):
    """ResNet-50 whose convolutions after the stem are Ghost modules without BatchNorms.

    Source: Huawei's ``ghost_resnet.py``, the code of Han et al. 2020 (GhostNet, arXiv 1911.11907), table 7. Keys are as
    there, but for parameters that its forward does not use: :func:`ghost_ops.models.convert_state_dict` drops these.

    Args:
        ratio: of the Ghost modules.
        dw_size: size of their depthwise convolutions.
        num_classes: logits; 0 returns the 2048 features before the classifier.
        in_chans: channels of the image.
        device, dtype: device and dtype of the parameters.

    Shape: N x in_chans x H x W to N x num_classes.

    Raises:
        ValueError: a negative num_classes, no channels, a ratio below 2, an even dw_size.
    """

    def __init__(
        self,
        ratio: int = 2,
        dw_size: int = 3,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(type(self).__name__, num_classes, in_chans)
        factory = {"device": device, "dtype": dtype}
        self.conv1 = nn.Conv2d(in_chans, 64, 7, 2, 3, bias=False, **factory)
        self.bn1, self.relu = nn.BatchNorm2d(64, **factory), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        stages, channels = [], 64
        for planes, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            blocks = []
            for index in range(count):
                options = {"ratio": ratio, "dw_size": dw_size, **factory}
                blocks.append(_Bottleneck(channels, planes, 1 if index else stride, **options))
                channels = 4 * planes
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes, **factory) if num_classes else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


class _BasicBlock(nn.Module):
    """CIFAR's residual block of Ghost modules; its shortcut of stride 2 drops pixels and pads channels."""

    def __init__(self, inp: int, planes: int, stride: int, ratio: int, **factory) -> None:
        super().__init__()
        self.conv1 = GhostModule(inp, planes, 3, ratio, stride=stride, **factory)
        self.conv2 = GhostModule(planes, planes, 3, ratio, relu=False, **factory)
        self.stride, self.more = stride, planes - inp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv2(self.conv1(x))
        if self.more:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more // 2))
        return F.relu(y + x)


class GhostResNet56(nn.Module):
    """ResNet-56 for CIFAR whose convolutions after the stem are Ghost modules.

    Source: Han et al. 2020 (GhostNet, arXiv 1911.11907), table 5, over ResNet-56 with shortcuts without parameters (He
    et al. 2016, arXiv 1512.03385, section 4.2, option A).

    Args:
        ratio: of the Ghost modules.
        num_classes: logits; 0 returns the 64 features before the classifier.
        in_chans: channels of the image.
        device, dtype: device and dtype of the parameters.

    Shape: N x in_chans x H x W to N x num_classes; made for 32 x 32.

    Raises:
        ValueError: a negative num_classes, no channels, a ratio below 1.
    """

    def __init__(
        self,
        ratio: int = 2,
        num_classes: int = 10,
        in_chans: int = 3,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(type(self).__name__, num_classes, in_chans)
        factory = {"device": device, "dtype": dtype}
        self.conv1 = nn.Conv2d(in_chans, 16, 3, 1, 1, bias=False, **factory)
        self.bn1 = nn.BatchNorm2d(16, **factory)
        stages, channels = [], 16
        for planes, stride in ((16, 1), (32, 2), (64, 2)):
            blocks = []
            for index in range(9):
                blocks.append(_BasicBlock(channels, planes, 1 if index else stride, ratio, **factory))
                channels = planes
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(channels, num_classes, **factory) if num_classes else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


@register_model
def ghost_resnet50(num_classes: int = 1000, in_chans: int = 3, **kwargs) -> GhostResNet50:
    """Ghost-ResNet-50 of ratio 2, untrained; the arguments are those of :class:`GhostResNet50`."""
    return GhostResNet50(num_classes=num_classes, in_chans=in_chans, **kwargs)


@register_model
def ghost_resnet56(num_classes: int = 10, in_chans: int = 3, **kwargs) -> GhostResNet56:
    """Ghost-ResNet-56 of ratio 2 for CIFAR, untrained; the arguments are those of :class:`GhostResNet56`."""
    return GhostResNet56(num_classes=num_classes, in_chans=in_chans, **kwargs)
