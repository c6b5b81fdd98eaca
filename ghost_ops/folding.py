"""Folds a BatchNorm that uses its running statistics into the convolution or linear layer before it."""

from __future__ import annotations

import torch


def fold(weight, bias, gamma, beta, mean, var, eps):
    """Weight and bias of a convolution with the BatchNorm after it folded in, computed in at least float32.

    Args:
        bias, gamma, beta: None where there is none.
    """
    dtype = torch.promote_types(torch.promote_types(weight.dtype, mean.dtype), torch.float32)
    scale = torch.rsqrt(var.to(dtype) + eps)
    scale = scale if gamma is None else scale * gamma
    shift = -mean * scale if bias is None else (bias - mean) * scale
    shift = shift if beta is None else shift + beta
    return (weight * scale[:, None, None, None]).to(weight.dtype), shift.to(weight.dtype)


def fold_quickly(weight, bias, gamma, beta, mean, var, eps):
    """``fold`` in as few calls as the usual case needs: at batch 1 they count. The bias may differ in the last bit."""
    if bias is None and gamma is not None and beta is not None and weight.dtype is gamma.dtype is torch.float32:
        scale = gamma * torch.rsqrt(var + eps)
        return weight * scale.view(-1, 1, 1, 1), torch.addcmul(beta, mean, scale, value=-1)
    return fold(weight, bias, gamma, beta, mean, var, eps)


def fold_as_kernels(weight, bias, gamma, beta, mean, var, eps):
    """``fold`` to float32 with the roundings of ``csrc/cpu/kernels``: in double, but for the weight times the scale,
    which is in float32."""
    bias, gamma, beta, mean, var = (None if t is None else t.double() for t in (bias, gamma, beta, mean, var))
    scale = (1.0 if gamma is None else gamma) / (var + eps).sqrt()
    shift = ((0.0 if bias is None else bias) - mean) * scale + (0.0 if beta is None else beta)
    return weight.float() * scale.float()[:, None, None, None], shift.float()
