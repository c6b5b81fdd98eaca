"""GhostNet v1 in the widths 0.5, 1.0 and 1.3."""

from __future__ import annotations

import torch

from ..fused import FusedGhostBottleneck
from ..moved import hand_on
from ..nn import GhostBottleneck
from ._staged import StagedNet
from .registry import register_model

# Han et al. 2020, table 1, stage by stage: depthwise kernel, expansion, output channels, SE ratio, stride.
STAGES = (
    ((3, 16, 16, 0.0, 1),),
    ((3, 48, 24, 0.0, 2),),
    ((3, 72, 24, 0.0, 1),),
    ((5, 72, 40, 0.25, 2),),
    ((5, 120, 40, 0.25, 1),),
    ((3, 240, 80, 0.0, 2),),
    (
        (3, 200, 80, 0.0, 1),
        (3, 184, 80, 0.0, 1),
        (3, 184, 80, 0.0, 1),
        (3, 480, 112, 0.25, 1),
        (3, 672, 112, 0.25, 1),
    ),
    ((5, 672, 160, 0.25, 2),),
    ((5, 960, 160, 0.0, 1), (5, 960, 160, 0.25, 1), (5, 960, 160, 0.0, 1), (5, 960, 160, 0.25, 1)),
)


__getattr__ = hand_on(__name__, ("_ConvBnAct",), "ghost_ops.models._staged")  # pickles of nets name it


class GhostNet(StagedNet):
    """GhostNet v1.

    Source: Han et al. 2020 (GhostNet, arXiv 1911.11907), table 1, as timm's ``ghostnet_050/100/130`` and Huawei's
    ``ghostnet`` have it: every channel count times ``width`` is rounded to a multiple of 4. A state_dict of any of
    the three loads into the others with ``strict=True``: timm took structure, names and weights over from Huawei's
    repository. Weights of the first public codes are converted by :func:`ghost_ops.models.convert_state_dict`.

    Args:
        width: multiplier of all channels but the head's 1280.
        num_classes: logits; 0 returns the 1280 features before the classifier.
        in_chans: channels of the image.
        dropout: probability, before the classifier.
        shortcut_relu: a ReLU after the depthwise convolution of each shortcut, as ``d-li14/ghostnet.pytorch`` has it.
        fused: made of :class:`ghost_ops.fused.FusedGhostBottleneck`; the same parameters, keys and results.
        device, dtype: device and dtype of the parameters.

    Shape: N x in_chans x H x W, any floating dtype, NCHW or channels_last, to N x num_classes.

    Raises:
        ValueError: a width that is not positive, a negative num_classes, no channels, a dropout outside [0, 1].
        TypeError: a width or dropout that is not a number, a num_classes or in_chans that is not an int.
    """

    def __init__(
        self,
        width: float = 1.0,
        num_classes: int = 1000,
        in_chans: int = 3,
        dropout: float = 0.2,
        *,
        shortcut_relu: bool = False,
        fused: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        kind = FusedGhostBottleneck if fused else GhostBottleneck

        def block(index: int, *arguments, **factory) -> GhostBottleneck:
            return kind(*arguments, shortcut_relu=shortcut_relu, **factory)

        super().__init__(STAGES, block, width, num_classes, in_chans, dropout, device=device, dtype=dtype)


@register_model
def ghostnet_050(num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.2, **kwargs) -> GhostNet:
    """GhostNet 0.5x (2.6 M parameters, 42 M multiply-adds at 224 x 224), untrained; arguments as :class:`GhostNet`."""
    return GhostNet(0.5, num_classes, in_chans, dropout, **kwargs)


@register_model
def ghostnet_100(num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.2, **kwargs) -> GhostNet:
    """GhostNet 1.0x (5.2 M parameters, 141 M multiply-adds at 224 x 224), untrained; arguments as :class:`GhostNet`."""
    return GhostNet(1.0, num_classes, in_chans, dropout, **kwargs)


@register_model
def ghostnet_130(num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.2, **kwargs) -> GhostNet:
    """GhostNet 1.3x (7.3 M parameters, 226 M multiply-adds at 224 x 224), untrained; arguments as :class:`GhostNet`."""
    return GhostNet(1.3, num_classes, in_chans, dropout, **kwargs)


@register_model
def ghostnet_100_d_li14(num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.2, **kwargs) -> GhostNet:
    """GhostNet 1.0x with the shortcuts of ``d-li14/ghostnet.pytorch``, for its weights; arguments as :class:`GhostNet`.

    Its SE gates, hidden units and head are those of ``ghostnet_100``: ``convert_state_dict`` changes the weights so.
    """
    return GhostNet(1.0, num_classes, in_chans, dropout, **{"shortcut_relu": True, **kwargs})
