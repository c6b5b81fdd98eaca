"""A program's steps as calls of the kernels of ``csrc/cuda``: chains of blocks, and steps that PyTorch runs.

What depends on the steps only is worked out once for a packed form, and kept as long as it exists: the calls, and where
in the packed form the numbers are that the kernels read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...activations import WITH_SLOPES
from ...program import Folded, Ghost, Step, decode, weights_of
from ...program.packing import unpack
from ..tensor_cache import cached_with_tensor
from .bottlenecks import Bottleneck, dies, find_bottleneck, find_tail, reads_windows
from .weights import (
    OF_FEATURES,
    OF_MEANS,
    Block,
    Parts,
    Weights,
    bottleneck_block,
    ghost_module_block,
    linear_block,
    window_block,
)

MOST_BLOCKS = 48  # of a chain; csrc/cuda/chain.h takes some more, of the linear layers after them


@dataclass(frozen=True)
class Call:
    """One or more steps.

    Attributes:
        at: place of the first of them in the program.
        steps: that it computes.
        block: what the kernel is told; None where PyTorch runs the step.
        is_plain: of a block, whether it reads one map and makes one map, or features: it may be one of a chain.
        plain: of a step that PyTorch runs: place, shape of its tensors among the matrices, None where there is none.
    """

    at: int
    steps: tuple[Step, ...]
    block: Block | None = None
    is_plain: bool = True
    plain: tuple[tuple[tuple[int, tuple[int, ...]] | None, ...], ...] = ()


@dataclass(frozen=True, eq=False)
class Calls:
    """All of a program, its steps, and of every number in the kernels' two buffers its place among the packed form's
    ``numbers`` (-1: zero). Calls that one operator makes are a chain: each but the first reads what the one before
    makes, and nothing else does. No block of several steps begins at the steps ``apart``."""

    steps: tuple[Step, ...]
    chains: tuple[tuple[Call, ...], ...]
    index: torch.Tensor
    matrices: int
    apart: frozenset[int]


def _parts(found: Bottleneck, steps: list[Step], folded: list[list[Folded]]) -> Parts:
    """The steps of a bottleneck, which are these, with their layers."""
    pairs = list(zip(steps, folded))
    names = ("two", "one", "cheap", "depthwise", "excite", "cheap2")
    own = {name: pairs[at] for name in names if (at := getattr(found, name)) is not None}
    if found.shortcut is not None:
        own["shortcut"] = pairs[found.shortcut], pairs[found.shortcut + 1]
    return Parts(**own, adds_input=found.adds_input)


def _blocks(w: Weights, steps: list[Step], folded: list[list[Folded]], at: int, is_apart: bool) -> list[Call]:
    """The calls that begin with step ``at``: one, or those of a tail."""
    step, own = steps[at], folded[at]
    found = None if is_apart else find_bottleneck(steps, at)
    if found is not None:
        several = slice(at, at + found.count)
        return [Call(at, tuple(steps[several]), bottleneck_block(w, _parts(found, steps[several], folded[several])))]
    if isinstance(step, Ghost):
        block = ghost_module_block(w, step, own[0], own[1] if step.cheap_channels else None)
        tail = 0 if is_apart else find_tail(steps, at)
        is_plain = bool(tail) or not (step.scaled or step.squeeze or step.residual >= 0)
        calls = [Call(at, (step,), block, is_plain)]
        for i in range(at + 2, at + tail):
            block = linear_block(w, steps[i], folded[i][0], OF_MEANS if i == at + 2 else OF_FEATURES)
            calls.append(Call(at, tuple(steps[i - (i == at + 2) : i + 1]), block))
        return calls
    if reads_windows(step) and not is_apart:
        return [Call(at, (step,), window_block(w, step, own[0]))]
    plain = tuple(tuple(t if t is None else (w.plain(t), tuple(t.shape)) for t in f) for f in own)
    return [Call(at, (step,), plain=plain)]


def _follows(call: Call, before: Call, later: list[Step]) -> bool:
    """Whether a call reads what the one before makes and nobody reads that afterwards."""
    if call.block is None or before.block is None or not (call.is_plain and before.is_plain):
        return False
    if call.block.linear or before.block.linear or call.block.window:
        return bool(call.block.linear)
    made = before.steps[-1].out
    return call.steps[0].source == made and (call.steps[-1].out == made or dies(made, later))


def build_calls(
    steps: list[Step], folded: list[list[Folded]], half: bool, apart: frozenset[int]
) -> tuple[list[tuple[Call, ...]], Weights]:  # fmt: skip
    """The chains of calls, and their weights, places as the folded layers are. No block of several steps begins at the
    steps ``apart``."""
    w, chains, at = Weights(half), [], 0
    while at < len(steps):
        for call in _blocks(w, steps, folded, at, at in apart):
            at += len(call.steps)
            follows = bool(chains) and _follows(call, chains[-1][-1], steps[at:])
            if follows and (call.block.linear or len(chains[-1]) < MOST_BLOCKS):
                chains[-1] += (call,)
            else:
                chains.append((call,))
    return chains, w


@cached_with_tensor()
def calls_of(
    packed: torch.Tensor, steps: tuple[int, ...], length: int, half: bool, device: torch.device, apart: frozenset[int]
) -> Calls:
    """The calls of a program whose packed form is so long, in half precision or float32. No block of several steps
    begins at the steps ``apart``."""
    decoded, weights = decode(steps), weights_of(steps)
    folded = unpack(weights.places(length, 1), decoded, weights, WITH_SLOPES)
    chains, w = build_calls(decoded, folded, half, apart)
    index, matrices = w.index()
    return Calls(tuple(decoded), tuple(chains), index.to(device), matrices, apart)
