"""GhostNetV3 in the widths 0.5, 1.0, 1.3 and 1.6, in the form in which it is trained."""

from __future__ import annotations

import torch
from torch import nn

from ..nn import GhostBottleneckV3
from ..nn.branches import reparameterize_children
from ._staged import StagedNet
from .ghostnet import STAGES
from .ghostnetv2 import PLAIN
from .registry import register_model


class GhostNetV3(StagedNet):
    """GhostNetV3: GhostNetV2 whose convolutions are sums of branches, until :meth:`reparameterize` merges them.

    Source: Liu et al. 2024 (GhostNetV3, arXiv 2404.11202), as timm's ``ghostnetv3_050/100/130/160`` have it.
    State_dicts of these load with ``strict=True``, before ``reparameterize`` those of nets with branches, afterwards
    those of nets that timm's ``reparameterize_model`` has merged. Huawei's are converted by
    :func:`ghost_ops.models.convert_state_dict`.

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

    def reparameterize(self) -> None:
        """Merge the branches of every sum into one convolution with bias, in place: the deployed form.

        The net then computes what it computed in eval, with fewer parameters; it is not meant to be trained on. timm's
        ``reparameterize_model`` does the same to a copy. ``ghost_ops.freeze`` merges without it.
        """
        reparameterize_children(self)


def _block(index: int, *arguments, **factory) -> nn.Module:
    return GhostBottleneckV3(*arguments, attention=index >= PLAIN, **factory)


@register_model
def ghostnetv3_050(num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.2, **kwargs) -> GhostNetV3:
    """GhostNetV3 0.5x, untrained, in training form; the arguments are those of :class:`GhostNetV3`."""
    return GhostNetV3(0.5, num_classes, in_chans, dropout, **kwargs)


@register_model
def ghostnetv3_100(num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.2, **kwargs) -> GhostNetV3:
    """GhostNetV3 1.0x, untrained, in training form; the arguments are those of :class:`GhostNetV3`."""
    return GhostNetV3(1.0, num_classes, in_chans, dropout, **kwargs)


@register_model
def ghostnetv3_130(num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.2, **kwargs) -> GhostNetV3:
    """GhostNetV3 1.3x, untrained, in training form; the arguments are those of :class:`GhostNetV3`."""
    return GhostNetV3(1.3, num_classes, in_chans, dropout, **kwargs)


@register_model
def ghostnetv3_160(num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.2, **kwargs) -> GhostNetV3:
    """GhostNetV3 1.6x, untrained, in training form; the arguments are those of :class:`GhostNetV3`."""
    return GhostNetV3(1.6, num_classes, in_chans, dropout, **kwargs)
