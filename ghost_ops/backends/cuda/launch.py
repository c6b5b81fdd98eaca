"""The operators that ``_cuda.so`` registers, as functions: the one place where its kernels start.

Tests put the emulator in their place.
"""

from __future__ import annotations

import torch

from . import plan
from .weights import Block


class NoPlan(Exception):
    """No tile of a block fits the device."""


def _numbers(block: Block, x: torch.Tensor) -> list[int]:
    numbers = block.numbers(*x.shape[2:])
    if plan.find(tuple(numbers), x.dtype, x.shape[0], x.device) is None:
        raise NoPlan
    return numbers


def gather(
    packed: torch.Tensor, index: torch.Tensor, matrices: int, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``packed`` in the order of ``index`` (zero where it is -1): the first ``matrices`` in the dtype of ``like``, the
    others in float32."""
    return torch.ops.ghost_ops._cuda_gather(packed, index, matrices, like)


def bottleneck(x: torch.Tensor, matrices: torch.Tensor, vectors: torch.Tensor, block: Block) -> torch.Tensor:
    """A bottleneck on x, channels_last.

    Raises:
        NoPlan: it does not fit the device.
    """
    return torch.ops.ghost_ops._cuda_bottleneck(x, matrices, vectors, _numbers(block, x))


def module(
    x: torch.Tensor, matrices: torch.Tensor, vectors: torch.Tensor, block: Block, scale: torch.Tensor | None,
    residual: torch.Tensor | None, squeeze: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """A Ghost module on x and a residual, both channels_last: its output, and its squeeze if that is wanted.

    Raises:
        NoPlan: it does not fit the device.
    """
    return torch.ops.ghost_ops._cuda_module(x, matrices, vectors, scale, residual, _numbers(block, x), squeeze)
