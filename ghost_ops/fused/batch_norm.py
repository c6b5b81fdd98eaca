"""What ``torch.nn.BatchNorm2d`` does, for code that runs it inside an operator: which statistics, folding."""

from __future__ import annotations

import torch
from torch import nn

from ..folding import fold_quickly
from .errors import NotNow
from .layers import SYNCED, ConvBNAct

__all__ = ["ABSENT", "BATCH", "RUNNING", "folded", "statistics"]

BATCH, RUNNING, ABSENT = "batch", "running", "absent"


def statistics(norm: nn.Module | None) -> str:
    """The statistics that a BatchNorm would use now."""
    if norm is None:
        return ABSENT
    buffers = norm._buffers
    mean, var = buffers.get("running_mean"), buffers.get("running_var")
    if norm.training or (mean is None and var is None):
        if type(norm) in SYNCED:
            raise NotNow("a SyncBatchNorm uses the statistics of all processes")
        return BATCH
    if mean is None or var is None:
        raise NotNow("a BatchNorm has only one of its two running statistics")
    return RUNNING


def folded(layer: ConvBNAct, tensors: tuple, eps: float) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias of the convolution with its BatchNorm, if any, folded in; differentiable.

    Args:
        tensors: as ``layer.tensors()`` gives them.
        eps: the BatchNorm's.
    """
    weight, bias, gamma, beta, mean, var, _ = tensors
    if layer.norm is None:
        return weight, bias
    return fold_quickly(weight, bias, gamma, beta, mean, var, eps)
