"""A program's steps as calls of the kernels of ``csrc/cuda``: bottlenecks, Ghost modules, and steps that PyTorch runs.

What depends on the steps only is worked out once for a packed form, and kept as long as it exists: the calls, and where
in the packed form the numbers are that the kernels read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...activations import WITH_SLOPES
from ...program import Depthwise, Excite, Folded, Ghost, Step, decode, weights_of
from ...program.packing import unpack
from ..registry import CHEAP_KERNELS
from ..tensor_cache import cached_with_tensor
from .weights import Block, Parts, Weights, bottleneck_block, ghost_module_block


@dataclass(frozen=True)
class Call:
    """One or more steps.

    Attributes:
        at: place of the first of them in the program.
        steps: that it computes.
        block: what the kernel is told; None where PyTorch runs the step.
        plain: of a step that PyTorch runs: place, shape of its tensors among the matrices, None where there is none.
    """

    at: int
    steps: tuple[Step, ...]
    block: Block | None = None
    plain: tuple[tuple[tuple[int, tuple[int, ...]] | None, ...], ...] = ()


@dataclass(frozen=True, eq=False)
class Calls:
    """All of a program, its steps, and of every number in the kernels' two buffers its place among the packed form's
    ``numbers`` (-1: zero). No bottleneck begins at the steps ``apart``."""

    steps: tuple[Step, ...]
    calls: tuple[Call, ...]
    index: torch.Tensor
    matrices: int
    apart: frozenset[int]


def _dies(slot: int, later: list[Step]) -> bool:
    """Whether nobody reads what is in a slot."""
    for step in later:
        if slot in step.reads():
            return False
        if getattr(step, "out", -1) == slot:
            return True
    return True


def _state_dies(later: list[Step]) -> bool:
    """Whether nobody reads the squeeze and the excitation."""
    squeezed = excited = False
    for step in later:
        if (step.reads_squeeze and not squeezed) or (getattr(step, "scaled", False) and not excited):
            return False
        squeezed |= bool(getattr(step, "squeeze", False))
        excited |= isinstance(step, Excite)
    return True


def find_bottleneck(steps: list[Step], at: int) -> int:
    """How many steps from ``at`` on are a bottleneck that one kernel computes; 0 where they are none."""
    rest = steps[at:]
    one = rest[0]
    if not isinstance(one, Ghost) or one.scaled or one.residual >= 0:
        return 0
    taken, inner, squeezed, stride = 1, one, one.squeeze, 1

    def next_is(kind: type) -> bool:
        return taken < len(rest) and isinstance(rest[taken], kind) and _has_kernel(rest[taken])

    if next_is(Depthwise) and rest[taken].source == one.out and not squeezed:
        inner, taken = rest[taken], taken + 1
        squeezed, stride = inner.squeeze, inner.stride[0]
    if squeezed != next_is(Excite):
        return 0
    taken += squeezed
    shortcut = rest[taken : taken + 2] if next_is(Depthwise) else []
    taken += len(shortcut)
    if not next_is(Ghost):
        return 0
    two, later = rest[taken], rest[taken + 1 :]
    residuals = [-1] if stride > 1 or one.channels != two.out_channels else [-1, one.source]
    if shortcut:
        if not _is_shortcut(shortcut, one.source, stride):
            return 0
        residuals = [shortcut[1].out]
    if two.source != inner.out or two.residual not in residuals or two.scaled != squeezed or two.squeeze:
        return 0
    # nobody overwrites what is still to be read, or reads afterwards what a kernel does not write
    between = [step.out for step in shortcut]
    reads_x_again = bool(shortcut) or two.residual == one.source
    if inner.out in between or (reads_x_again and one.source in (one.out, inner.out)):
        return 0
    unwritten = {one.out, inner.out, *between} - {two.out}
    return taken + 1 if _state_dies(later) and all(_dies(slot, later) for slot in unwritten) else 0


def _has_kernel(step: Step) -> bool:
    """Whether the kernel of a bottleneck computes such a step; of a depthwise convolution it has not all sizes."""
    return not isinstance(step, Depthwise) or (step.is_same and step.kernel[0] in CHEAP_KERNELS)


def _is_shortcut(steps: list[Step], source: int, stride: int) -> bool:
    if len(steps) < 2 or not isinstance(steps[1], Ghost) or not _has_kernel(steps[0]):
        return False
    first, second = steps
    plain = not (first.squeeze or second.scaled or second.squeeze or second.cheap_channels or second.residual >= 0)
    return plain and first.source == source and first.stride == (stride, stride) and second.source == first.out


def _parts(steps: list[Step], folded: list[list[Folded]]) -> Parts:
    pairs = list(zip(steps, folded))
    middle, at = {}, 1
    if isinstance(steps[at], Depthwise) and steps[at].source == steps[0].out:
        middle["depthwise"], at = pairs[at], at + 1
    if isinstance(steps[at], Excite):
        middle["excite"], at = pairs[at], at + 1
    if isinstance(steps[at], Depthwise):
        middle["shortcut"] = pairs[at], pairs[at + 1]
    return Parts(pairs[0], pairs[-1], **middle)


def build_calls(
    steps: list[Step], folded: list[list[Folded]], half: bool, apart: frozenset[int]
) -> tuple[list[Call], Weights]:  # fmt: skip
    """The calls, and their weights, places as the folded layers are. No bottleneck begins at the steps ``apart``."""
    w, calls, at = Weights(half), [], 0
    while at < len(steps):
        step, own = steps[at], folded[at]
        count = 0 if at in apart else find_bottleneck(steps, at)
        if count:
            several = steps[at : at + count]
            calls.append(Call(at, tuple(several), bottleneck_block(w, _parts(several, folded[at : at + count]))))
        elif isinstance(step, Ghost):
            calls.append(
                Call(at, (step,), ghost_module_block(w, step, own[0], own[1] if step.cheap_channels else None))
            )
        else:
            plain = tuple(tuple(t if t is None else (w.plain(t), tuple(t.shape)) for t in f) for f in own)
            calls.append(Call(at, (step,), None, plain))
        at += max(count, 1)
    return calls, w


@cached_with_tensor()
def calls_of(
    packed: torch.Tensor, steps: tuple[int, ...], length: int, half: bool, device: torch.device, apart: frozenset[int]
) -> Calls:
    """The calls of a program whose packed form is so long, in half precision or float32. No bottleneck begins at the
    steps ``apart``."""
    decoded, weights = decode(steps), weights_of(steps)
    folded = unpack(weights.places(length, 1), decoded, weights, WITH_SLOPES)
    calls, w = build_calls(decoded, folded, half, apart)
    index, matrices = w.index()
    return Calls(tuple(decoded), tuple(calls), index.to(device), matrices, apart)
