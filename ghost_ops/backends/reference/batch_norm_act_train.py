"""``batch_norm_act_train``: a BatchNorm over batch statistics, and the activation after it."""

from __future__ import annotations

import torch

from ...activations import activate, activate_backward
from .batch_norm import affine, batch_norm, batch_norm_backward, batch_statistics, normalise
from .cheap_concat import given


def batch_norm_act_train(z, gamma, beta, act_weight, act, act_slope, eps):
    """The output, mean and biased variance of z."""
    out = activate(batch_norm(z, gamma, beta, eps), act, act_slope, act_weight)
    return out, *batch_statistics(z, None)


def batch_norm_act_train_backward(grad_out, z, gamma, beta, act_weight, mean, var, act, act_slope, eps):
    """Gradients of z, gamma, beta and PReLU's weight (empty where there is none)."""
    wide = torch.promote_types(z.dtype, torch.float32)
    z_hat = normalise(z.to(wide), mean, var, eps)
    a = affine(z_hat, gamma, beta)
    grad_a, grad_weight = activate_backward(grad_out.to(wide), a, act, act_slope, act_weight)
    grad_z, *grads = batch_norm_backward(grad_a, z_hat, gamma, var, eps)
    parameters = zip((*grads, grad_weight), (gamma, beta, act_weight), strict=True)
    return grad_z.to(z.dtype), *(given(grad, p, z) for grad, p in parameters)
