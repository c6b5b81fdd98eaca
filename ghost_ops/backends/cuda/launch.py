"""The operators that ``_cuda.so`` registers, as functions: the one place where its kernels start.

Tests put the emulator in their place.
"""

from __future__ import annotations

import torch

from . import plan
from .weights import Block

find = plan.find
# What the planner must keep to, csrc/cuda/plan.h: split, band, strip, step, chunks, threads, joined; 0: free.
wish: list[int] = []


def gather(
    packed: torch.Tensor, index: torch.Tensor, matrices: int, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``packed`` in the order of ``index`` (zero where it is -1): the first ``matrices`` in the dtype of ``like``, the
    others in float32."""
    return torch.ops.ghost_ops._cuda_gather(packed, index, matrices, like)


def launch_chain(x: torch.Tensor, matrices: torch.Tensor, vectors: torch.Tensor, numbers: list[int]) -> torch.Tensor:
    """Blocks that follow each other on x, channels_last, or an image of any layout: their numbers one after the other.

    Returns what the last one makes, a map or features; of features there are some rows more than images. ``find`` must
    know a plan for the blocks.
    """
    return torch.ops.ghost_ops._cuda_chain(x, matrices, vectors, numbers, wish)


def launch_ghost_module(
    x: torch.Tensor, matrices: torch.Tensor, vectors: torch.Tensor, block: Block, scale: torch.Tensor | None,
    residual: torch.Tensor | None, squeeze: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """A Ghost module on x and a residual, both channels_last: its output, and its squeeze if that is wanted. ``find``
    must know a plan for it."""
    numbers = block.numbers(*x.shape[2:])
    return torch.ops.ghost_ops._cuda_module(x, matrices, vectors, scale, residual, numbers, squeeze, wish)
