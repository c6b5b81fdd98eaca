"""The running statistics of a BatchNorm, for code that finds the batch's in its own way."""

from __future__ import annotations

import torch
from torch import nn


def update(norm: nn.Module, mean: torch.Tensor, var: torch.Tensor, count: int | torch.Tensor) -> None:
    """Update the running statistics with those of a batch, as ``BatchNorm2d.forward`` in training does.

    Args:
        mean, var: of each channel, the variance biased.
        count: values a channel.
    """
    buffers = norm._buffers
    running = buffers["running_mean"], buffers["running_var"]
    if not (norm.training and norm.track_running_stats):
        return
    tracked = buffers["num_batches_tracked"]
    if tracked is not None:
        tracked.add_(1)
    if running[0] is None:
        return
    if norm.momentum is not None:
        weight = norm.momentum
    elif tracked is not None:
        weight = 1.0 / tracked.to(mean.dtype)
    else:
        return
    for old, new in zip(running, (mean, var * (count / (count - 1))), strict=True):
        if old.dtype == new.dtype:
            old.lerp_(new, weight)
        else:  # half-precision buffers: rounded once, as PyTorch's kernel does
            old.copy_(old.to(new.dtype).lerp_(new, weight))
