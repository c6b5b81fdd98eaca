"""Backwards on the CPU that are made of PyTorch's operators and native kernels: the reference's formulas with other
gradients of the convolutions.

Sums over pixels are in double, as those of PyTorch's BatchNorm are: where gradients nearly cancel, a convolution's
backward of PyTorch loses what is left of a bias's.
"""

from __future__ import annotations

import functools

import torch

from . import reference
from .reference.cheap_concat import depthwise_backward


def _depthwise(grad: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, sums: torch.dtype):
    if y.shape[1] != weight.shape[0]:
        return depthwise_backward(grad, y, weight, sums)
    bias = weight.new_empty(weight.shape[0])  # which no gradient depends on
    return torch.ops.ghost_ops.depthwise_backward(grad, y, weight, bias, 1, True, True)


OPERATORS = {
    name: functools.partial(getattr(reference, name), sums=torch.float64, of_depthwise=_depthwise)
    for name in ("cheap_concat_backward", "ghost_module_backward")
}
