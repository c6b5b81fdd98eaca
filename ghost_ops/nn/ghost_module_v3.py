"""``GhostModuleV3``: a Ghost module whose convolutions are sums of branches in training."""

from __future__ import annotations

import math
from functools import reduce

import torch
import torch.nn.functional as F
from torch import nn

from . import _arguments
from .branches import ConvBN, merge_branches
from .ghost_module_v2 import dfc_attention

BRANCHES = 3


class GhostModuleV3(nn.Module):
    """Ghost module of ratio 2 and of branches, in plain PyTorch, until :meth:`reparameterize` merges them.

    Source: Liu et al. 2024 (GhostNetV3, arXiv 2404.11202); keys as in timm's nets, with branches and without.

    m = ceil(oup / 2) primary channels: y1 = relu(sum of three 1x1 convolutions with BatchNorms); as many cheap ones:
    y2 = relu(sum of three depthwise convolutions of y1, a depthwise 1x1 convolution of it, and y1 itself, each with a
    BatchNorm). The output is the first ``oup`` channels of concat(y1, y2), times the gate of DFC attention.

    Args:
        inp, oup: input and output channels.
        dw_size: odd size of the depthwise convolutions.
        relu: ReLU after both sums.
        attention: DFC attention, as of :class:`GhostModuleV2`.
        device, dtype: of the parameters.

    Attributes:
        is_merged: whether the branches are merged.

    Shape: N x inp x H x W to N x oup x H x W; with attention H and W are at least 2.

    Raises:
        ValueError: a channel count below 1, an even or non-positive kernel size.
        TypeError: something else than an int.
    """

    def __init__(
        self,
        inp: int,
        oup: int,
        dw_size: int = 3,
        relu: bool = True,
        attention: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        owner, factory = type(self).__name__, {"device": device, "dtype": dtype}
        _arguments.positive(owner, inp=inp, oup=oup)
        _arguments.odd(owner, dw_size=dw_size)
        self.oup, self.is_merged = oup, False
        m = math.ceil(oup / 2)
        act = lambda: nn.ReLU(inplace=True) if relu else nn.Identity()
        self.primary_rpr_conv = nn.ModuleList(ConvBN(inp, m, **factory) for _ in range(BRANCHES))
        self.primary_activation = act()
        self.cheap_rpr_skip = nn.BatchNorm2d(m, **factory)
        self.cheap_rpr_conv = nn.ModuleList(ConvBN(m, m, dw_size, groups=m, **factory) for _ in range(BRANCHES))
        self.cheap_rpr_scale = ConvBN(m, m, groups=m, **factory)
        self.cheap_activation = act()
        self.short_conv = dfc_attention(inp, oup, **factory) if attention else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.is_merged:
            y1 = self.primary_conv(x)
            y2 = self.cheap_operation(y1)
        else:
            y1 = self.primary_activation(reduce(torch.add, [branch(x) for branch in self.primary_rpr_conv]))
            y2 = self.cheap_rpr_scale(y1) + self.cheap_rpr_skip(y1)
            y2 = self.cheap_activation(reduce(torch.add, [branch(y1) for branch in self.cheap_rpr_conv], y2))
        out = torch.cat([y1, y2], dim=1)[:, : self.oup]
        if self.short_conv is None:
            return out
        gate = torch.sigmoid(self.short_conv(F.avg_pool2d(x, 2, 2)))
        return out * F.interpolate(gate, size=(out.shape[2], out.shape[3]), mode="nearest")

    def reparameterize(self) -> None:
        """Merge the branches of each sum into one convolution with bias, in place.

        The module then computes what it computed in eval. Afterwards the keys are ``primary_conv.0`` and
        ``cheap_operation.0``, and training it would train another net.

        Raises:
            ValueError: a BatchNorm has no running statistics.
        """
        if self.is_merged:
            return
        pairs = lambda branches: [(branch.conv, branch.bn1) for branch in branches]
        primary = merge_branches(pairs(self.primary_rpr_conv))
        cheap = merge_branches(pairs([*self.cheap_rpr_conv, self.cheap_rpr_scale]), self.cheap_rpr_skip)
        self.primary_conv = nn.Sequential(primary, self.primary_activation).train(self.training)
        self.cheap_operation = nn.Sequential(cheap, self.cheap_activation).train(self.training)
        for name in ("primary_rpr_conv", "cheap_rpr_conv", "cheap_rpr_scale", "cheap_rpr_skip"):
            delattr(self, name)
        self.is_merged = True
