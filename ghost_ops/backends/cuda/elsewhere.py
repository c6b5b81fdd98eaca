"""What no kernel of ``csrc/cuda`` takes: Triton's kernels where they run, else the reference."""

from __future__ import annotations

import torch

from ...program import Depthwise, Folded
from ...program.interpreter import ProgramInterpreter
from .. import triton


def elsewhere(name: str, *args):
    """Operator ``name`` by the next backend."""
    if triton.refuse_device(args[0].device) is None:
        return triton.load(name)(*args)
    return getattr(torch.ops.ghost_ops, f"{name}_reference").default(*args)


def depthwise_elsewhere(state: ProgramInterpreter, step: Depthwise, folded: list[Folded]) -> None:
    """A depthwise convolution that is not one of a block, by the next backend."""
    if triton.refuse_device(state.x.device) is None:
        from ..triton.program import TritonInterpreter  # which needs Triton

        TritonInterpreter.depthwise(state, step, folded)
    else:
        step.run(state, folded)
