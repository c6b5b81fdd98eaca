"""The branches of a sum as one convolution, as a frozen net has them: reparameterisation, whosever the module is."""

from __future__ import annotations

import torch
from torch import nn

from ..folding import fold_sum
from . import batch_norm
from .batch_norm import RUNNING
from .errors import Unfusable
from .layers import ConvBNAct, LinearAct, conv_bn_act


class MergedConv(nn.Conv2d):
    """A convolution that computes what the branches of a sum do over running statistics.

    Attributes:
        merged: the modules whose tensors it was made of, which are not its children.
    """

    merged: tuple[nn.Module, ...] = ()


@torch.no_grad()
def merge(layers: tuple[ConvBNAct | LinearAct, ...]) -> ConvBNAct:
    """The sum of these layers, in float64, with the activation of the first. Its values are those of now.

    Args:
        layers: convolutions of one geometry or of one pixel, and BatchNorms of the map itself, at least one a
            convolution, each with a BatchNorm.

    Raises:
        Unfusable: a BatchNorm uses the statistics of the batch.
    """
    conv, (weight, *_) = layers[0].conv, layers[0].tensors()
    if any(batch_norm.statistics(layer.norm) is not RUNNING for layer in layers):
        raise Unfusable("a BatchNorm of one of its branches uses batch statistics in eval too")
    # the last of a layer's tensors is its activation's
    total, bias = fold_sum(((*layer.tensors()[:6], layer.norm.eps) for layer in layers), weight.shape)
    made = MergedConv(conv.in_channels, conv.out_channels, layers[0].kernel(), padding=conv.padding, groups=conv.groups)
    made.merged = tuple(m for layer in layers for m in layer[:2] if m is not None)
    for name, value in (("weight", total), ("bias", bias)):
        made._parameters[name] = nn.Parameter(value.to(weight.dtype), requires_grad=False)
    layer = conv_bn_act(made, None, None)
    return layer._replace(act=layers[0].act, code=layers[0].code)
