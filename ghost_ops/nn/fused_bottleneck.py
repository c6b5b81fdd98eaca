"""``FusedGhostBottleneck``: a Ghost bottleneck whose excitation and shortcut ride on the Ghost modules' passes."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..backends import choose
from ..ops.program import program_eval
from ._program import Builder, Built
from ._structure import Half, Structure, Unfusable, refuse_input, refuse_now
from ._wrapper import Wrapper
from .bottleneck import GhostBottleneck
from .fused_ghost_module import FusedGhostModule, need_grad
from .fused_squeeze_excite import FusedSqueezeExcite, _FusedSqueezeExcite
from .parts import BottleneckParts


class _Plan(NamedTuple):
    structure: Structure
    ghost1: FusedGhostModule
    depthwise: list[Half]
    se: _FusedSqueezeExcite | None
    ghost2: FusedGhostModule
    shortcut: list[Half]


class FusedGhostBottleneck(Wrapper, GhostBottleneck):
    """Ghost bottleneck over the fused operators: constructor, parameters and state_dict of :class:`GhostBottleneck`.

    In eval without gradients the block is one call: ghost1, depthwise convolution, squeeze in passing, excitation into
    ghost2's weights, shortcut added in passing. On a CUDA device the Ghost modules are a call each, in which squeeze,
    excitation and shortcut ride. Otherwise (training, gradients, compilation, hooks between the parts) the parts run in
    turn, each fused on its own.

    ``FusedGhostBottleneck.wrap(block, BottleneckParts(...))`` takes the place of somebody else's block, whose Ghost
    modules and SE layer have been wrapped before.
    """

    _plain_class = GhostBottleneck
    _ghost_module = FusedGhostModule
    _squeeze_excite = FusedSqueezeExcite
    _program: tuple | None = None

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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training or torch.compiler.is_compiling():
            return self._plain(x)
        try:
            built, parameters = self._route(x)
        except Unfusable:
            return self._in_turn(x)
        return program_eval(x, parameters, built.code)

    def _in_turn(self, x: torch.Tensor) -> torch.Tensor:
        """The parts one after the other; without gradients on a device that has no ``program_eval`` but the Ghost
        modules' operators, squeeze, excitation and shortcut ride on the Ghost modules."""
        try:
            plan = self._riding(x)
        except Unfusable:
            return self._plain(x)
        _, ghost1, depthwise, se, ghost2, shortcut = plan
        squeezed = se is not None and not depthwise
        found = ghost1.run(x, return_squeeze=squeezed)
        inner, squeeze = found if squeezed else (found, None)
        inner = _chain(inner, depthwise)
        excitation = None
        if se is not None:
            excitation = se.excitation(inner.mean((2, 3)) if squeeze is None else squeeze)
        return ghost2.run(inner, input_scale=excitation, residual=_chain(x, shortcut))

    def _riding(self, x: torch.Tensor) -> _Plan:
        """The plan for ``_in_turn``; raises ``Unfusable`` where the children must be called."""
        why = refuse_now() or refuse_input(x)
        if why is not None:
            raise Unfusable(why)
        plan = self._current_plan()
        _, ghost1, depthwise, se, ghost2, shortcut = plan
        if choose("ghost_module", x).backend != "triton":
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
        if self.training:
            return "its parts in turn: it is in training mode"
        try:
            self._route(x)
        except Unfusable as reason:
            return f"its parts in turn: {reason}{self._rides(x)}"
        return f"as one block, by program_eval on {choose('program_eval', x)}"

    def _rides(self, x: torch.Tensor) -> str:
        try:
            self._riding(x)
        except Unfusable:
            return ""
        return ", but squeeze, excitation and shortcut ride on the Ghost modules"

    def build(self, builder: Builder, source: int) -> int:
        """Write the block's steps; returns the slot of its output. ``source`` is released.

        Raises:
            Unfusable: no program computes the block as it is now.
        """
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

    def _built(self) -> Built:
        """The block as a program, made anew where something inside has changed."""
        plan = self._current_plan()
        plans = (plan, plan.ghost1._current_plan(), plan.ghost2._current_plan(), plan.se and plan.se._current_plan())
        if self._program is None or any(a is not b for a, b in zip(self._program[0], plans, strict=True)):
            builder = Builder()
            builder.store(self.build(builder, builder.load(plan.ghost1.channels())))
            self.__dict__["_program"] = plans, builder.finish()
        return self._program[1]

    def _route(self, x: torch.Tensor) -> tuple[Built, list[torch.Tensor]]:
        """The block as a program, and its parameters now; raises ``Unfusable``."""
        why = refuse_now() or refuse_input(x)
        if why is not None:
            raise Unfusable(why)
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.get_autocast_dtype(x.device.type):
            raise Unfusable("autocast makes of its parts and of its shortcut different dtypes")
        choice = choose("program_eval", x)
        if choice.backend == "reference":
            raise Unfusable(str(choice))
        built = self._built()
        found = built.parameters(x)
        if found is None:
            self.__dict__["_program"] = None
            built = self._built()
            found = built.parameters(x)
        if found[0].shape[1] != x.shape[1]:
            raise Unfusable(f"its input has {x.shape[1]} channels, its weights do not")
        if need_grad((x, *found)):
            raise Unfusable("gradients are wanted")
        return built, found


def _chain(x: torch.Tensor, halves: list[Half]) -> torch.Tensor:
    """Convolutions, each with what follows it, through PyTorch."""
    for conv, norm, act, *_ in halves:
        x = conv(x)
        x = x if norm is None else norm(x)
        x = x if act is None else act(x)
    return x
