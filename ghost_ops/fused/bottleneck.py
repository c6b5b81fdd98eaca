"""``FusedGhostBottleneck``: a Ghost bottleneck as one operator call in inference, and of fused parts in training."""

from __future__ import annotations

import functools
from abc import ABCMeta
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import nn

from ..dispatch import Decision, fuses_epilogues, refuse_autocast, refuse_call, select
from ..nn import GhostBottleneck, GhostBottleneckV2, GhostBottleneckV3
from ..ops.program_train import MEMORY
from . import recompute
from .behaviour import BuiltFused, block_of, plain_forward
from .block import Block, Reads, Route, any_requires_grad
from .builder import Builder
from .convolutions import ConvCall, decide_convolution, run_convolution
from .errors import NotNow, Unfusable
from .examples import YoloGhostBottleneck, merged
from .ghost_module import FusedGhostModule, GhostModuleBlock, with_epilogues
from .in_place import STATE
from .layers import ConvBNAct, is_activation, is_conv, is_norm
from .registry import register_block
from .squeeze_excite import FusedSqueezeExcite, SqueezeExciteBlock, check_operator_takes
from .structure import Structure


@dataclass(frozen=True)
class BottleneckParts:
    """The pieces of a Ghost bottleneck.

    Attributes:
        ghost1, ghost2: paths of the two Ghost modules.
        depthwise: paths of what stands between them before the SE layer, in order: convolutions, BatchNorms,
            activations, or ``Sequential`` of these (an empty one counts as nothing).
        se: path of the squeeze-and-excite layer, or None.
        shortcut: paths as in ``depthwise``; none, or only empty ``Sequential``: the identity.
    """

    ghost1: str
    ghost2: str
    depthwise: tuple[str, ...] = ()
    se: str | None = None
    shortcut: tuple[str, ...] = ()


class BottleneckPlan(NamedTuple):
    structure: Structure
    ghost1: nn.Module
    depthwise: list[ConvBNAct]
    se: nn.Module | None
    ghost2: nn.Module
    shortcut: list[ConvBNAct]


