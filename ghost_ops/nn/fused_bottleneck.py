"""``FusedGhostBottleneck``: a Ghost bottleneck whose excitation and shortcut ride on the Ghost modules' passes."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..backends import choose
from . import _depthwise, _recompute
from ._program import Builder
from ._programmed import Programmed, need_grad
from ._structure import Half, Structure, Unfusable, refuse_autocast, refuse_input, refuse_now
from .bottleneck import GhostBottleneck
from .fused_ghost_module import FusedGhostModule
from .fused_squeeze_excite import FusedSqueezeExcite, _FusedSqueezeExcite
from .parts import BottleneckParts

MEMORY = ("balanced", "low")


class _Plan(NamedTuple):
    structure: Structure
    ghost1: FusedGhostModule
    depthwise: list[Half]
    se: _FusedSqueezeExcite | None
    ghost2: FusedGhostModule
    shortcut: list[Half]


class FusedGhostBottleneck(Programmed, GhostBottleneck):
    """Ghost bottleneck over the fused operators: constructor, parameters and state_dict of :class:`GhostBottleneck`.

    In eval without gradients the block is one call: ghost1, depthwise convolution, squeeze in passing, excitation into
    ghost2's weights, shortcut added in passing. On a CUDA device the Ghost modules are a call each, in which squeeze,
    excitation and shortcut ride. Otherwise (training, gradients, compilation, hooks between the parts) the parts run in
    turn, each fused on its own.

    ``FusedGhostBottleneck.wrap(block, BottleneckParts(...))`` takes the place of somebody else's block, whose Ghost
    modules and SE layer have been wrapped before.
    """

    memory: str = "balanced"
    _plain_class = GhostBottleneck
    _ghost_module = FusedGhostModule
    _squeeze_excite = FusedSqueezeExcite

    def __init__(self, *args: object, memory: str = "balanced", **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.memory = memory

    def __setattr__(self, name: str, value: object) -> None:
        if name == "memory" and value not in MEMORY:
            raise ValueError(f"{type(self).__name__}: memory: expected one of {', '.join(MEMORY)}, got {value!r}")
        super().__setattr__(name, value)

    @staticmethod
    def _paths(parts: object) -> list[str]:
        if not isinstance(parts, BottleneckParts):
            raise TypeError(f"FusedGhostBottleneck.wrap: parts: expected BottleneckParts, got {type(parts).__name__}")
        paths = (parts.ghost1, parts.ghost2, *parts.depthwise, parts.se, *parts.shortcut)
        return [path for path in paths if path is not None]

    def _describe(self) -> _Plan:
        parts, structure = self.parts(), Structure(self)
        ghost1, ghost2 = structure.find(parts.ghost1), structure.find(parts.ghost2)
        se = None if parts.se is None else structure.find(parts.se)
        for module in (ghost1, ghost2):
            if not isinstance(module, FusedGhostModule):
                raise Unfusable(f"its Ghost modules are no FusedGhostModule, one is a {type(module).__name__}")
        if se is not None and not isinstance(se, _FusedSqueezeExcite):
            raise Unfusable(f"its SE layer is no fused one but a {type(se).__name__}")
        depthwise, shortcut = structure.halves_of(parts.depthwise), structure.halves_of(parts.shortcut)
        return _Plan(structure.close(), ghost1, depthwise, se, ghost2, shortcut)

    def _in_parts(self, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling():
            return self._one_by_one(x)
        if self.memory == "low":
            try:
                self._check_recompute(x)
            except Unfusable:
                pass
            else:
                return _recompute.run(self, x)
        return self._one_by_one(x) if self.training else self._in_turn(x)

    def _one_by_one(self, x: torch.Tensor) -> torch.Tensor:
        """The parts one after the other, each called as it stands but for depthwise convolutions, which have an
        operator of their own."""
        try:
            _, ghost1, depthwise, se, ghost2, shortcut = self._with_depthwise(x)
        except Unfusable:
            return self._plain(x)
        inner = ghost1(x)
        for half in depthwise:
            inner = _depthwise.run(half, inner)
        out, residual = ghost2(inner if se is None else se(inner)), x
        for half in shortcut:
            residual = _depthwise.run(half, residual)
        return out + residual

    def _with_depthwise(self, x: torch.Tensor) -> _Plan:
        """The plan for ``_one_by_one``; raises ``Unfusable`` where plain PyTorch does the same or must be called."""
        why = refuse_now() or (None if torch.compiler.is_compiling() else refuse_input(x)) or refuse_autocast(x)
        if why is not None:
            raise Unfusable(why)
        plan = self._current_plan()
        if not any(_depthwise.serves(half, x) for half in (*plan.depthwise, *plan.shortcut)):
            raise Unfusable("no operator takes one of its convolutions")
        return plan

    def _check_recompute(self, x: torch.Tensor) -> None:
        if not need_grad((x, *self.parameters())):
            raise Unfusable("no gradients are wanted")
        _recompute.check(self, x)

    def _in_turn(self, x: torch.Tensor) -> torch.Tensor:
        """The parts one after the other; without gradients on a device that has no ``program_eval`` but the Ghost
        modules' operators, squeeze, excitation and shortcut ride on the Ghost modules."""
        try:
            plan = self._riding(x)
        except Unfusable:
            return self._one_by_one(x)
        _, ghost1, depthwise, se, ghost2, shortcut = plan
        squeezed = se is not None and not depthwise
        found = ghost1.run(x, return_squeeze=squeezed)
        inner, squeeze = found if squeezed else (found, None)
        for half in depthwise:
            inner = _depthwise.run(half, inner)
        excitation = None
        if se is not None:
            excitation = se.excitation(inner.mean((2, 3)) if squeeze is None else squeeze)
        residual = x
        for half in shortcut:
            residual = _depthwise.run(half, residual)
        return ghost2.run(inner, input_scale=excitation, residual=residual)

    def _riding(self, x: torch.Tensor) -> _Plan:
        """The plan for ``_in_turn``; raises ``Unfusable`` where the children must be called."""
        why = refuse_now() or refuse_input(x)
        if why is not None:
            raise Unfusable(why)
        plan = self._current_plan()
        _, ghost1, depthwise, se, ghost2, shortcut = plan
        if choose("ghost_module", x).backend not in ("cuda", "triton"):
            raise Unfusable("no kernel would take what rides")
        if torch.is_autocast_enabled(x.device.type):
            raise Unfusable("autocast makes of its parts and of its shortcut different dtypes")
        halves = [t for half in (*depthwise, *shortcut) for t in half.tensors()]
        vectors = () if se is None else se.tensors()
        if need_grad((x, *halves, *vectors, *ghost1.tensors(), *ghost2.tensors())):
            raise Unfusable("gradients are wanted")
        return plan

    def why(self, x: torch.Tensor) -> str:
        """How the block would run on an input such as x: as one, or its parts in turn, and then why."""
        keeps, (runs, slower) = "", self._why_depthwise(x)
        if self.memory == "low":
            try:
                self._check_recompute(x)
                return f"its parts in turn, computed again in the backward{runs}{slower}"
            except Unfusable as reason:
                keeps = f", and keeps what is inside: {reason}"
        if self.training:
            return f"its parts in turn{runs}: it is in training mode{keeps}{slower}"
        try:
            self._program_for(x)
        except Unfusable as reason:
            rides = self._rides(x)
            return f"its parts in turn: {reason}{rides}" if rides else f"its parts in turn{runs}: {reason}{slower}"
        return f"as one block, by program_eval on {choose('program_eval', x)}"

    def _why_depthwise(self, x: torch.Tensor) -> tuple[str, str]:
        """What runs the depthwise convolutions between its parts, and why nothing faster does; for ``why``."""
        try:
            plan = self._current_plan()
        except Unfusable:
            return "", ""
        runs, reason = _depthwise.why((*plan.depthwise, *plan.shortcut), x)
        return (
            "" if runs is None else f", {runs}",
            "" if reason is None else f"; its depthwise convolutions are plain PyTorch: {reason}",
        )

    def _rides(self, x: torch.Tensor) -> str:
        try:
            self._riding(x)
        except Unfusable:
            return ""
        return ", but squeeze, excitation and shortcut ride on the Ghost modules"

    def channels(self) -> int:
        return self._current_plan().ghost1.channels()

    def build(self, builder: Builder, source: int) -> int:
        """Write the block's steps; returns the slot of its output. ``source`` is released."""
        _, ghost1, depthwise, se, ghost2, shortcut = self._current_plan()
        expands = se is not None
        expanded = ghost1.build(builder, source, squeeze=expands and not depthwise)
        inner = builder.chain(depthwise, expanded, squeeze=expands)
        if inner != expanded:
            builder.release(expanded)
        if se is not None:
            se.build(builder)
        residual = builder.chain(shortcut, source)
        out = ghost2.build(builder, inner, residual=residual, scaled=expands)
        builder.release(source, inner, residual)
        return out

    def _plans(self) -> tuple:
        plan = self._current_plan()
        return plan, plan.ghost1._current_plan(), plan.ghost2._current_plan(), plan.se and plan.se._current_plan()
