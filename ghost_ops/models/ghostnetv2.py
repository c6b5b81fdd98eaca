"""GhostNetV2 in the widths 1.0, 1.3 and 1.6."""

from __future__ import annotations

import torch
from torch import nn

from ..nn import GhostBottleneck, GhostBottleneckV2
from ._staged import StagedNet
from .ghostnet import STAGES
from .registry import register_model

PLAIN = 2  # bottlenecks without attention, the first ones


class GhostNetV2(StagedNet):
    """GhostNetV2: GhostNet v1 with DFC attention in all bottlenecks but the first two.

    Source: Tang et al. 2022 (GhostNetV2, arXiv 2211.12905), as timm's ``ghostnetv2_100/130/160`` and Huawei's
    ``ghostnetv2`` have it; state_dicts of these load with ``strict=True``.

    Args:
        width: multiplier of all channels but the head's 1280.
        num_classes: logits; 0 returns the 1280 features before the classifier.
        in_chans: channels of the image.
        dropout: probability, before the classifier.
        fused: whether :func:`ghost_ops.fuse` is called on the net, which takes seconds.
        device, dtype: device and dtype of the parameters.

    Shape: N x in_chans x H x W, H and W at least 33, to N x num_classes.

    Raises:
        ValueError: a width that is not positive, a negative num_classes, no channels, a dropout outside [0, 1].
    """

    def __init__(
        self,
        width: float = 1.0,
        num_classes: int = 1000,
        in_chans: int = 3,
        dropout: float = 0.2,
        *,
        fused: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = width, num_classes, in_chans, dropout
        super().__init__(STAGES, _block, *sizes, fused=fused, device=device, dtype=dtype)


def _block(index: int, *arguments, **factory) -> nn.Module:
    return (GhostBottleneck if index < PLAIN else GhostBottleneckV2)(*arguments, **factory)


@register_model
def ghostnetv2_100(num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.2, **kwargs) -> GhostNetV2:
    """GhostNetV2 1.0x (6.2 M parameters, 167 M multiply-adds), untrained; arguments as :class:`GhostNetV2`."""
    return GhostNetV2(1.0, num_classes, in_chans, dropout, **kwargs)


@register_model
def ghostnetv2_130(num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.2, **kwargs) -> GhostNetV2:
    """GhostNetV2 1.3x, untrained; the arguments are those of :class:`GhostNetV2`."""
    return GhostNetV2(1.3, num_classes, in_chans, dropout, **kwargs)


@register_model
def ghostnetv2_160(num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.2, **kwargs) -> GhostNetV2:
    """GhostNetV2 1.6x, untrained; the arguments are those of :class:`GhostNetV2`."""
    return GhostNetV2(1.6, num_classes, in_chans, dropout, **kwargs)
