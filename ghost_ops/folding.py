"""Folds a BatchNorm that uses its running statistics into the convolution or linear layer before it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F


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


def fold_sum(branches: Iterable[tuple], shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias, in float64, of the one convolution that computes a sum of convolutions of the same input.

    Args:
        branches: of each weight, bias, gamma, beta, mean, variance and eps, as of :func:`fold`. A weight of None is the
            identity, of a depthwise convolution. Smaller kernels stand in the middle.
        shape: of the weight.
    """
    total, total_bias = 0.0, 0.0
    for *tensors, eps in branches:
        weight, bias, gamma, beta, mean, var = (None if t is None else t.double() for t in tensors)
        scale = torch.rsqrt(var + eps) * (1.0 if gamma is None else gamma)
        shift = (0.0 if bias is None else bias) - mean
        weight = var.new_ones(len(scale), 1, 1, 1) if weight is None else weight
        around = [(shape[axis] - weight.shape[axis]) // 2 for axis in (3, 2)]
        total = total + F.pad(weight * scale[:, None, None, None], [around[0]] * 2 + [around[1]] * 2)
        total_bias = total_bias + shift * scale + (0.0 if beta is None else beta)
    return total, total_bias
