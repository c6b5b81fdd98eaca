"""Whether the program that a block writes computes what the module computes."""

from __future__ import annotations

import torch
from torch import nn

from ..backends import reference
from ..fused.behaviour import apply, block_of
from ..fused.block import Block
from ..fused.builder import Builder
from ..fused.errors import Unfusable, first_line
from ._compare import agree, difference
from ._copy import drawn_copy, normal
from ._inputs import smallest_side

_SIZES = ((2, 13, 11), (1, 12, 14))  # images, height and width beyond the smallest


def refuse_lowering(kind: type[Block], module: nn.Module, parts: object, inner: dict[str, tuple]) -> str | None:
    """Why the program of a block must not stand in for a module, in a sentence; None where it may.

    Both run in float64 on a copy with drawn parameters. A block that writes no program for this module passes.

    Args:
        kind: the kind of block.
        parts: the module's.
        inner: paths of the blocks inside, each with its kind and its parts.
    """
    if not kind.verifies_program:
        return None
    generator = torch.Generator().manual_seed(1)
    copied = drawn_copy(module, generator).eval()
    with torch.no_grad(), torch.inference_mode(False), torch.autocast("cpu", enabled=False):
        for path, (inner_kind, inner_parts) in inner.items():
            apply(copied.get_submodule(path), inner_kind.behaviour, inner_parts)
        apply(copied, kind.behaviour, parts)
        block, builder = block_of(copied), Builder()
        try:
            channels = block.channels(copied)
            out = block.lower_module(copied, builder, builder.load(channels))
            if type(out) is not int:
                return f"{kind.__name__}.lower: expected the slot of its output, got {out!r}"
            builder.store(out)
            program = builder.finish()
        except Unfusable:
            return None
        except Exception as error:
            return f"{kind.__name__}.lower failed ({first_line(error)})"
        tensors = [t for source in program.sources for t in source.tensors() if t is not None]
        side = smallest_side(module)
        for batch, height, width in _SIZES:
            x = normal(generator, batch, channels, side + height, side + width)
            try:
                ours = reference.program_eval(x, tensors, program.code)
            except Exception as error:
                return f"the steps that {kind.__name__}.lower writes are not a program ({first_line(error)})"
            theirs = type(module).forward(copied, x)
            if ours.shape != theirs.shape or not agree(ours, theirs):
                return f"the program of {kind.__name__} computes something else: {difference(ours, theirs)}"
    return None
