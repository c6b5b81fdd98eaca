"""``depthwise``: a depthwise convolution, such as the strided ones of a Ghost bottleneck in training."""

from __future__ import annotations

import torch

from ..backends.layout import memory_format
from ..dispatch import select
from ._library import differentiable, refuse_double_backward, register_fake
from .checks import Checks, autocast
from .fakes import fake_gradient, fake_map
from .flops import convolution_backward_flops, convolution_flops, count_flops

__all__ = ["depthwise"]


def _fake(x, weight, bias, stride):
    sides = ((x.shape[i] + 2 * (weight.shape[i] // 2) - weight.shape[i]) // stride + 1 for i in (2, 3))
    return x.new_empty(x.shape[0], x.shape[1], *sides).to(memory_format=memory_format(x))


def _fake_backward(grad_out, x, weight, bias, stride, input_wanted, weight_wanted):
    grad_x = fake_map(x) if input_wanted else x.new_empty(0)
    return grad_x, fake_gradient(weight if weight_wanted else None, x), fake_gradient(bias, x)


@count_flops("depthwise")
def _flops(x, weight, bias, stride, *, out_shape):
    return convolution_flops(x, weight, out_shape[2:])


@count_flops("depthwise_backward")
def _backward_flops(grad_out, x, weight, bias, stride, input_wanted, weight_wanted, **_):
    return convolution_backward_flops(x, weight, grad_out[2:], (input_wanted, weight_wanted))


register_fake("depthwise", _fake)
register_fake("depthwise_backward", _fake_backward)
_gradients = refuse_double_backward("depthwise_backward")


def _setup(ctx, inputs, output):
    x, weight, bias, ctx.stride = inputs
    ctx.save_for_backward(x, weight, bias)


def _backward(ctx, grad_out):
    x, weight, bias = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    bias = bias if wanted[2] else None
    grads = _gradients(grad_out, x, weight, bias, ctx.stride, wanted[0], wanted[1])
    return *(g if w else None for g, w in zip(grads, wanted)), None


call_depthwise = differentiable("depthwise", _setup, _backward)  # (decision, x, weight, bias, stride), checked


def depthwise(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, stride: int = 1
) -> torch.Tensor:
    """Depthwise convolution padded by half its kernel: one filter for each channel.

    It computes ``F.conv2d(x, weight, bias, stride, padding=K // 2, groups=C)``, in x's memory format.

    Args:
        x: N x C x H x W, any floating dtype, NCHW or channels_last.
        weight: C x 1 x K x K, in x's dtype, or float32 beside a half-precision x; K of 1, 3, 5 and 7 have kernels.
        bias: C, or None.
        stride: step of both axes in pixels, at least 1.

    Returns:
        N x C x H' x W' in x's dtype, with H' = (H + 2 (K // 2) - K) // stride + 1, and W' likewise.

    Raises:
        ValueError: a shape or size that does not fit, naming the argument.
        TypeError: a dtype mix, or something that is not a tensor or int, naming the argument.
    """
    (x,) = autocast(x)
    check = Checks("depthwise")
    check.map("x", x)
    kernel = check.depthwise(weight, x)
    check.optional("bias", bias, (x.shape[1],), x)
    check.stride(stride)
    return call_depthwise(select("depthwise", x, kernel), x, weight, bias, stride)
