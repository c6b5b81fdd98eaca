"""``RepGhostModule``: a Ghost module that adds what others concatenate, so that its branches can be merged."""

from __future__ import annotations

import torch
from torch import nn

from . import _arguments
from .branches import merge_branches
from .ghost_module import conv_bn_act


class RepGhostModule(nn.Module):
    """RepGhost module in plain PyTorch, with branches until :meth:`reparameterize` merges them.

    Source: Chen et al. 2022 (RepGhost, arXiv 2211.06088); keys as in timm's nets, with branches and without.

    y1 = relu(bn(conv(x))); the output is relu(bn(depthwise(y1)) + bn(y1)).

    Args:
        inp, oup: input and output channels.
        kernel_size: odd size of the primary convolution, padded by half of it.
        dw_size: odd size of the depthwise convolution.
        stride: of the primary convolution.
        relu: ReLU after both.
        device, dtype: of the parameters.

    Shape: N x inp x H x W to N x oup x ceil(H / stride) x ceil(W / stride).

    Raises:
        ValueError: a channel count or stride below 1, an even or non-positive kernel size.
        TypeError: something else than an int.
    """

    def __init__(
        self,
        inp: int,
        oup: int,
        kernel_size: int = 1,
        dw_size: int = 3,
        stride: int = 1,
        relu: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        owner, factory = type(self).__name__, {"device": device, "dtype": dtype}
        _arguments.positive(owner, inp=inp, oup=oup, stride=stride)
        _arguments.odd(owner, kernel_size=kernel_size, dw_size=dw_size)
        conv = nn.Conv2d(inp, oup, kernel_size, stride, kernel_size // 2, bias=False, **factory)
        self.primary_conv = conv_bn_act(conv, relu, **factory)
        self.fusion_bn = nn.Sequential(nn.BatchNorm2d(oup, **factory))
        cheap = nn.Conv2d(oup, oup, dw_size, 1, dw_size // 2, groups=oup, bias=False, **factory)
        self.cheap_operation = nn.Sequential(cheap, nn.BatchNorm2d(oup, **factory))
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        primary = self.primary_conv(x)
        out = self.cheap_operation(primary)
        for norm in self.fusion_bn:
            out = out + norm(primary)
        return self.relu(out)

    def reparameterize(self) -> None:
        """Merge the depthwise convolution and the identity into one convolution with bias, in place.

        The module then computes what it computed in eval. Afterwards the key is ``cheap_operation``, and training it
        would train another net.

        Raises:
            ValueError: a BatchNorm has no running statistics.
        """
        if len(self.fusion_bn):
            self.cheap_operation = merge_branches([tuple(self.cheap_operation)], self.fusion_bn[0])
            self.fusion_bn = nn.Sequential().train(self.training)
