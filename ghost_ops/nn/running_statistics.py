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
    tracked, seen, norms, old, means, variances = [], [], [], [], [], []
    for norm, mean, var in batches:  # in a training step calls of Python count: no comprehensions here
        if not (norm.training and norm.track_running_stats):
            continue
        if norm in seen:  # one that is in two places is updated twice
            update_all(batches[:1], count)
            update_all(batches[1:], count)
            return
        seen.append(norm)
        steps, running = norm._buffers["num_batches_tracked"], norm._buffers["running_mean"]
        if steps is not None:
            tracked.append(steps)
        if running is not None and (norm.momentum is not None or steps is not None):
            norms.append(norm)
            old += [running, norm._buffers["running_var"]]
            means.append(mean)
            variances.append(var)
    if tracked:
        torch._foreach_add_(tracked, 1)
    if not norms:
        return
    unbiased = torch._foreach_mul(variances, count / (count - 1))
    weight, alike, new = norms[0].momentum, True, []
    for i, norm in enumerate(norms):
        new += [means[i], unbiased[i]]
        alike = alike and isinstance(weight, float) and norm.momentum == weight
        alike = (
            alike and old[2 * i].dtype is old[2 * i + 1].dtype is means[i].dtype is unbiased[i].dtype is old[0].dtype
        )
    if alike:
        torch._foreach_lerp_(old, new, weight)
        return
    for i, (a, b) in enumerate(zip(old, new, strict=True)):
        weight = _weight(norms[i // 2], b)
        if a.dtype == b.dtype:
            a.lerp_(b, weight)
        else:  # half-precision buffers: rounded once, as PyTorch's kernel does
            a.copy_(a.to(b.dtype).lerp_(b, weight))


def _weight(norm: nn.Module, like: torch.Tensor) -> float | torch.Tensor:
    """The weight of the new batch."""
    if norm.momentum is not None:
        return norm.momentum
    return 1.0 / norm._buffers["num_batches_tracked"].to(like.dtype)
