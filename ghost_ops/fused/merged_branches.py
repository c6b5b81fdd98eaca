"""The branches of a sum as one convolution: reparameterisation, whosever the module is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from . import batch_norm
from .batch_norm import RUNNING
from .errors import NotNow, Unfusable
from .layers import ConvBNAct, LinearAct, conv_bn_act

if TYPE_CHECKING:
    from typing_extensions import Self


class MergedBranches(ConvBNAct):
    """A convolution that computes what the branches of a sum do over running statistics.

    Its tensors are computed of those of the branches whenever they are asked for, since no version counts every change
    of these. Its ``conv`` gives the geometry and has no values.

    Attributes:
        branches: the layers whose sum it is.
    """

    branches: tuple[ConvBNAct | LinearAct, ...]

    @classmethod
    def of(cls, layers: tuple[ConvBNAct | LinearAct, ...]) -> Self:
        conv = layers[0].conv
        like = nn.Conv2d(
            conv.in_channels, conv.out_channels, layers[0].kernel(), padding=conv.padding, groups=conv.groups,
            device="meta",
        )  # fmt: skip
        made = cls(*conv_bn_act(like, None, None)._replace(act=layers[0].act, code=layers[0].code))
        made.branches = layers
        return made

    def parts(self) -> tuple[ConvBNAct | LinearAct, ...]:
        return self.branches

    def entries(self) -> tuple[tuple[dict, str] | None, ...]:
        return tuple(entry for layer in self.branches for entry in layer.entries())

    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """As of any layer: the sum of the branches in float64, rounded to the dtype of the first one's weight.

        Raises:
            Unfusable: a BatchNorm uses the statistics of the batch, or a tensor has another shape than its layer says.
        """
        found = [layer.tensors() for layer in self.branches]
        total, bias = None, None
        for layer, (weight, own_bias, gamma, beta, mean, var, _) in zip(self.branches, found, strict=True):
            if batch_norm.statistics(layer.norm) is not RUNNING:
                raise Unfusable("a BatchNorm of one of its branches uses batch statistics in eval too")
            _check_shapes(self, layer, weight, (own_bias, gamma, beta, mean, var))
            scale = torch.rsqrt(var.double() + layer.norm.eps)
            if gamma is not None:
                scale = scale * gamma
            shift = -mean if own_bias is None else own_bias - mean
            shift = shift * scale if beta is None else shift * scale + beta
            scale = scale[:, None, None, None]
            own = self._widened(scale if weight is None else weight * scale)
            total, bias = (own, shift) if total is None else (total + own, bias + shift)
        weight, slopes = found[0][0], found[0][6]
        return total.to(weight.dtype), bias.to(weight.dtype), None, None, None, None, slopes

    def _widened(self, weight: torch.Tensor) -> torch.Tensor:
        """A kernel with zeros around it, as large as the first branch's."""
        (height, width), own = self.kernel(), weight.shape
        rows, columns = (height - own[2]) // 2, (width - own[3]) // 2
        return F.pad(weight, (columns, columns, rows, rows)) if rows or columns else weight


def _check_shapes(
    merged: MergedBranches, layer: ConvBNAct | LinearAct, weight: torch.Tensor | None, vectors: tuple
) -> None:  # fmt: skip
    conv = merged.conv
    if weight is not None and weight.shape != (conv.out_channels, conv.in_channels // conv.groups, *layer.kernel()):
        raise NotNow("the weight of one of its branches does not have its shape")
    if any(t is not None and t.shape != (conv.out_channels,) for t in vectors):
        raise NotNow("a BatchNorm of one of its branches does not have a value a channel")


def merge(layers: tuple[ConvBNAct | LinearAct, ...]) -> ConvBNAct:
    """The sum of these layers with the activation of the first: itself where it is the only one.

    Args:
        layers: convolutions of one geometry or of one pixel, and BatchNorms of the map itself, each with a BatchNorm.
            The first has the largest kernel.
    """
    return layers[0] if len(layers) == 1 else MergedBranches.of(layers)
