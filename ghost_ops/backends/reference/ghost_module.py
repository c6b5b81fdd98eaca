"""``ghost_module``: primary 1x1 convolution, cheap operation and concatenation in one pass (GhostNet, section 3.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ...activations import activate, activate_backward
from ...folding import fold
from .cheap_concat import channel_sums, cheap_concat, cheap_concat_backward, depthwise_backward, finish, given, match


def _scaled(x, input_scale):
    return x if input_scale is None else x * input_scale[:, :, None, None]


def ghost_module(
    x, primary_weight, primary_bias, cheap_weight, cheap_bias, input_scale, residual, act_weight, cheap_act_weight,
    out_channels, act, cheap_act, act_slope, cheap_act_slope, return_squeeze,
):  # fmt: skip
    z = F.conv2d(_scaled(x, input_scale), match(primary_weight, x), match(primary_bias, x))
    if cheap_weight is None:
        return finish(activate(z, act, act_slope, act_weight), out_channels, residual, return_squeeze)
    return cheap_concat(
        z, cheap_weight, cheap_bias, residual, act_weight, cheap_act_weight, out_channels, act, cheap_act, act_slope,
        cheap_act_slope, return_squeeze,
    )  # fmt: skip


def pointwise_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, sums: torch.dtype | None = None
):  # fmt: skip
    """Gradients of x, weight and bias of a 1x1 convolution; the bias's is added as in ``channel_sums``."""
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, False]
    )
    return grad_x, grad_weight, channel_sums(grad, sums)


def ghost_module_backward(
    grad_out, x, primary_weight, primary_bias, cheap_weight, cheap_bias, input_scale, act_weight, cheap_act_weight,
    out_channels, act, cheap_act, act_slope, cheap_act_slope, sums=None, of_depthwise=depthwise_backward,
):  # fmt: skip
    """Gradients of x, the four parameters, input_scale and the two PReLU weights (empty where there is none).

    ``sums`` and ``of_depthwise`` are those of ``cheap_concat_backward``.
    """
    xs, weight = _scaled(x, input_scale), match(primary_weight, x)
    z = F.conv2d(xs, weight, match(primary_bias, x))
    if cheap_weight is None:
        grad_z, grad_act = activate_backward(grad_out, z, act, act_slope, act_weight, sums)
        grad_act = given(grad_act, act_weight, x)
        grad_cheap = grad_cheap_bias = grad_cheap_act = x.new_empty(0)
    else:
        grad_z, grad_cheap, grad_cheap_bias, grad_act, grad_cheap_act = cheap_concat_backward(
            grad_out, z, cheap_weight, cheap_bias, act_weight, cheap_act_weight, out_channels, act, cheap_act,
            act_slope, cheap_act_slope, sums, of_depthwise,
        )  # fmt: skip
    grad_x, grad_weight, grad_bias = pointwise_backward(grad_z, xs, weight, sums)
    grad_scale = x.new_empty(0) if input_scale is None else (grad_x * x).sum((2, 3), dtype=sums).to(input_scale.dtype)
    return (
        _scaled(grad_x, input_scale),
        grad_weight.to(primary_weight.dtype),
        given(grad_bias, primary_bias, x),
        grad_cheap,
        grad_cheap_bias,
        grad_scale,
        grad_act,
        grad_cheap_act,
    )


def ghost_module_eval(
    x, primary_weight, primary_bias, primary_gamma, primary_beta, primary_mean, primary_var, cheap_weight, cheap_bias,
    cheap_gamma, cheap_beta, cheap_mean, cheap_var, input_scale, residual, act_weight, cheap_act_weight, out_channels,
    act, cheap_act, act_slope, cheap_act_slope, primary_eps, cheap_eps, return_squeeze,
):  # fmt: skip
    """``ghost_module`` of a module whose BatchNorms use their running statistics: they are folded on the way in."""
    weight, bias = fold(
        primary_weight, primary_bias, primary_gamma, primary_beta, primary_mean, primary_var, primary_eps
    )
    cheap, cheap_bias = fold(cheap_weight, cheap_bias, cheap_gamma, cheap_beta, cheap_mean, cheap_var, cheap_eps)
    return ghost_module(
        x, weight, bias, cheap, cheap_bias, input_scale, residual, act_weight, cheap_act_weight, out_channels, act,
        cheap_act, act_slope, cheap_act_slope, return_squeeze,
    )  # fmt: skip
