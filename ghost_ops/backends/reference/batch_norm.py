"""BatchNorms over batch statistics, forward and backward, for the operators that have them inside."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def channels(v: torch.Tensor) -> torch.Tensor:
    """A vector as one that broadcasts over maps."""
    return v[:, None, None]


def batch_statistics(z: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (without the bias) and biased variance of each channel, in at least float32."""
    z = z.detach().to(torch.promote_types(z.dtype, torch.float32))
    var, mean = torch.var_mean(z, (0, 2, 3), correction=0)
    return mean if bias is None else mean - bias.detach(), var


def batch_norm(z, gamma, beta, eps):
    """BatchNorm over batch statistics. Gamma and beta of two dtypes are both taken in the wider one, which PyTorch
    demands. Where beta has no gamma, a gamma of ones is passed: on a CUDA device PyTorch's backward needs it."""
    if gamma is None and beta is not None:
        gamma = torch.ones_like(beta)
    if gamma is not None and beta is not None and gamma.dtype != beta.dtype:
        wide = torch.promote_types(gamma.dtype, beta.dtype)
        gamma, beta = gamma.to(wide), beta.to(wide)
    return F.batch_norm(z, None, None, gamma, beta, True, 0.0, eps)


def normalise(z, mean, var, eps):
    """(z - mean) / sqrt(var + eps), by channel."""
    return (z - channels(mean)) * channels(torch.rsqrt(var + eps))


def affine(z_hat, gamma, beta):
    """z_hat * gamma + beta, by channel; each may be None."""
    z_hat = z_hat if gamma is None else z_hat * channels(gamma)
    return z_hat if beta is None else z_hat + channels(beta)


def batch_norm_backward(grad, z_hat, gamma, var, eps):
    """Gradients of z, gamma and beta of a BatchNorm over batch statistics."""
    grad_beta = grad.sum((0, 2, 3))
    grad_gamma = (grad * z_hat).sum((0, 2, 3))
    count = grad.numel() // grad.shape[1]
    scale = torch.rsqrt(var + eps) if gamma is None else torch.rsqrt(var + eps) * gamma
    grad_z = channels(scale) * (grad - channels(grad_beta / count) - z_hat * channels(grad_gamma / count))
    return grad_z, grad_gamma, grad_beta
