"""VGG-16 for CIFAR whose convolutions are Ghost modules."""

from __future__ import annotations

import torch
from torch import nn

from ..nn import GhostModule
from ._arguments import check_sizes
from .registry import register_model

LAYERS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # 0: max pooling


class GhostVGG16(nn.Module):
    """VGG-16 for CIFAR, each convolution with its BatchNorm and ReLU a Ghost module.

    Source: Han et al. 2020 (GhostNet, arXiv 1911.11907), table 5: 7.7 M parameters and 158 M multiply-adds at ratio 2.
    The VGG-16 is that of Li et al. 2017 (arXiv 1608.08710), with two linear layers: 15.0 M and 313 M.

    Args:
        ratio: of the Ghost modules.
        num_classes: logits; 0 returns the 512 features before the last layer.
        in_chans: channels of the image.
        device, dtype: device and dtype of the parameters.

    Shape: N x in_chans x H x W, H and W at least 32, to N x num_classes; made for 32 x 32.

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
        layers, channels = [], in_chans
        for out in LAYERS:
            layers.append(GhostModule(channels, out, 3, ratio, **factory) if out else nn.MaxPool2d(2, 2))
            channels = out or channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(channels, channels, **factory),
            nn.BatchNorm1d(channels, **factory),
            nn.ReLU(inplace=True),
            nn.Linear(channels, num_classes, **factory) if num_classes else nn.Identity(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


@register_model
def ghost_vgg16(num_classes: int = 10, in_chans: int = 3, **kwargs) -> GhostVGG16:
    """Ghost-VGG-16 of ratio 2 for CIFAR, untrained; the arguments are those of :class:`GhostVGG16`."""
    return GhostVGG16(num_classes=num_classes, in_chans=in_chans, **kwargs)
