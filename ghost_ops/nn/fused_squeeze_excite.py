"""``FusedSELayer`` and ``FusedSqueezeExcite``: squeeze-and-excite layers over ``functional.squeeze_excite``."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from .. import functional
from ..backends import choose
from ..backends.activation import ACTIVATIONS, GATES, LEAKY_RELU, NONE, PRELU
from ..ops.squeeze_excite import excite_operator
from ._program import Builder, Dense
from ._structure import PLAIN_TENSORS, Structure, Unfusable, refuse_input, refuse_now
from ._wrapper import Wrapper
from .parts import SqueezeExciteParts
from .squeeze_excite import SELayer, SqueezeExcite

_OP = "squeeze_excite"


class _Plan(NamedTuple):
    structure: Structure
    reduce: nn.Module
    expand: nn.Module
    act: int
    gate: int


class _FusedSqueezeExcite(Wrapper):
    @staticmethod
    def _paths(parts: object) -> list[str]:
        if not isinstance(parts, SqueezeExciteParts):
            raise TypeError(f"FusedSELayer.wrap: parts: expected SqueezeExciteParts, got {type(parts).__name__}")
        if parts.gate not in GATES:
            raise ValueError(f"FusedSELayer.wrap: parts.gate: expected one of {', '.join(GATES)}, got {parts.gate!r}")
        return [path for path in (parts.reduce, parts.act, parts.expand, *parts.others) if path is not None]

    def _describe(self) -> _Plan:
        parts, structure = self.parts(), Structure(self)
        reduce, expand = structure.find(parts.reduce), structure.find(parts.expand)
        act = structure.activation(None if parts.act is None else structure.find(parts.act))
        for path in parts.others:
            structure.find(path)
        for layer in (reduce, expand):
            if not (type(layer) is nn.Linear or (type(layer) is nn.Conv2d and _is_pointwise(layer))):
                raise Unfusable(f"one of its layers is a {type(layer).__name__}, not a Linear or 1x1 Conv2d")
        if act in (PRELU, LEAKY_RELU):
            raise Unfusable(f"the operator does not take {ACTIVATIONS[act]} inside")
        return _Plan(structure.close(), reduce, expand, act, GATES.index(parts.gate))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        try:
            plan, tensors = self._route(x)
        except Unfusable:
            return self._plain(x)
        return functional.squeeze_excite(x, *tensors, act=ACTIVATIONS[plan.act], gate=GATES[plan.gate])

    def why(self, x: torch.Tensor) -> str:
        """Which backend would run on an input such as x; if not the operator, why not."""
        try:
            self._route(x)
        except Unfusable as reason:
            return f"plain PyTorch: {reason}"
        return f"{_OP} on {choose(_OP, x)}"

    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """Weight and bias of both layers; raises ``Unfusable``."""
        plan = self._current_plan()
        return tuple(layer._parameters.get(name) for layer in (plan.reduce, plan.expand) for name in ("weight", "bias"))

    def excitation(self, squeeze: torch.Tensor) -> torch.Tensor:
        """The gate's values, N x C, of means that are there already; without gradients."""
        plan = self._current_plan()
        w1, b1, w2, b2 = self.tensors()
        return excite_operator(squeeze, w1.flatten(1), b1, w2.flatten(1), b2, plan.act, plan.gate)

    def build(self, builder: Builder) -> None:
        """Write its step of a program, from the squeeze to the excitation.

        Raises:
            Unfusable: its children must be called.
        """
        _, reduce, expand, act, gate = self._current_plan()
        for part in (reduce, expand):
            if "weight" not in part._parameters:
                raise Unfusable("the weight of one of its layers is no parameter of its own")
        builder.excite(expand.weight.shape[0], Dense(reduce, None, None, act), Dense(expand, None, None, NONE), gate)

    def _route(self, x: torch.Tensor) -> tuple[_Plan, tuple]:
        compiling = torch.compiler.is_compiling()
        why = refuse_now() or (None if compiling else refuse_input(x))
        if why is not None:
            raise Unfusable(why)
        plan = self._current_plan()
        tensors = _tensors(plan, x)
        if tensors[0].shape[1] != x.shape[1]:
            raise Unfusable(f"its input has {x.shape[1]} channels, its layers do not")
        choice = choose(_OP, x)
        if choice.backend == "reference":
            raise Unfusable(str(choice))
        return plan, tensors


def _tensors(plan: _Plan, x: torch.Tensor) -> tuple:
    """Weight and bias of both layers; refuses what PyTorch would refuse and what is no plain tensor."""
    try:
        tensors = tuple(layer._parameters[name] for layer in (plan.reduce, plan.expand) for name in ("weight", "bias"))
    except KeyError as name:
        raise Unfusable(f"{name} of one of its layers is no parameter of its own") from None
    widened = torch.is_autocast_enabled(x.device.type)
    for t in tensors:
        if t is None:
            continue
        if not torch.compiler.is_compiling() and type(t) not in PLAIN_TENSORS:
            raise Unfusable(f"one of its parameters is a {type(t).__name__}, not a plain tensor")
        if t.dtype is not x.dtype and not (widened and t.dtype is torch.float32):
            raise Unfusable(f"its input is {x.dtype}, one of its parameters {t.dtype}")
        if t.device != x.device:
            raise Unfusable(f"its input is on {x.device}, one of its parameters on {t.device}")
    if tensors[0].shape[:2] != tensors[2].shape[1::-1]:
        raise Unfusable("its two layers do not fit each other")
    return tensors


def _is_pointwise(conv: nn.Conv2d) -> bool:
    one = conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.groups == 1
    return one and conv.padding in ((0, 0), "valid", "same")


class FusedSELayer(_FusedSqueezeExcite, SELayer):
    """Squeeze-and-excite in one operator, forward and backward: constructor and state_dict of :class:`SELayer`.

    ``FusedSELayer.wrap(module, SqueezeExciteParts(...))`` takes the place of somebody else's layer, whatever its gate.
    Where the operator does not serve it runs as plain PyTorch: :meth:`why` says so.
    """

    _plain_class = SELayer


class FusedSqueezeExcite(_FusedSqueezeExcite, SqueezeExcite):
    """As :class:`FusedSELayer`, with the constructor and state_dict of :class:`SqueezeExcite`."""

    _plain_class = SqueezeExcite
