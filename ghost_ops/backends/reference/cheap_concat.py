"""``cheap_concat``: activation of the primary convolution's result, cheap depthwise convolution, concatenation; and
``cheap_concat_eval``, which applies BatchNorms over running statistics."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ...activations import activate, activate_backward
from ...folding import fold


def match(parameter: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor | None:
    """The parameter in x's dtype: float32 parameters may serve half-precision activations (autocast)."""
    return parameter if parameter is None or parameter.dtype == x.dtype else parameter.to(x.dtype)


def depthwise(y: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Cheap operation: depthwise convolution with multiplier s - 1 and padding d // 2."""
    return F.conv2d(y, match(weight, y), match(bias, y), padding=weight.shape[-1] // 2, groups=y.shape[1])


def finish(out, out_channels, residual, return_squeeze):
    """Slice, residual and squeeze: what every single-pass operator ends with."""
    out = out[:, :out_channels]
    if residual is not None:
        out = out + residual
    return out, out.mean((2, 3)) if return_squeeze else out.new_empty(0)


def cheap_concat(
    z, cheap_weight, cheap_bias, residual, act_weight, cheap_act_weight, out_channels, act, cheap_act, act_slope,
    cheap_act_slope, return_squeeze,
):  # fmt: skip
    y1 = activate(z, act, act_slope, act_weight)
    y2 = activate(depthwise(y1, cheap_weight, cheap_bias), cheap_act, cheap_act_slope, cheap_act_weight)
    return finish(torch.cat([y1, y2], 1), out_channels, residual, return_squeeze)


def cheap_concat_eval(
    z, primary_bias, primary_gamma, primary_beta, primary_mean, primary_var, cheap_weight, cheap_bias, cheap_gamma,
    cheap_beta, cheap_mean, cheap_var, residual, act_weight, cheap_act_weight, out_channels, act, cheap_act, act_slope,
    cheap_act_slope, primary_eps, cheap_eps, return_squeeze,
):  # fmt: skip
    """``cheap_concat`` of a module whose BatchNorms use their running statistics, or which has none."""
    dtype = z.dtype
    if primary_mean is not None:
        one = primary_mean.new_ones(z.shape[1], 1, 1, 1)
        scale, primary_bias = fold(
            one, primary_bias, primary_gamma, primary_beta, primary_mean, primary_var, primary_eps
        )
        z = z * scale.view(1, -1, 1, 1)
    if primary_bias is not None:
        z = z + primary_bias[:, None, None]
    if cheap_mean is not None:
        cheap_weight, cheap_bias = fold(
            cheap_weight, cheap_bias, cheap_gamma, cheap_beta, cheap_mean, cheap_var, cheap_eps
        )
    return cheap_concat(
        z.to(dtype), cheap_weight, cheap_bias, residual, act_weight, cheap_act_weight, out_channels, act, cheap_act,
        act_slope, cheap_act_slope, return_squeeze,
    )  # fmt: skip


def channel_sums(grad: torch.Tensor, sums: torch.dtype | None = None) -> torch.Tensor:
    """The sum of each channel, the gradient of a bias; added in the dtype ``sums``, or in the gradient's.

    ``convolution_backward`` adds pixel after pixel in float32, and loses what is left where gradients nearly cancel;
    ``sum`` adds sums of short runs.
    """
    return grad.sum((0, 2, 3), dtype=sums).to(grad.dtype)


def depthwise_backward(
    grad: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, sums: torch.dtype | None = None
):  # fmt: skip
    """Gradients of y, weight and bias of ``depthwise``; the bias's is added as in ``channel_sums``."""
    pad = weight.shape[-1] // 2
    grad_y, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, y, weight, None, [1, 1], [pad, pad], [1, 1], False, [0, 0], y.shape[1], [True, True, False]
    )
    return grad_y, grad_weight, channel_sums(grad, sums)


def cheap_concat_backward(
    grad_out, z, cheap_weight, cheap_bias, act_weight, cheap_act_weight, out_channels, act, cheap_act, act_slope,
    cheap_act_slope, sums=None, of_depthwise=depthwise_backward,
):  # fmt: skip
    """Gradients of z, cheap_weight, cheap_bias, act_weight, cheap_act_weight (empty where there is none).

    Sums over pixels are added in the dtype ``sums``, or in z's; ``of_depthwise`` is the convolution's backward.
    """
    m = z.shape[1]
    y1 = activate(z, act, act_slope, act_weight)
    weight = match(cheap_weight, z)
    z2 = depthwise(y1, weight, cheap_bias)
    grad_y2 = F.pad(grad_out[:, m:], (0, 0, 0, 0, 0, m + weight.shape[0] - out_channels))
    grad_z2, grad_cheap_act = activate_backward(grad_y2, z2, cheap_act, cheap_act_slope, cheap_act_weight, sums)
    grad_y1, grad_weight, grad_bias = of_depthwise(grad_z2, y1, weight, sums)
    grad_z, grad_act = activate_backward(grad_y1 + grad_out[:, :m], z, act, act_slope, act_weight, sums)
    return (
        grad_z,
        grad_weight.to(cheap_weight.dtype),
        given(grad_bias, cheap_bias, z),
        given(grad_act, act_weight, z),
        given(grad_cheap_act, cheap_act_weight, z),
    )


def given(grad: torch.Tensor | None, parameter: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    """The gradient in its parameter's dtype, or an empty tensor where there is no parameter."""
    return x.new_empty(0) if parameter is None else grad.to(parameter.dtype)
