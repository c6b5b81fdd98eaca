"""``ghost_module_train``: a Ghost module whose BatchNorms use batch statistics.

The statistics are outputs, so that the running ones are updated apart from the operator (docs/architecture.md).
The convolutions' biases change neither the output nor any gradient but their own, which is zero, since the batch
statistics remove them: the means are those of the products without bias.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ...activations import activate, activate_backward
from ..layout import kept_dtype
from .cheap_concat import depthwise, depthwise_backward, given, match
from .ghost_module import pointwise_backward


def _statistics(z: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (without the bias) and biased variance of each channel, in at least float32."""
    z = z.detach().to(torch.promote_types(z.dtype, torch.float32))
    var, mean = torch.var_mean(z, (0, 2, 3), correction=0)
    return mean if bias is None else mean - bias.detach(), var


def _batch_norm(z, gamma, beta, eps):
    """Over batch statistics; a gamma and beta of two dtypes take the wider, as PyTorch wants one for both. A beta alone
    has a gamma of ones beside it: on a CUDA device PyTorch's backward makes beta's gradient in the form of gamma."""
    if gamma is None and beta is not None:
        gamma = torch.ones_like(beta)
    if gamma is not None and beta is not None and gamma.dtype != beta.dtype:
        wide = torch.promote_types(gamma.dtype, beta.dtype)
        gamma, beta = gamma.to(wide), beta.to(wide)
    return F.batch_norm(z, None, None, gamma, beta, True, 0.0, eps)


def ghost_module_train(
    x, primary_weight, primary_bias, primary_gamma, primary_beta, cheap_weight, cheap_bias, cheap_gamma, cheap_beta,
    act_weight, cheap_act_weight, out_channels, act, cheap_act, act_slope, cheap_act_slope, primary_eps, cheap_eps,
    keep_primary=False,
):  # fmt: skip
    """The output, mean and variance of z1 and z2, and z1 itself, N x H x W x m without its bias, where it is kept."""
    z1 = F.conv2d(x, match(primary_weight, x), match(primary_bias, x))
    y1 = _batch_norm(z1, primary_gamma, primary_beta, primary_eps)
    y1 = activate(y1, act, act_slope, act_weight)
    z2 = depthwise(y1, cheap_weight, cheap_bias)
    y2 = _batch_norm(z2, cheap_gamma, cheap_beta, cheap_eps)
    y2 = activate(y2, cheap_act, cheap_act_slope, cheap_act_weight)
    out = torch.cat([y1, y2], 1)[:, :out_channels]
    return out, *_statistics(z1, primary_bias), *_statistics(z2, cheap_bias), _kept(z1, primary_bias, keep_primary)


def _kept(z1: torch.Tensor, bias: torch.Tensor | None, keep: bool) -> torch.Tensor:
    z = z1.detach().to(torch.promote_types(z1.dtype, torch.float32))
    if not keep:
        return z.new_empty(0)
    return (z if bias is None else z - _channels(bias.detach())).permute(0, 2, 3, 1).to(kept_dtype(z1))


def _channels(v: torch.Tensor) -> torch.Tensor:
    return v[:, None, None]


def _normalise(z, mean, var, eps):
    return (z - _channels(mean)) * _channels(torch.rsqrt(var + eps))


def _affine(z_hat, gamma, beta):
    z_hat = z_hat if gamma is None else z_hat * _channels(gamma)
    return z_hat if beta is None else z_hat + _channels(beta)


def _batch_norm_backward(grad, z_hat, gamma, var, eps):
    """Gradients of z, gamma and beta of a BatchNorm over batch statistics."""
    grad_beta = grad.sum((0, 2, 3))
    grad_gamma = (grad * z_hat).sum((0, 2, 3))
    count = grad.numel() // grad.shape[1]
    scale = torch.rsqrt(var + eps) if gamma is None else torch.rsqrt(var + eps) * gamma
    grad_z = _channels(scale) * (grad - _channels(grad_beta / count) - z_hat * _channels(grad_gamma / count))
    return grad_z, grad_gamma, grad_beta


