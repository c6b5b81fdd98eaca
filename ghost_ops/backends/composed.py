"""Backwards on the CPU composed of PyTorch's operators and native kernels: the reference's formulas with native
gradients of the depthwise convolutions.

Sums over pixels are in double, as in PyTorch's BatchNorm: where gradients nearly cancel, the backward of PyTorch's
convolution loses the rest of a bias's gradient.
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