@register_block
class BottleneckBlock(Block):
    """A Ghost bottleneck: a program, or its parts one after the other.

    Attributes:
        memory: what is kept for the backward: ``"balanced"``, ``"low"`` or ``"fast"``.
    """

    kind = "Ghost bottleneck"
    trains_as_program = True
    Parts = BottleneckParts
    holds_blocks = True
    autocast_dtypes = (torch.bfloat16,)  # under autocast a block is fused only where its input has autocast's dtype
    memory = "balanced"

    @property
    def recomputes(self) -> bool:
        return self.memory == "low"

    @classmethod
    def examples(cls) -> dict[str, Callable[[], nn.Module]]:
        return {
            "v1": lambda: GhostBottleneck(12, 24, 12),
            "stride 2, squeeze-and-excite": lambda: GhostBottleneck(8, 20, 14, 5, 2, 0.25),
            "YOLO's": lambda: YoloGhostBottleneck(12, 12),
            "YOLO's, stride 2": lambda: YoloGhostBottleneck(8, 16, stride=2),
            "V3, re-parameterised": lambda: merged(GhostBottleneckV3(12, 24, 12, stride=2, se_ratio=0.25)),
            "V2": lambda: GhostBottleneckV2(12, 24, 12),
        }

    @classmethod
    def match(cls, candidate: object) -> tuple[BottleneckParts, Reads] | None:
        units = candidate.blocks
        ghosts = [path for path, block in units.items() if issubclass(block, GhostModuleBlock)]
        if len(ghosts) != 2:
            return None
        for path, child in candidate.module.named_modules():
            inside = any(f"{path}.".startswith(f"{unit}.") for unit in units)
            if not (inside or child._modules or is_conv(child) or is_norm(child) or is_activation(child)):
                return None
        try:
            probe = candidate.probe(candidate.piece(ghosts[0], "primary_conv").in_channels)
            _, calls = probe.observe()
        except Unfusable:
            return None  # a stem and two Ghost modules, say: the Ghost modules are fused on their own
        at = [i for i, call in enumerate(calls) if call.path in ghosts]
        if len(at) != 2:
            return None
        first, last = at
        between = calls[first + 1 : last]
        ends_in_se = bool(between) and units.get(between[-1].path) is SqueezeExciteBlock
        se = between.pop() if ends_in_se else None
        around = calls[:first] + calls[last + 1 :]
        if any(call.path in units for call in (*between, *around)):
            return None

        def chain(x: torch.Tensor, *calls: object | None) -> torch.Tensor:
            for call in calls:
                x = x if call is None else call.module(x)
            return x

        def compose(x: torch.Tensor) -> torch.Tensor:
            return chain(x, calls[first], *between, se, calls[last]) + chain(x, *around)

        wrong = "it does not compute a Ghost bottleneck; what is inside is fused on its own"
        probe.confirm(compose, wrong, cls)
        parts = BottleneckParts(
            calls[first].path,
            calls[last].path,
            tuple(call.path for call in between),
            None if se is None else se.path,
            tuple(call.path for call in around),
        )
        return parts, candidate.reads(probe)

    def describe(self, module: nn.Module, structure: Structure) -> BottleneckPlan:
        parts = self.parts_of(module)
        ghost1, ghost2 = structure.find(parts.ghost1), structure.find(parts.ghost2)
        se = None if parts.se is None else structure.find(parts.se)
        for child in (ghost1, ghost2):
            if not isinstance(block_of(child), GhostModuleBlock):
                raise Unfusable(f"expected FusedGhostModule children, found a {type(child).__name__}")
        if se is not None and not isinstance(block_of(se), SqueezeExciteBlock):
            raise Unfusable(f"expected a fused squeeze-and-excite layer, found a {type(se).__name__}")
        depthwise, shortcut = structure.conv_bn_acts(parts.depthwise), structure.conv_bn_acts(parts.shortcut)
        return BottleneckPlan(structure.close(), ghost1, depthwise, se, ghost2, shortcut)

    def route_without_program(self, module: nn.Module, x: torch.Tensor, why: str | None) -> Route:
        reasons: tuple[str, ...] = ()
        if not torch.compiler.is_compiling():
            reasons = ("it is in training mode" if why is None else why,)
            if self.memory == "low":
                try:
                    return self._recompute_route(module, x)
                except Unfusable as reason:
                    reasons = (*reasons, f"it keeps what is inside for the backward, since {reason}")
            if not module.training:
                try:
                    return self._fused_epilogue_route(module, x, reasons)
                except Unfusable:
                    pass
        return self._sequential_route(module, x, reasons)

    def decision_of_program(self, decision: Decision) -> Decision:
        return _as_one_block(decision)

    def _sequential_route(self, module: nn.Module, x: torch.Tensor, reasons: tuple[str, ...]) -> Route:
        """The parts one after the other, each fused on its own; by the module's forward where it must be called."""
        try:
            why = refuse_call(x) or refuse_autocast(x)
            if why is not None:
                raise NotNow(why)
            plan = self.current_plan(module)
        except Unfusable as reason:
            why = str(reason)
            reasons = reasons if why in reasons else (*reasons, why)
            return Route(_one_decision((), reasons), lambda: plain_forward(module, x))
        _, ghost1, depthwise, se, ghost2, shortcut = plan
        calls = [decide_convolution(layer, x) for layer in (*depthwise, *shortcut)]
        between, around = calls[: len(depthwise)], calls[len(depthwise) :]

        def run() -> torch.Tensor:
            inner = ghost1._ghost_ops.forward(ghost1, x)
            for call in between:
                inner = run_convolution(call, inner)
            if se is not None:
                inner = se._ghost_ops.forward(se, inner)
            out, residual = ghost2._ghost_ops.forward(ghost2, inner), x
            for call in around:
                residual = run_convolution(call, residual)
            return out + residual

        return Route(_parts_decision((), (*between, *around), reasons), run)

    def _recompute_route(self, module: nn.Module, x: torch.Tensor) -> Route:
        """The parts one after the other, of which autograd keeps the block's input only; raises ``Unfusable``."""
        call = recompute.prepare(self.current_plan(module), x) if torch.is_grad_enabled() else None
        if call is None or not any_requires_grad((x, *call.tensors)):
            raise NotNow("no gradients are wanted")
        decision = _parts_decision(("computed again in the backward",), (*call.depthwise, *call.shortcut), ())
        return Route(decision, lambda: recompute.run_recomputed(call, x))

    def _fused_epilogue_route(self, module: nn.Module, x: torch.Tensor, reasons: tuple[str, ...]) -> Route:
        """Without gradients on a device that has no ``program_eval``: a call for each Ghost module, whose passes take
        in squeeze, excitation and shortcut. Raises ``Unfusable`` where the parts must be called."""
        why = refuse_call(x)
        if why is not None:
            raise NotNow(why)
        plan = self.current_plan(module)
        _, ghost1, depthwise, se, ghost2, shortcut = plan
        if not fuses_epilogues(select("ghost_module", x)):
            raise NotNow("its backend has no fused epilogue for squeeze, excitation and shortcut")
        if torch.is_autocast_enabled(x.device.type):
            raise NotNow("autocast makes of its parts and of its shortcut different dtypes")
        if any_requires_grad((x, *module.parameters())):
            raise NotNow("gradients are wanted")
        if se is not None:
            check_operator_takes(se._ghost_ops.current_plan(se))
        between = [decide_convolution(layer, x) for layer in depthwise]
        around = [decide_convolution(layer, x) for layer in shortcut]

        def run() -> torch.Tensor:
            squeezed = se is not None and not depthwise
            found = with_epilogues(ghost1, x, return_squeeze=squeezed)
            inner, squeeze = found if squeezed else (found, None)
            for call in between:
                inner = run_convolution(call, inner)
            excitation, residual = None, x
            if se is not None:
                squeeze = inner.mean((2, 3)) if squeeze is None else squeeze
                excitation = se._ghost_ops.excitation(se, squeeze)
            for call in around:
                residual = run_convolution(call, residual)
            return with_epilogues(ghost2, inner, input_scale=excitation, residual=residual)

        how = ("with squeeze, excitation and shortcut in the passes of the Ghost modules",)
        return Route(_parts_decision(how, (*between, *around), reasons), run)

    def channels(self, module: nn.Module) -> int:
        ghost1 = self.current_plan(module).ghost1
        return ghost1._ghost_ops.channels(ghost1)

    def lower_module(
        self, module: nn.Module, builder: Builder, source: int, *, keep_source: bool = False
    ) -> int:  # fmt: skip
        _, ghost1, depthwise, se, ghost2, shortcut = self.current_plan(module)
        excites = se is not None
        squeeze = excites and not depthwise
        expanded = ghost1._ghost_ops.lower_module(ghost1, builder, source, keep_source=True, squeeze=squeeze)
        inner = builder.chain(depthwise, expanded, squeeze=excites)
        if inner != expanded:
            builder.release(expanded)
        if se is not None:
            se._ghost_ops.lower_excitation(se, builder)
        residual = builder.chain(shortcut, source)
        options = {"residual": residual, "scaled": excites}
        out = ghost2._ghost_ops.lower_module(ghost2, builder, inner, keep_source=True, **options)
        builder.release(*{source, inner, residual} - ({source} if keep_source else set()))
        return out

    def plans(self, module: nn.Module) -> tuple:
        plan = self.current_plan(module)
        parts = (plan.ghost1, plan.ghost2) if plan.se is None else (plan.ghost1, plan.ghost2, plan.se)
        return plan, *[part._ghost_ops.current_plan(part) for part in parts]


