"""What no kernel of ``csrc/cuda`` takes: Triton's kernels where they run, else the reference."""

from __future__ import annotations

import torch

from .. import triton


def elsewhere(name: str, *args):
    """Operator ``name`` by the next backend."""
    if triton.refuse_device(args[0].device) is None:
        return triton.load(name)(*args)
    return getattr(torch.ops.ghost_ops, f"{name}_reference").default(*args)


def memory_format(x: torch.Tensor) -> torch.memory_format:
    """Of the maps that an operator makes from x, as the operators' fakes promise it."""
    if x.is_contiguous():
        return torch.contiguous_format
    if x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.channels_last if x.stride(1) == 1 and x.shape[1] > 1 else torch.contiguous_format
