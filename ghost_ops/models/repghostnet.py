"""RepGhostNet in timm's eight widths, in the form in which it is trained."""

from __future__ import annotations

import torch
from torch import nn

from ..nn import RepGhostBottleneck
from ..nn.branches import reparameterize_children
from ._staged import StagedNet
from .registry import register_model

# Stage by stage: depthwise kernel, expansion, output channels, SE ratio, stride. A RepGhost module adds what a Ghost
# module concatenates, so that half the expansion does.
STAGES = (
    ((3, 8, 16, 0.0, 1),),
    ((3, 24, 24, 0.0, 2),),
    ((3, 36, 24, 0.0, 1),),
    ((5, 36, 40, 0.25, 2),),
    ((5, 60, 40, 0.25, 1),),
    ((3, 120, 80, 0.0, 2),),
    ((3, 100, 80, 0.0, 1), (3, 120, 80, 0.0, 1), (3, 120, 80, 0.0, 1), (3, 240, 112, 0.25, 1), (3, 336, 112, 0.25, 1)),
    ((5, 336, 160, 0.25, 2),),
    ((5, 480, 160, 0.0, 1), (5, 480, 160, 0.25, 1), (5, 480, 160, 0.0, 1), (5, 480, 160, 0.25, 1)),
)


class RepGhostNet(StagedNet):
    """RepGhostNet, with branches until :meth:`reparameterize` merges them.

    Source: Chen et al. 2022 (RepGhost, arXiv 2211.06088), as timm's ``repghostnet_*`` have it. State_dicts of these
    load with ``strict=True``, before ``reparameterize`` those of nets with branches, afterwards those of nets that
    timm's ``reparameterize_model`` has merged.

    Args:
        width: multiplier of all channels but the head's 1280.
        num_classes: logits; 0 returns the 1280 features before the classifier.
        in_chans: channels of the image.
        dropout: probability, before the classifier.
        fused: whether :func:`ghost_ops.fuse` is called on the net, which takes seconds.
        device, dtype: device and dtype of the parameters.

    Shape: N x in_chans x H x W to N x num_classes.

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
        super().__init__(STAGES, _block, *sizes, last=2, fused=fused, device=device, dtype=dtype)

    def reparameterize(self) -> None:
        """Merge the branches of every module into one convolution with bias, in place: the deployed form.

        The net then computes what it computed in eval; it is not meant to be trained on. timm's
        ``reparameterize_model`` does the same to a copy. ``ghost_ops.freeze`` merges without it.
        """
        reparameterize_children(self)


def _block(index: int, *arguments, **factory) -> nn.Module:
    return RepGhostBottleneck(*arguments, **factory)


@register_model
def repghostnet_050(num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.2, **kwargs) -> RepGhostNet:
    """RepGhostNet 0.5x, untrained, with branches; the arguments are those of :class:`RepGhostNet`."""
    return RepGhostNet(0.5, num_classes, in_chans, dropout, **kwargs)


@register_model
def repghostnet_058(num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.2, **kwargs) -> RepGhostNet:
    """RepGhostNet 0.58x, untrained, with branches; the arguments are those of :class:`RepGhostNet`."""
    return RepGhostNet(0.58, num_classes, in_chans, dropout, **kwargs)


@register_model
def repghostnet_080(num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.2, **kwargs) -> RepGhostNet:
    """RepGhostNet 0.8x, untrained, with branches; the arguments are those of :class:`RepGhostNet`."""
    return RepGhostNet(0.8, num_classes, in_chans, dropout, **kwargs)


@register_model
def repghostnet_100(num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.2, **kwargs) -> RepGhostNet:
    """RepGhostNet 1.0x, untrained, with branches; the arguments are those of :class:`RepGhostNet`."""
    return RepGhostNet(1.0, num_classes, in_chans, dropout, **kwargs)


@register_model
def repghostnet_111(num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.2, **kwargs) -> RepGhostNet:
    """RepGhostNet 1.11x, untrained, with branches; the arguments are those of :class:`RepGhostNet`."""
    return RepGhostNet(1.11, num_classes, in_chans, dropout, **kwargs)


@register_model
def repghostnet_130(num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.2, **kwargs) -> RepGhostNet:
    """RepGhostNet 1.3x, untrained, with branches; the arguments are those of :class:`RepGhostNet`."""
    return RepGhostNet(1.3, num_classes, in_chans, dropout, **kwargs)


@register_model
def repghostnet_150(num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.2, **kwargs) -> RepGhostNet:
    """RepGhostNet 1.5x, untrained, with branches; the arguments are those of :class:`RepGhostNet`."""
    return RepGhostNet(1.5, num_classes, in_chans, dropout, **kwargs)


@register_model
def repghostnet_200(num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.2, **kwargs) -> RepGhostNet:
    """RepGhostNet 2.0x, untrained, with branches; the arguments are those of :class:`RepGhostNet`."""
    return RepGhostNet(2.0, num_classes, in_chans, dropout, **kwargs)
