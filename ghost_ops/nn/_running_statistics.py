"""The running statistics of BatchNorms, for code that finds the batch's in its own way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

Batch = tuple[nn.Module, torch.Tensor, torch.Tensor]  # a BatchNorm, means, and biased variances, of each channel


def update(norm: nn.Module, mean: torch.Tensor, var: torch.Tensor, count: int | torch.Tensor) -> None:
    """Update the running statistics with those of a batch, as ``BatchNorm2d.forward`` in training does.

    Args:
        mean, var: of each channel, the variance biased.
        count: values a channel.
    """
    update_all([(norm, mean, var)], count)


def update_all(batches: Sequence[Batch], count: int | torch.Tensor) -> None:
    """``update`` of several BatchNorms over as many values, in few launches."""
    batches = [b for b in batches if b[0].training and b[0].track_running_stats]
    if len({id(norm) for norm, _, _ in batches}) < len(batches):  # one that is in two places is updated twice
        for batch in batches:
            update_all([batch], count)
        return
    tracked = [norm._buffers["num_batches_tracked"] for norm, _, _ in batches]
    tracked = [t for t in tracked if t is not None]
    if tracked:
        torch._foreach_add_(tracked, 1)
    batches = [b for b in batches if b[0]._buffers["running_mean"] is not None and _weight(b[0], b[1]) is not None]
    if not batches:
        return
    norms = [norm for norm, _, _ in batches]
    old = [norm._buffers[name] for norm in norms for name in ("running_mean", "running_var")]
    unbiased = torch._foreach_mul([var for _, _, var in batches], count / (count - 1))
    new = [t for (_, mean, _), var in zip(batches, unbiased, strict=True) for t in (mean, var)]
    weights = [_weight(norm, mean) for norm, mean, _ in batches]
    if isinstance(weights[0], float) and weights.count(weights[0]) == len(weights) and _alike(old + new):
        torch._foreach_lerp_(old, new, weights[0])
        return
    for i, (a, b) in enumerate(zip(old, new, strict=True)):
        if a.dtype == b.dtype:
            a.lerp_(b, weights[i // 2])
        else:  # half-precision buffers: rounded once, as PyTorch's kernel does
            a.copy_(a.to(b.dtype).lerp_(b, weights[i // 2]))


def _weight(norm: nn.Module, like: torch.Tensor) -> float | torch.Tensor | None:
    """Of the new batch; None where nothing is updated."""
    if norm.momentum is not None:
        return norm.momentum
    tracked = norm._buffers["num_batches_tracked"]
    return None if tracked is None else 1.0 / tracked.to(like.dtype)


def _alike(tensors: list[torch.Tensor]) -> bool:
    return all(t.dtype is tensors[0].dtype for t in tensors)
