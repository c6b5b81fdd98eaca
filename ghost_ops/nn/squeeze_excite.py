"""Squeeze-and-excite layers in plain PyTorch: the article's ``SELayer``, Huawei's and timm's ``SqueezeExcite``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from . import _arguments


def make_divisible(value: float, divisor: int, round_limit: float = 0.9) -> int:
    """The multiple of ``divisor`` nearest to value, at least one and not below ``round_limit`` of it (as timm)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < round_limit * value else rounded


class SELayer(nn.Module):
    """x * clamp(expand(relu(reduce(mean of x over H and W))), 0, 1).

    Source: Hu et al. 2018 (arXiv 1709.01507), section 3, with the gate of the first GhostNet nets; keys ``fc.0``,
    ``fc.2`` as there.

    Args:
        channel: channels of the map.
        reduction: channels per hidden unit; ``channel // reduction`` hidden units.
        device, dtype: of the parameters.

    Raises:
        ValueError: a channel count or reduction below 1, or a reduction that leaves no hidden unit.
        TypeError: something else than an int.
    """

    def __init__(
        self,
        channel: int,
        reduction: int = 4,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        owner, factory = type(self).__name__, {"device": device, "dtype": dtype}
        _arguments.positive(owner, channel=channel, reduction=reduction)
        if reduction > channel:
            raise ValueError(f"{owner}: reduction: expected at most the {channel} channels, got {reduction}")
        hidden = channel // reduction
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(channel, hidden, **factory), nn.ReLU(inplace=True), nn.Linear(hidden, channel, **factory)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        excitation = self.fc(self.avg_pool(x).flatten(1)).clamp(0, 1)
        return x * excitation[:, :, None, None]


class SqueezeExcite(nn.Module):
    """x * relu6(expand(relu(reduce(mean of x over H and W))) + 3) / 6, with 1x1 convolutions.

    Source: Hu et al. 2018, section 3, as in Huawei's and timm's GhostNet; keys ``conv_reduce``, ``conv_expand``.

    Args:
        channels: channels of the map.
        ratio: hidden units per channel, rounded to a multiple of 4 as there.
        device, dtype: of the parameters.

    Raises:
        ValueError: a channel count below 1, a ratio that is not positive and finite.
        TypeError: channels that are not an int, a ratio that is not a number.
    """

    def __init__(
        self,
        channels: int,
        ratio: float = 0.25,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        owner, factory = type(self).__name__, {"device": device, "dtype": dtype}
        _arguments.positive(owner, channels=channels)
        _arguments.number(owner, "a positive number", lambda value: value > 0, ratio=ratio)
        hidden = make_divisible(channels * ratio, 4)
        self.conv_reduce = nn.Conv2d(channels, hidden, 1, **factory)
        self.act1 = nn.ReLU(inplace=True)
        self.conv_expand = nn.Conv2d(hidden, channels, 1, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        excitation = self.conv_expand(self.act1(self.conv_reduce(x.mean((2, 3), keepdim=True))))
        return x * (F.relu6(excitation + 3) / 6)
