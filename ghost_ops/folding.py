"""Folds a BatchNorm that uses its running statistics into the convolution or linear layer before it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

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


def fold_sum(branches: Sequence[tuple]) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias, in float64, of the one convolution that computes a sum of convolutions of the same input.

    Source: Ding et al. 2021 (RepVGG, arXiv 2101.03697), section 3.3.

    Args:
        branches: of each weight, bias, gamma, beta, mean, variance and eps, as of :func:`fold`. The first ones have
            weights of one shape. Those after them stand under the middle tap, where the convolutions are depthwise: 1x1
            convolutions, or with a weight of None the identity.

    Raises:
        ValueError: they stand in another order.
    """
    weights, biases, gammas, betas, means, variances, epsilons = zip(*branches, strict=True)
    mean = torch.stack(means)  # [branches x channels]
    eps = epsilons[0] if len(set(epsilons)) == 1 else mean.new_tensor(epsilons, dtype=torch.float64)[:, None]
    scales = torch.rsqrt(torch.stack(variances).double() + eps)
    if any(gamma is not None for gamma in gammas):
        scales = scales * _stacked(gammas, mean[0], 1.0)
    if any(bias is not None for bias in biases):
        mean = mean - _stacked(biases, mean[0], 0.0).double()
    shifts = -mean * scales
    if any(beta is not None for beta in betas):
        shifts = shifts + _stacked(betas, mean[0], 0.0)
    whole = list(itertools.takewhile(lambda weight: weight is not None and weight.shape == weights[0].shape, weights))
    if any(weight is not None and weight.shape[2:] != (1, 1) for weight in weights[len(whole) :]):
        raise ValueError("fold_sum: branches: expected those of the largest kernel first, then those of one pixel")
    total = (torch.stack(whole) * scales[: len(whole), :, None, None, None]).sum(0)
    height, width = total.shape[2:]
    for weight, scale in zip(weights[len(whole) :], scales[len(whole) :], strict=True):
        total[:, 0, height // 2, width // 2] += scale if weight is None else scale * weight.flatten()
    return total, shifts.sum(0)


def _stacked(vectors: Sequence[torch.Tensor | None], like: torch.Tensor, otherwise: float) -> torch.Tensor:
    return torch.stack([torch.full_like(like, otherwise) if v is None else v for v in vectors])
