"""``ghost_module_train``: a Ghost module whose BatchNorms use batch statistics.

The statistics are outputs, so that the running ones are updated apart from the operator (docs/architecture.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ...activations import activate
from ..layout import kept_dtype
from .batch_norm import affine, channels, normalise
from .cheap_concat import depthwise, given, match
from .cheap_concat_train import tail, tail_backward
from .ghost_module import pointwise_backward


def ghost_module_train(
    x, primary_weight, primary_bias, primary_gamma, primary_beta, cheap_weight, cheap_bias, cheap_gamma, cheap_beta,
    act_weight, cheap_act_weight, out_channels, act, cheap_act, act_slope, cheap_act_slope, primary_eps, cheap_eps,
    keep_primary=False,
):  # fmt: skip
    """The output, mean and variance of z1 and z2, and z1 itself, N x H x W x m without its bias, where it is kept."""
    z1 = F.conv2d(x, match(primary_weight, x), match(primary_bias, x))
    out, *statistics = tail(
        z1, primary_bias, primary_gamma, primary_beta, cheap_weight, cheap_bias, cheap_gamma, cheap_beta, act_weight,
        cheap_act_weight, out_channels, act, cheap_act, act_slope, cheap_act_slope, primary_eps, cheap_eps,
    )  # fmt: skip
    return out, *statistics, _kept(z1, primary_bias, keep_primary)


def _kept(z1: torch.Tensor, bias: torch.Tensor | None, keep: bool) -> torch.Tensor:
    z = z1.detach().to(torch.promote_types(z1.dtype, torch.float32))
    if not keep:
        return z.new_empty(0)
    return (z if bias is None else z - channels(bias.detach())).permute(0, 2, 3, 1).to(kept_dtype(z1))


def ghost_module_train_backward(
    grad_out, x, primary_weight, primary_gamma, primary_beta, cheap_weight, cheap_gamma, cheap_beta, act_weight,
    cheap_act_weight, primary_mean, primary_var, cheap_mean, cheap_var, primary, out_channels, act, cheap_act,
    act_slope, cheap_act_slope, primary_eps, cheap_eps,
):  # fmt: skip
    """Gradients of x, primary weight, gamma, beta, cheap weight, gamma, beta, and the two PReLU weights.

    Nothing of the forward but x and the statistics is needed: z2 is computed again, and z1 where ``primary`` is None.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    xw, w1 = x.to(wide), primary_weight.to(wide)
    z1 = F.conv2d(xw, w1) if primary is None else primary.permute(0, 3, 1, 2).to(wide)
    parameters = primary_gamma, primary_beta, cheap_weight, cheap_gamma, cheap_beta, act_weight, cheap_act_weight
    grad_z1, *grads = tail_backward(
        grad_out, z1, *parameters, primary_mean, primary_var, cheap_mean, cheap_var, out_channels, act, cheap_act,
        act_slope, cheap_act_slope, primary_eps, cheap_eps,
    )  # fmt: skip
    grad_x, grad_w1, _ = pointwise_backward(grad_z1, xw, w1)
    of_parameters = (given(grad, p, x) for grad, p in zip(grads, parameters, strict=True))
    return grad_x.to(x.dtype), grad_w1.to(primary_weight.dtype), *of_parameters


def upsample(gate: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The gate at the size of a map, each pixel repeated."""
    return F.interpolate(gate, size=like.shape[2:], mode="nearest")


def _downsample(grad: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """The gradient of a gate from that of the upsampled one: the sums over what each pixel was repeated to."""
    return torch.ops.aten.upsample_nearest2d_backward(grad, grad.shape[2:], gate.shape)


def ghost_module_train_gated(x, gate, *args):
    """As ``ghost_module_train``, the output times the gate, upsampled to its size."""
    out, *statistics, _ = ghost_module_train(x, *args)
    return out * upsample(gate, out), *statistics


def ghost_module_train_gated_backward(
    grad_out, x, gate, primary_weight, primary_gamma, primary_beta, cheap_weight, cheap_gamma, cheap_beta, act_weight,
    cheap_act_weight, primary_mean, primary_var, cheap_mean, cheap_var, out_channels, act, cheap_act, act_slope,
    cheap_act_slope, primary_eps, cheap_eps,
):  # fmt: skip
    """Gradients of x, the gate, and what ``ghost_module_train_backward`` has beside that of x."""
    wide = torch.promote_types(x.dtype, torch.float32)
    z1 = F.conv2d(x.to(wide), primary_weight.to(wide))
    y1 = affine(normalise(z1, primary_mean, primary_var, primary_eps), primary_gamma, primary_beta)
    y1 = activate(y1, act, act_slope, act_weight)
    z2 = normalise(depthwise(y1, cheap_weight.to(wide), None), cheap_mean, cheap_var, cheap_eps)
    y2 = activate(affine(z2, cheap_gamma, cheap_beta), cheap_act, cheap_act_slope, cheap_act_weight)
    out, grad_out = torch.cat([y1, y2], 1)[:, :out_channels], grad_out.to(wide)
    grad_gate = _downsample(grad_out * out, gate).to(gate.dtype)
    grad_x, *grads = ghost_module_train_backward(
        grad_out * upsample(gate, x), x, primary_weight, primary_gamma, primary_beta, cheap_weight, cheap_gamma,
        cheap_beta, act_weight, cheap_act_weight, primary_mean, primary_var, cheap_mean, cheap_var, None, out_channels,
        act, cheap_act, act_slope, cheap_act_slope, primary_eps, cheap_eps,
    )  # fmt: skip
    return grad_x, grad_gate, *grads
