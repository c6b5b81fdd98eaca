"""``depthwise``: a depthwise convolution, padded by half its kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .cheap_concat import channel_sums, given, match


def depthwise(x, weight, bias, stride):
    padding = tuple(size // 2 for size in weight.shape[2:])
    return F.conv2d(x, match(weight, x), match(bias, x), stride, padding, groups=weight.shape[0])


def depthwise_backward(grad_out, x, weight, bias, stride, input_wanted, weight_wanted):
    """Gradients of x, weight and bias: empty where they are not wanted, or there is no bias."""
    strides, padding = [stride, stride], [size // 2 for size in weight.shape[2:]]
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad_out, x, match(weight, x), None, strides, padding, [1, 1], False, [0, 0], weight.shape[0],
        [input_wanted, weight_wanted, False],
    )  # fmt: skip
    return (
        given(grad_x, x if input_wanted else None, x),
        given(grad_weight, weight if weight_wanted else None, x),
        given(None if bias is None else channel_sums(grad_out), bias, x),
    )