def ghost_module_train_backward(
    grad_out, x, primary_weight, primary_gamma, primary_beta, cheap_weight, cheap_gamma, cheap_beta, act_weight,
    cheap_act_weight, primary_mean, primary_var, cheap_mean, cheap_var, primary, out_channels, act, cheap_act,
    act_slope, cheap_act_slope, primary_eps, cheap_eps,
):  # fmt: skip
    """Gradients of x, primary weight, gamma, beta, cheap weight, gamma, beta, and the two PReLU weights.

    Nothing of the forward but x and the statistics is needed: z2 is computed again, and z1 where ``primary`` is None.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    m, total = primary_weight.shape[0], primary_weight.shape[0] + cheap_weight.shape[0]
    xw, w1, w2 = x.to(wide), primary_weight.to(wide), cheap_weight.to(wide)
    z1 = F.conv2d(xw, w1) if primary is None else primary.permute(0, 3, 1, 2).to(wide)
    z1_hat = _normalise(z1, primary_mean, primary_var, primary_eps)
    a1 = _affine(z1_hat, primary_gamma, primary_beta)
    y1 = activate(a1, act, act_slope, act_weight)
    z2_hat = _normalise(depthwise(y1, w2, None), cheap_mean, cheap_var, cheap_eps)
    a2 = _affine(z2_hat, cheap_gamma, cheap_beta)

    grad_out = grad_out.to(wide)
    grad_y2 = F.pad(grad_out[:, m:], (0, 0, 0, 0, 0, total - out_channels))
    grad_a2, grad_cheap_act = activate_backward(grad_y2, a2, cheap_act, cheap_act_slope, cheap_act_weight)
    grad_z2, grad_cheap_gamma, grad_cheap_beta = _batch_norm_backward(
        grad_a2, z2_hat, cheap_gamma, cheap_var, cheap_eps
    )
    grad_y1, grad_w2, _ = depthwise_backward(grad_z2, y1, w2)
    grad_a1, grad_act = activate_backward(grad_y1 + grad_out[:, :m], a1, act, act_slope, act_weight)
    grad_z1, grad_gamma, grad_beta = _batch_norm_backward(grad_a1, z1_hat, primary_gamma, primary_var, primary_eps)
    grad_x, grad_w1, _ = pointwise_backward(grad_z1, xw, w1)
    return (
        grad_x.to(x.dtype),
        grad_w1.to(primary_weight.dtype),
        given(grad_gamma, primary_gamma, x),
        given(grad_beta, primary_beta, x),
        grad_w2.to(cheap_weight.dtype),
        given(grad_cheap_gamma, cheap_gamma, x),
        given(grad_cheap_beta, cheap_beta, x),
        given(grad_act, act_weight, x),
        given(grad_cheap_act, cheap_act_weight, x),
    )


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
    y1 = _affine(_normalise(z1, primary_mean, primary_var, primary_eps), primary_gamma, primary_beta)
    y1 = activate(y1, act, act_slope, act_weight)
    z2 = _normalise(depthwise(y1, cheap_weight.to(wide), None), cheap_mean, cheap_var, cheap_eps)
    y2 = activate(_affine(z2, cheap_gamma, cheap_beta), cheap_act, cheap_act_slope, cheap_act_weight)
    out, grad_out = torch.cat([y1, y2], 1)[:, :out_channels], grad_out.to(wide)
    grad_gate = _downsample(grad_out * out, gate).to(gate.dtype)
    grad_x, *grads = ghost_module_train_backward(
        grad_out * upsample(gate, x), x, primary_weight, primary_gamma, primary_beta, cheap_weight, cheap_gamma,
        cheap_beta, act_weight, cheap_act_weight, primary_mean, primary_var, cheap_mean, cheap_var, None, out_channels,
        act, cheap_act, act_slope, cheap_act_slope, primary_eps, cheap_eps,
    )  # fmt: skip
    return grad_x, grad_gate, *grads
