"""``cheap_concat_train``: what follows the primary convolution of a Ghost module whose BatchNorms use batch statistics.

``ghost_module_train`` is a 1x1 convolution and this. The convolutions' biases change neither the output nor any
gradient but their own, which is zero, since the batch statistics remove them: the means are those of the convolutions
without bias.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ...activations import activate, activate_backward
from .batch_norm import affine, batch_norm, batch_norm_backward, batch_statistics, channels, normalise
from .cheap_concat import depthwise, depthwise_backward, given, match


def tail(
    z1, primary_bias, primary_gamma, primary_beta, cheap_weight, cheap_bias, cheap_gamma, cheap_beta, act_weight,
    cheap_act_weight, out_channels, act, cheap_act, act_slope, cheap_act_slope, primary_eps, cheap_eps,
):  # fmt: skip
    """The output, mean and variance of z1 and z2. ``primary_bias`` is in z1 already."""
    y1 = batch_norm(z1, primary_gamma, primary_beta, primary_eps)
    y1 = activate(y1, act, act_slope, act_weight)
    z2 = depthwise(y1, cheap_weight, cheap_bias)
    y2 = batch_norm(z2, cheap_gamma, cheap_beta, cheap_eps)
    y2 = activate(y2, cheap_act, cheap_act_slope, cheap_act_weight)
    out = torch.cat([y1, y2], 1)[:, :out_channels]
    return out, *batch_statistics(z1, primary_bias), *batch_statistics(z2, cheap_bias)


def cheap_concat_train(z, primary_bias, *args):
    """The output, mean and variance of z and of z2, which the cheap operation makes."""
    z1 = z if primary_bias is None else z + channels(match(primary_bias, z))
    return tail(z1, primary_bias, *args)


def tail_backward(
    grad_out, z1, primary_gamma, primary_beta, cheap_weight, cheap_gamma, cheap_beta, act_weight, cheap_act_weight,
    primary_mean, primary_var, cheap_mean, cheap_var, out_channels, act, cheap_act, act_slope, cheap_act_slope,
    primary_eps, cheap_eps,
):  # fmt: skip
    """Gradients of z1, primary gamma, beta, cheap weight, gamma, beta, and the two PReLU weights, in z1's dtype, which
    is at least float32; of what there is not, anything.

    Nothing of the forward but z1 and the statistics is needed: z2 is computed again.
    """
    wide, m = z1.dtype, z1.shape[1]
    total, w2 = m + cheap_weight.shape[0], cheap_weight.to(wide)
    z1_hat = normalise(z1, primary_mean, primary_var, primary_eps)
    a1 = affine(z1_hat, primary_gamma, primary_beta)
    y1 = activate(a1, act, act_slope, act_weight)
    z2_hat = normalise(depthwise(y1, w2, None), cheap_mean, cheap_var, cheap_eps)
    a2 = affine(z2_hat, cheap_gamma, cheap_beta)

    grad_out = grad_out.to(wide)
    grad_y2 = F.pad(grad_out[:, m:], (0, 0, 0, 0, 0, total - out_channels))
    grad_a2, grad_cheap_act = activate_backward(grad_y2, a2, cheap_act, cheap_act_slope, cheap_act_weight)
    grad_z2, grad_cheap_gamma, grad_cheap_beta = batch_norm_backward(grad_a2, z2_hat, cheap_gamma, cheap_var, cheap_eps)
    grad_y1, grad_w2, _ = depthwise_backward(grad_z2, y1, w2)
    grad_a1, grad_act = activate_backward(grad_y1 + grad_out[:, :m], a1, act, act_slope, act_weight)
    grad_z1, grad_gamma, grad_beta = batch_norm_backward(grad_a1, z1_hat, primary_gamma, primary_var, primary_eps)
    return grad_z1, grad_gamma, grad_beta, grad_w2, grad_cheap_gamma, grad_cheap_beta, grad_act, grad_cheap_act


def cheap_concat_train_backward(
    grad_out, z, primary_gamma, primary_beta, cheap_weight, cheap_gamma, cheap_beta, act_weight, cheap_act_weight, *args
):
    """Gradients of z, primary gamma, beta, cheap weight, gamma, beta, and the two PReLU weights."""
    parameters = primary_gamma, primary_beta, cheap_weight, cheap_gamma, cheap_beta, act_weight, cheap_act_weight
    grad_z, *grads = tail_backward(grad_out, z.to(torch.promote_types(z.dtype, torch.float32)), *parameters, *args)
    return grad_z.to(z.dtype), *(given(grad, p, z) for grad, p in zip(grads, parameters, strict=True))
