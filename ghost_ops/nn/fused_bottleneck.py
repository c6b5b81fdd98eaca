"""``FusedGhostBottleneck``: a Ghost bottleneck whose excitation and shortcut ride on the Ghost modules' passes."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..backends import choose
from ..backends.activation import activate
from . import _batch_norm
from ._batch_norm import BATCH
from ._structure import PLAIN_TENSORS, Half, Structure, Unfusable, refuse_input, refuse_now
from ._wrapper import Wrapper
from .bottleneck import GhostBottleneck
from .fused_ghost_module import FusedGhostModule, need_grad
from .fused_squeeze_excite import Excitation, FusedSqueezeExcite, _FusedSqueezeExcite
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

    In eval without gradients the first Ghost module returns the squeeze of its output as it writes it, the second
    applies the excitation as it reads and adds the shortcut as it writes. Otherwise (training, gradients, compilation,
    hooks between the parts) the parts run in turn, each fused on its own.

    ``FusedGhostBottleneck.wrap(block, BottleneckParts(...))`` takes the place of somebody else's block, whose Ghost
    modules and SE layer have been wrapped before.
    """

    _plain_class = GhostBottleneck
    _ghost_module = FusedGhostModule
    _squeeze_excite = FusedSqueezeExcite

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
            plan, excitation = self._route(x)
        except Unfusable:
            return self._plain(x)
        return _run(plan, excitation, x)

    def why(self, x: torch.Tensor) -> str:
        """How the block would run on an input such as x: as one, or its parts in turn, and then why."""
        if self.training:
            return "its parts in turn: it is in training mode"
        try:
            plan, _ = self._route(x)
        except Unfusable as reason:
            return f"its parts in turn: {reason}"
        return f"as one block, ghost1 by {plan.ghost1.why(x)}"

    def _route(self, x: torch.Tensor) -> tuple[_Plan, Excitation | None]:
        """The plan, and the excitation between the Ghost modules; raises ``Unfusable``."""
        why = refuse_now() or refuse_input(x)
        if why is not None:
            raise Unfusable(why)
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.get_autocast_dtype(x.device.type):
            raise Unfusable("autocast makes of its parts and of its shortcut different dtypes")
        plan = self._current_plan()
        _, ghost1, depthwise, se, ghost2, shortcut = plan
        choice = choose("ghost_module_eval", x)
        if choice.backend == "reference":
            raise Unfusable(str(choice))
        excitation = None if se is None else se.excitation(x)
        tensors = [t for half in (*depthwise, *shortcut) for t in half.tensors() if t is not None]
        if not all(type(t) in PLAIN_TENSORS for t in tensors):
            raise Unfusable("one of its parameters is no plain tensor")
        for half in (*depthwise, *shortcut):
            if _batch_norm.statistics(half.norm) is BATCH:
                raise Unfusable("one of its BatchNorms uses batch statistics")
        if torch.is_grad_enabled():
            tensors += [] if excitation is None else excitation[1:]
            if need_grad((x, *tensors, *ghost1.tensors(), *ghost2.tensors())):
                raise Unfusable("gradients are wanted")
        return plan, excitation


def _chain(halves: list[Half], x: torch.Tensor) -> torch.Tensor:
    """Convolutions with their BatchNorms folded in."""
    for half in halves:
        weight, bias = _batch_norm.folded(half)
        stride, padding, dilation, groups, _ = half.geometry
        x = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        x = activate(x, half.code, half.slope(), half.tensors()[6])
    return x


def _run(plan: _Plan, excitation: Excitation | None, x: torch.Tensor) -> torch.Tensor:
    _, ghost1, depthwise, _, ghost2, shortcut = plan
    scale = None
    if excitation is None or depthwise:
        y = _chain(depthwise, ghost1.run(x))
        scale = None if excitation is None else excitation(y.mean((2, 3)))
    else:
        y, squeeze = ghost1.run(x, return_squeeze=True)
        scale = excitation(squeeze)
    return ghost2.run(y, input_scale=scale, residual=_chain(shortcut, x))
