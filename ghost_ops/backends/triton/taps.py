"""How kernels read depthwise weights, C x 1 x D x D: through strides of channels and of taps."""

from __future__ import annotations

import torch


def as_taps(memory: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A depthwise weight, C x 1 x D x D, over memory that is D x D x C, as programs pack it: the channels of a tap are
    side by side."""
    c, _, height, width = shape
    return memory.as_strided(shape, (1, c, width * c, c), memory.storage_offset())


def tap_arguments(name: str, weight: torch.Tensor | None) -> dict[str, torch.Tensor | int | None]:
    """A depthwise weight as arguments of a kernel: the weight, and its strides of channels and of taps, 0 where it is
    None. A weight whose rows of taps do not follow each other is copied."""
    if weight is None:
        return {name: None, f"{name}_c": 0, f"{name}_tap": 0}
    if weight.shape[2] > 1 and weight.stride(2) != weight.shape[3] * weight.stride(3):
        weight = weight.contiguous()
    return {name: weight, f"{name}_c": weight.stride(0), f"{name}_tap": weight.stride(3)}
