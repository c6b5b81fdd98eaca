"""Sums of convolutions of the same input, each with its BatchNorm, and the one convolution that computes a sum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..folding import fold_sum


class ConvBN(nn.Module):
    """A convolution without bias, padded by half its kernel, and a BatchNorm: children ``conv`` and ``bn1``, as timm's.

    Args:
        in_chs, out_chs: input and output channels.
        kernel_size: odd size of the kernel.
        stride, groups: of the convolution.
        device, dtype: of the parameters.
    """

    def __init__(
        self, in_chs: int, out_chs: int, kernel_size: int = 1, stride: int = 1, groups: int = 1, **factory
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_chs, out_chs, kernel_size, stride, padding, groups=groups, bias=False, **factory)
        self.bn1 = nn.BatchNorm2d(out_chs, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn1(self.conv(x))


@torch.no_grad()
def merge_branches(
    branches: Sequence[tuple[nn.Conv2d, nn.BatchNorm2d]], identity: nn.BatchNorm2d | None = None
) -> nn.Conv2d:
    """The convolution with bias that computes, over running statistics, the sum of the branches.

    Source: Ding et al. 2021 (RepVGG, arXiv 2101.03697), section 3.3. The sums are made in float64 and rounded once.

    Args:
        branches: convolutions of one stride and as many groups, each with the BatchNorm after it. The first has the
            largest kernel.
        identity: a BatchNorm of the input itself; the convolutions are then depthwise.

    Raises:
        ValueError: a BatchNorm has no running statistics.
    """
    conv = branches[0][0]
    pairs = [*((c.weight, c.bias, norm) for c, norm in branches), *([(None, None, identity)] if identity else [])]
    if any(norm.running_mean is None for *_, norm in pairs):
        raise ValueError("reparameterize: a BatchNorm of one of the branches has no running statistics")
    folded = ((w, b, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps) for w, b, norm in pairs)
    weight, bias = fold_sum(folded, conv.weight.shape)
    made = nn.Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, groups=conv.groups,
        device=conv.weight.device, dtype=conv.weight.dtype,
    )  # fmt: skip
    made.weight.copy_(weight)
    made.bias.copy_(bias)
    return made.train(conv.training)


def reparameterize_children(net: nn.Module) -> None:
    """Call the ``reparameterize`` of every module inside that has one."""
    for module in list(net.modules()):
        if module is not net and hasattr(module, "reparameterize"):
            module.reparameterize()
