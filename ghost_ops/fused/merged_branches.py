"""The branches of a sum as one convolution: reparameterisation, whosever the module is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ..folding import fold_sum
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
        weights, biases, *vectors, slopes = zip(*found, strict=True)
        _check(self, weights, biases, vectors)
        first = weights[0]
        total, bias = fold_sum([(*t[:6], layer.norm.eps) for t, layer in zip(found, self.branches, strict=True)])
        return total.to(first.dtype), bias.to(first.dtype), None, None, None, None, slopes[0]


def _check(merged: MergedBranches, weights: tuple, biases: tuple, vectors: list[tuple]) -> None:
    """Raise ``Unfusable`` where the sum is not to be computed, or PyTorch would refuse it."""
    conv, norms = merged.conv, [layer.norm for layer in merged.branches]
    if any(batch_norm.statistics(norm) is not RUNNING for norm in norms):
        raise Unfusable("a BatchNorm of one of its branches uses batch statistics in eval too")
    if any(norm.eps != norms[0].eps for norm in norms):
        raise NotNow("the BatchNorms of its branches add different eps")
    if any(bias is not None for bias in biases):
        raise NotNow("one of its convolutions has a bias beside its BatchNorm")
    if any((t is None) != (of[0] is None) for of in vectors for t in of):
        raise NotNow("some BatchNorms of its branches have weights and others have none")
    inputs = conv.in_channels // conv.groups
    for layer, weight in zip(merged.branches, weights, strict=True):
        if weight is not None and weight.shape != (conv.out_channels, inputs, *layer.kernel()):
            raise NotNow("the weight of one of its branches does not have its shape")
    if any(t is not None and t.shape != (conv.out_channels,) for of in vectors for t in of):
        raise NotNow("a BatchNorm of one of its branches does not have a value a channel")


def merge(layers: tuple[ConvBNAct | LinearAct, ...]) -> ConvBNAct:
    """The sum of these layers with the activation of the first: itself where it is the only one.

    Args:
        layers: convolutions of the first one's geometry; then, where these are depthwise, some of one pixel and
            BatchNorms of the map itself; each with a BatchNorm of the same eps, with weights or without, and no bias.
    """
    return layers[0] if len(layers) == 1 else MergedBranches.of(layers)
