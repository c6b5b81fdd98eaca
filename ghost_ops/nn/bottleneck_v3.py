"""``GhostBottleneckV3``: a Ghost bottleneck of branches."""

from __future__ import annotations

from functools import reduce

import torch
from torch import nn

from . import _arguments
from .bottleneck import check_se_ratio, shortcut
from .branches import ConvBN, merge_branches
from .ghost_module_v3 import BRANCHES, GhostModuleV3
from .squeeze_excite import SqueezeExcite


class GhostBottleneckV3(nn.Module):
    """Ghost bottleneck of GhostNetV3 in plain PyTorch, with branches until :meth:`reparameterize` merges them.

    Source: Liu et al. 2024 (GhostNetV3, arXiv 2404.11202); keys as in timm's nets, with branches and without.

    ghost1, [a depthwise convolution of stride s, the sum of three branches and one of a single pixel], [SE], ghost2,
    plus the shortcut.

    Args:
        in_chs, mid_chs, out_chs, dw_kernel_size, stride, se_ratio: as of :class:`GhostBottleneck`.
        attention: DFC attention in ghost1.
        device, dtype: of the parameters.

    Attributes:
        is_merged: whether the branches of the depthwise convolution are merged.

    Shape: as :class:`GhostBottleneck`.

    Raises:
        ValueError, TypeError: as :class:`GhostBottleneck`.
    """

    def __init__(
        self,
        in_chs: int,
        mid_chs: int,
        out_chs: int,
        dw_kernel_size: int = 3,
        stride: int = 1,
        se_ratio: float | None = 0.0,
        attention: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        owner, factory = type(self).__name__, {"device": device, "dtype": dtype}
        _arguments.positive(owner, in_chs=in_chs, mid_chs=mid_chs, out_chs=out_chs, stride=stride)
        _arguments.odd(owner, dw_kernel_size=dw_kernel_size)
        check_se_ratio(owner, se_ratio)
        self.stride, self.is_merged = stride, False
        self.ghost1 = GhostModuleV3(in_chs, mid_chs, attention=attention, **factory)
        if stride > 1:
            of = lambda size: ConvBN(mid_chs, mid_chs, size, stride, groups=mid_chs, **factory)
            self.dw_rpr_conv = nn.ModuleList(of(dw_kernel_size) for _ in range(BRANCHES))
            self.dw_rpr_scale = of(1)
        self.se = SqueezeExcite(mid_chs, se_ratio, **factory) if se_ratio else nn.Identity()
        self.ghost2 = GhostModuleV3(mid_chs, out_chs, relu=False, **factory)
        self.shortcut = shortcut(in_chs, out_chs, dw_kernel_size, stride, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.ghost1(x)
        if self.is_merged:
            y = self.conv_dw(y)
        elif self.stride > 1:
            y = reduce(torch.add, [branch(y) for branch in self.dw_rpr_conv], self.dw_rpr_scale(y))
        return self.ghost2(self.se(y)) + self.shortcut(x)

    def reparameterize(self) -> None:
        """Merge the branches of the depthwise convolution into one, ``conv_dw``, in place.

        Those of the Ghost modules are theirs to merge.

        Raises:
            ValueError: a BatchNorm has no running statistics.
        """
        if self.is_merged or self.stride == 1:
            return
        self.conv_dw = merge_branches([(branch.conv, branch.bn1) for branch in (*self.dw_rpr_conv, self.dw_rpr_scale)])
        del self.dw_rpr_conv, self.dw_rpr_scale
        self.is_merged = True
