"""The operators that ``_cuda.so`` registers, as functions: the one place where its kernels start.

Tests put the emulator in their place.
"""

from __future__ import annotations

import torch

from .weights import Block


def gather(packed: torch.Tensor, index: torch.Tensor, matrices: int, like: torch.Tensor):
    """``packed`` in the order of ``index`` (zero where it is -1): the first ``matrices`` in the dtype of ``like``, the
    others in float32."""
    return torch.ops.ghost_ops._cuda_gather(packed, index, matrices, like)


def bottleneck(x: torch.Tensor, matrices: torch.Tensor, vectors: torch.Tensor, block: Block) -> torch.Tensor:
    """A bottleneck on x, channels_last."""
    return torch.ops.ghost_ops._cuda_bottleneck(x, matrices, vectors, block.numbers(*x.shape[2:]))


def module(x, matrices, vectors, block: Block, scale, residual, squeeze: bool):
    """A Ghost module on x, channels_last; its output, and its squeeze where that is wanted."""
    return torch.ops.ghost_ops._cuda_module(x, matrices, vectors, scale, residual, block.numbers(*x.shape[2:]), squeeze)
