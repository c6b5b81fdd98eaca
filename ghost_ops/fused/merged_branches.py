"""The branches of a sum as one convolution, as a frozen net has them: reparameterisation, whosever the module is."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

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
    size, total, bias = layers[0].kernel(), torch.zeros_like(weight, dtype=torch.float64), 0.0
    for layer in layers:
        if batch_norm.statistics(layer.norm) is not RUNNING:
            raise Unfusable("a BatchNorm of one of its branches uses batch statistics in eval too")
        own, own_bias, gamma, beta, mean, var, _ = (None if t is None else t.double() for t in layer.tensors())
        scale = torch.rsqrt(var + layer.norm.eps) * (1.0 if gamma is None else gamma)
        shift = (0.0 if own_bias is None else own_bias) - mean
        own = total.new_ones(len(scale), 1, 1, 1) if own is None else own
        around = [(length - own.shape[axis]) // 2 for axis, length in ((3, size[1]), (2, size[0]))]
        total += F.pad(own * scale[:, None, None, None], [around[0]] * 2 + [around[1]] * 2)
        bias = bias + shift * scale + (0.0 if beta is None else beta)
    made = MergedConv(conv.in_channels, conv.out_channels, size, padding=conv.padding, groups=conv.groups)
    made.merged = tuple(m for layer in layers for m in layer[:2] if m is not None)
    for name, value in (("weight", total), ("bias", bias)):
        made._parameters[name] = nn.Parameter(value.to(weight.dtype), requires_grad=False)
    layer = conv_bn_act(made, None, None)
    return layer._replace(act=layers[0].act, code=layers[0].code)
