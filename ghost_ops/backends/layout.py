"""The layout of the maps that operators make, and the dtype of what they keep."""

from __future__ import annotations

import torch


def memory_format(x: torch.Tensor) -> torch.memory_format:
    """The layout of the maps that an operator makes from x: channels_last where x is, an ambiguous x counts as NCHW."""
    if x.is_contiguous():
        return torch.contiguous_format
    if x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.channels_last if x.stride(1) == 1 and x.shape[1] > 1 else torch.contiguous_format


def strides_are_channels_last(t: torch.Tensor) -> bool:
    """Whether the strides are those of channels_last, also where one channel makes the layout ambiguous."""
    return t.stride(1) == 1 and t.stride(3) == t.shape[1]


def kept_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype in which a training step keeps the primary convolution's result for the backward: on the CPU at least
    float32, as its kernels compute it; on a device x's, as PyTorch keeps its maps."""
    return torch.promote_types(x.dtype, torch.float32) if x.device.type == "cpu" else x.dtype
