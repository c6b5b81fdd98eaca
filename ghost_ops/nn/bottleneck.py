"""Ghost bottlenecks: the residual block of GhostNet, two Ghost modules around an optional stride and excitation."""

from __future__ import annotations

import torch
from torch import nn

from . import _arguments
from .ghost_module import GhostModule
from .ghost_module_v2 import GhostModuleV2
from .rep_ghost_module import RepGhostModule
from .squeeze_excite import SqueezeExcite


def check_se_ratio(owner: str, se_ratio: float | None) -> None:
    if se_ratio is not None:
        expected = "None or a number of at least 0"
        _arguments.number(owner, expected, lambda value: value >= 0, se_ratio=se_ratio)


def depthwise(channels: int, size: int, stride: int, **factory) -> nn.Conv2d:
    """A depthwise convolution without bias, padded by half its size."""
    return nn.Conv2d(channels, channels, size, stride, size // 2, groups=channels, bias=False, **factory)


def shortcut(in_chs: int, out_chs: int, size: int, stride: int, relu: bool = False, **factory) -> nn.Sequential:
    """The shortcut of a Ghost bottleneck: nothing, or a depthwise convolution of the stride and a 1x1 convolution, each
    with a BatchNorm.

    Args:
        size: of the depthwise convolution.
        relu: a ReLU between the two.
    """
    if in_chs == out_chs and stride == 1:
        return nn.Sequential()
    return nn.Sequential(
        depthwise(in_chs, size, stride, **factory),
        nn.BatchNorm2d(in_chs, **factory),
        *([nn.ReLU(inplace=True)] if relu else []),
        nn.Conv2d(in_chs, out_chs, 1, bias=False, **factory),
        nn.BatchNorm2d(out_chs, **factory),
    )


class GhostBottleneck(nn.Module):
    """Ghost bottleneck in plain PyTorch: ghost1, [depthwise of stride s, BN], [SE], ghost2, plus the shortcut.

    Source: Han et al. 2020 (GhostNet, arXiv 1911.11907), section 3.2, in the structure of Huawei's and timm's nets,
    whose state_dict keys it has.

    Args:
        in_chs, mid_chs, out_chs: input, expanded and output channels.
        dw_kernel_size: odd size of the depthwise convolutions of stride and shortcut.
        stride: above 1, a depthwise convolution with BatchNorm stands between the Ghost modules.
        se_ratio: hidden units per channel of the squeeze-and-excite layer; 0 or None: no such layer.
        shortcut_relu: a ReLU after the depthwise convolution of the shortcut, as the first public code has it.
        device, dtype: of the parameters.

    Shape: N x in_chs x H x W to N x out_chs x ceil(H / stride) x ceil(W / stride).

    Raises:
        ValueError: a channel count or stride below 1, an even or non-positive kernel size, a negative se_ratio.
        TypeError: something else than an int, or than a number for se_ratio.
    """

    _ghost_module = GhostModule
    _squeeze_excite = SqueezeExcite

    def __init__(
        self,
        in_chs: int,
        mid_chs: int,
        out_chs: int,
        dw_kernel_size: int = 3,
        stride: int = 1,
        se_ratio: float | None = 0.0,
        *,
        shortcut_relu: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        owner, factory = type(self).__name__, {"device": device, "dtype": dtype}
        _arguments.positive(owner, in_chs=in_chs, mid_chs=mid_chs, out_chs=out_chs, stride=stride)
        _arguments.odd(owner, dw_kernel_size=dw_kernel_size)
        check_se_ratio(owner, se_ratio)
        self.stride = stride
        self.ghost1 = self._first_ghost_module(in_chs, mid_chs, **factory)
        self.conv_dw = depthwise(mid_chs, dw_kernel_size, stride, **factory) if stride > 1 else None
        self.bn_dw = nn.BatchNorm2d(mid_chs, **factory) if stride > 1 else None
        self.se = self._squeeze_excite(mid_chs, se_ratio, **factory) if se_ratio else None
        self.ghost2 = self._ghost_module(mid_chs, out_chs, relu=False, **factory)
        self.shortcut = shortcut(in_chs, out_chs, dw_kernel_size, stride, shortcut_relu, **factory)

    def _first_ghost_module(self, *args, **kwargs) -> nn.Module:
        return self._ghost_module(*args, **kwargs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.ghost1(x)
        if self.conv_dw is not None:
            y = self.bn_dw(self.conv_dw(y))
        if self.se is not None:
            y = self.se(y)
        return self.ghost2(y) + self.shortcut(x)


class GhostBottleneckV2(GhostBottleneck):
    """Ghost bottleneck of GhostNetV2 in plain PyTorch: :class:`GhostBottleneck` whose ghost1 has DFC attention.

    Source: Tang et al. 2022 (GhostNetV2, arXiv 2211.12905); state_dict keys as in Huawei's and timm's nets.
    """

    def _first_ghost_module(self, *args, **kwargs) -> nn.Module:
        return GhostModuleV2(*args, **kwargs)


class RepGhostBottleneck(GhostBottleneck):
    """RepGhost bottleneck in plain PyTorch: :class:`GhostBottleneck` of RepGhost modules.

    Source: Chen et al. 2022 (RepGhost, arXiv 2211.06088); state_dict keys as in timm's nets.
    """

    _ghost_module = RepGhostModule
