"""GhostNet v1 in the widths 0.5, 1.0 and 1.3."""

from __future__ import annotations

import torch
from torch import nn

from ..fused import FusedGhostBottleneck
from ..nn import GhostBottleneck
from ..nn.squeeze_excite import make_divisible

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
HEAD = 1280


class _ConvBnAct(nn.Module):
    """1x1 convolution, BatchNorm, ReLU: the last stage, with its keys as in timm's and Huawei's nets."""

    def __init__(self, in_chs: int, out_chs: int, **factory) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chs, out_chs, 1, bias=False, **factory)
        self.bn1 = nn.BatchNorm2d(out_chs, **factory)
        self.act1 = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act1(self.bn1(self.conv(x)))


class GhostNet(nn.Module):
    """GhostNet v1.

    Source: Han et al. 2020 (GhostNet, arXiv 1911.11907), table 1, as timm's ``ghostnet_050/100/130`` and Huawei's
    ``ghostnet`` have it: every channel count times ``width`` is rounded to a multiple of 4. A state_dict of any of
    the three loads into the others with ``strict=True``: timm took structure, names and weights over from Huawei's
    repository. (The first public code, ``iamhankai/ghostnet.pytorch``, has other names and another structure.)

    Args:
        width: multiplier of all channels but the head's 1280.
        num_classes: logits; 0 returns the 1280 features before the classifier.
        in_chans: channels of the image.
        dropout: probability, before the classifier.
        fused: made of :class:`ghost_ops.fused.FusedGhostBottleneck`; the same parameters, keys and results.
        device, dtype: device and dtype of the parameters.

    Shape: N x in_chans x H x W, any floating dtype, NCHW or channels_last, to N x num_classes.

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
        super().__init__()
        if not width > 0:
            raise ValueError(f"GhostNet: width: expected a positive number, got {width!r}")
        if num_classes < 0:
            raise ValueError(f"GhostNet: num_classes: expected at least 0, got {num_classes!r}")
        if in_chans < 1:
            raise ValueError(f"GhostNet: in_chans: expected at least 1, got {in_chans!r}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"GhostNet: dropout: expected a probability, got {dropout!r}")
        factory = {"device": device, "dtype": dtype}
        block = FusedGhostBottleneck if fused else GhostBottleneck

        channels = make_divisible(16 * width, 4)
        self.conv_stem = nn.Conv2d(in_chans, channels, 3, 2, 1, bias=False, **factory)
        self.bn1 = nn.BatchNorm2d(channels, **factory)
        self.act1 = nn.ReLU(inplace=True)

        stages = []
        for stage in STAGES:
            blocks = []
            for kernel, expansion, out, se_ratio, stride in stage:
                mid_chs, out_chs = make_divisible(expansion * width, 4), make_divisible(out * width, 4)
                blocks.append(block(channels, mid_chs, out_chs, kernel, stride, se_ratio, **factory))
                channels = out_chs
            stages.append(nn.Sequential(*blocks))
        stages.append(nn.Sequential(_ConvBnAct(channels, mid_chs, **factory)))
        self.blocks = nn.Sequential(*stages)

        self.conv_head = nn.Conv2d(mid_chs, HEAD, 1, **factory)
        self.act2 = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(HEAD, num_classes, **factory) if num_classes else nn.Identity()

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """The last feature map: N x C x ceil(H / 32) x ceil(W / 32), C being 960 times the width."""
        return self.blocks(self.act1(self.bn1(self.conv_stem(x))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.forward_features(x).mean((2, 3), keepdim=True)
        return self.classifier(self.dropout(self.act2(self.conv_head(x)).flatten(1)))


def ghostnet_050(num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.2, **kwargs) -> GhostNet:
    """GhostNet 0.5x, untrained; the arguments are those of :class:`GhostNet`."""
    return GhostNet(0.5, num_classes, in_chans, dropout, **kwargs)


def ghostnet_100(num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.2, **kwargs) -> GhostNet:
    """GhostNet 1.0x (5.2 M parameters, 141 M multiply-adds at 224 x 224), untrained; arguments as :class:`GhostNet`."""
    return GhostNet(1.0, num_classes, in_chans, dropout, **kwargs)


def ghostnet_130(num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.2, **kwargs) -> GhostNet:
    """GhostNet 1.3x, untrained; the arguments are those of :class:`GhostNet`."""
    return GhostNet(1.3, num_classes, in_chans, dropout, **kwargs)