@functools.cache
def _as_one_block(decision: Decision) -> Decision:
    return replace(decision, runs=f"as one block, by {decision.runs}")


@functools.lru_cache(maxsize=256)
def _one_decision(how: tuple[str, ...], reasons: tuple[str, ...]) -> Decision:
    return Decision(", ".join(("its parts in turn", *how)), "reference", None, reasons)


def _parts_decision(how: tuple[str, ...], calls: tuple[ConvCall, ...], reasons: tuple[str, ...]) -> Decision:
    """The decision that the parts run one after the other, with what runs the convolutions between them."""
    for call in calls:
        if call.decision is not None and call.decision.runs not in how:
            how = (*how, call.decision.runs)
        elif call.reason is not None:
            reason = f"its depthwise convolutions are plain PyTorch: {call.reason}"
            reasons = reasons if reason in reasons else (*reasons, reason)
    # the compiler does not look into caches
    return (_one_decision.__wrapped__ if torch.compiler.is_compiling() else _one_decision)(how, reasons)


def check_memory(owner: str, value: object) -> None:
    """Raises ValueError where ``value`` is not something that a block can keep for the backward."""
    if value not in MEMORY:
        raise ValueError(f"{owner}: memory: expected one of {', '.join(MEMORY)}, got {value!r}")


class FusedGhostBottleneck(BuiltFused, BottleneckBlock.behaviour, GhostBottleneck, metaclass=ABCMeta):
    """Ghost bottleneck over the fused operators: constructor, parameters and state_dict of :class:`GhostBottleneck`.

    In eval without gradients the block is one call: ghost1, depthwise convolution, squeeze in passing, excitation into
    ghost2's weights, shortcut added in passing. On a CUDA device the Ghost modules are a call each, whose passes take
    in squeeze, excitation and shortcut. Otherwise (training, gradients, compilation, hooks between the parts) the parts
    run one after the other, each fused on its own.

    A block of another class that ``ghost_ops.fuse`` has fused counts as an instance too.

    Args:
        memory: what the block keeps for the backward: ``"balanced"``, what its fused parts need; ``"low"``, its input
            only, and recomputes the rest in the backward.
    """

    behaviour = BottleneckBlock.behaviour
    plain_type = GhostBottleneck
    __jit_unused_properties__ = ["memory"]
    _ghost_module = FusedGhostModule
    _squeeze_excite = FusedSqueezeExcite

    def __init__(self, *args: object, memory: str = "balanced", **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__[STATE] = BottleneckBlock()
        self.memory = memory

    @property
    def memory(self) -> str:
        """What the block keeps for the backward: ``"balanced"`` or ``"low"``."""
        return self._ghost_ops.memory

    @memory.setter
    def memory(self, value: str) -> None:
        check_memory(type(self).__name__, value)
        self._ghost_ops.memory = value

    def parts(self) -> BottleneckParts:
        """Return the paths of its pieces."""
        depthwise = () if self.conv_dw is None else ("conv_dw", "bn_dw")
        return BottleneckParts("ghost1", "ghost2", depthwise, None if self.se is None else "se", ("shortcut",))
