"""``FusedSELayer`` and ``FusedSqueezeExcite``: squeeze-and-excite layers over ``functional.squeeze_excite``."""

from __future__ import annotations

import functools
from abc import ABCMeta
from typing import NamedTuple

import torch
from torch import nn

from ..activations import ACTIVATIONS, GATES, NONE, WITH_SLOPES
from ..dispatch import PLAIN_TENSORS, Decision, plain, refuse_call, select
from ..ops import squeeze_excite as operator
from ..ops.checks import autocast
from ._fused import BuiltFused, Fused, plain_forward
from ._in_place import STATE
from ._program import Builder, Dense
from ._runner import Route, Runner
from ._structure import NotNow, Structure, Unfusable
from .parts import SqueezeExciteParts
from .squeeze_excite import SELayer, SqueezeExcite


class _Plan(NamedTuple):
    structure: Structure
    reduce: nn.Module
    expand: nn.Module
    act: int
    gate: int


class ExciteCall(NamedTuple):
    """What was decided for one call: the operator, the input as autocast wants it, weight and bias of both layers."""

    decision: Decision
    plan: _Plan
    x: torch.Tensor
    tensors: tuple


class SqueezeExciteRunner(Runner):
    """Runs a squeeze-and-excite layer by one operator."""

    part_type = SqueezeExciteParts

    @classmethod
    def paths(cls, parts: SqueezeExciteParts, owner: str) -> list[str]:
        if parts.gate not in GATES:
            raise ValueError(f"{owner}: parts.gate: expected one of {', '.join(GATES)}, got {parts.gate!r}")
        return [path for path in (parts.reduce, parts.act, parts.expand, *parts.others) if path is not None]

    def describe(self, module: nn.Module, structure: Structure) -> _Plan:
        parts = self.parts_of(module)
        reduce, expand = structure.find(parts.reduce), structure.find(parts.expand)
        act = structure.activation(None if parts.act is None else structure.find(parts.act))
        for path in parts.others:
            structure.find(path)
        for layer in (reduce, expand):
            if not (type(layer) is nn.Linear or (type(layer) is nn.Conv2d and _is_pointwise(layer))):
                raise Unfusable(f"one of its layers is a {type(layer).__name__}, not a Linear or 1x1 Conv2d")
        if act in WITH_SLOPES:
            raise Unfusable(f"the operator does not take {ACTIVATIONS[act]} inside")
        return _Plan(structure.close(), reduce, expand, act, GATES.index(parts.gate))

    def route(self, module: nn.Module, x: torch.Tensor) -> Route:
        try:
            call = self.choose(module, x)
        except Unfusable as reason:
            why = str(reason)
            return Route(plain(why), lambda: plain_forward(module, x))
        return Route(call.decision, lambda: execute(call, call.x, call.tensors))

    def choose(self, module: nn.Module, x: torch.Tensor) -> ExciteCall:
        """The operator for x now; raises ``Unfusable``."""
        why = refuse_call(x)
        if why is not None:
            raise NotNow(why)
        plan = self.current_plan(module)
        tensors = _tensors(plan, x)
        if tensors[0].shape[1] != x.shape[1]:
            raise NotNow(f"its input has {x.shape[1]} channels, its layers do not")
        (seen,) = autocast(x)
        decision = select("squeeze_excite", seen)
        if decision.backend == "reference":
            raise NotNow(decision.why)
        return ExciteCall(decision, plan, seen, tensors)

    def tensors(self, module: nn.Module) -> tuple[torch.Tensor | None, ...]:
        """Weight and bias of both layers; raises ``Unfusable``."""
        plan = self.current_plan(module)
        return tuple(layer._parameters.get(name) for layer in (plan.reduce, plan.expand) for name in ("weight", "bias"))

    def excitation(self, module: nn.Module, squeeze: torch.Tensor) -> torch.Tensor:
        """The gate's values, N x C, of the means of the map; without gradients."""
        plan = self.current_plan(module)
        w1, b1, w2, b2 = self.tensors(module)
        return operator.excite_operator(squeeze, w1.flatten(1), b1, w2.flatten(1), b2, plan.act, plan.gate)

    def build(self, module: nn.Module, builder: Builder) -> None:
        """Write the layer's step of a program, from the squeeze to the excitation.

        Raises:
            Unfusable: its children must be called.
        """
        _, reduce, expand, act, gate = self.current_plan(module)
        for part in (reduce, expand):
            if "weight" not in part._parameters:
                raise NotNow("the weight of one of its layers is not a parameter of its own")
        builder.excite(expand.weight.shape[0], Dense(reduce, None, None, act), Dense(expand, None, None, NONE), gate)


def execute(call: ExciteCall, x: torch.Tensor, tensors: tuple) -> torch.Tensor:
    """The layer's output for x, of these weights and biases."""
    w1, b1, w2, b2 = tensors
    plan = call.plan
    return operator.run(call.decision, x, w1.flatten(1), b1, w2.flatten(1), b2, plan.act, plan.gate)


def _tensors(plan: _Plan, x: torch.Tensor) -> tuple:
    """Weight and bias of both layers; refuses what PyTorch would refuse and what is not a plain tensor."""
    try:
        reduce, expand = plan.reduce._parameters, plan.expand._parameters
        tensors = w1, b1, w2, b2 = reduce["weight"], reduce["bias"], expand["weight"], expand["bias"]
    except KeyError as name:
        raise NotNow(f"{name} of one of its layers is not a parameter of its own") from None
    widened = torch.is_autocast_enabled(x.device.type)
    compiling = torch.compiler.is_compiling()
    for t in tensors:
        if t is None:
            continue
        if not compiling and type(t) not in PLAIN_TENSORS:
            raise NotNow(f"one of its parameters is a {type(t).__name__}, not a plain tensor")
        if t.dtype is not x.dtype and not (widened and t.dtype is torch.float32):
            raise NotNow(f"its input is {x.dtype}, one of its parameters {t.dtype}")
        if t.device != x.device:
            raise NotNow(f"its input is on {x.device}, one of its parameters on {t.device}")
    (hidden, channels), ones = w1.shape[:2], (*w1.shape[2:], *w2.shape[2:])
    fit = w2.shape[:2] == (channels, hidden) and ones.count(1) == len(ones)
    if not fit or (b1 is not None and b1.shape != (hidden,)) or (b2 is not None and b2.shape != (channels,)):
        raise NotNow("its two layers do not fit each other")
    return tensors


def _is_pointwise(conv: nn.Conv2d) -> bool:
    one = conv.kernel_size in ((1, 1), 1) and conv.stride in ((1, 1), 1) and conv.groups == 1
    return one and conv.padding in ((0, 0), 0, "valid", "same")


class FusedExcite(Fused):
    """The behaviour of a fused squeeze-and-excite layer."""

    runner_type = SqueezeExciteRunner


class FusedSELayer(BuiltFused, FusedExcite, SELayer, metaclass=ABCMeta):
    """Squeeze-and-excite in one operator, forward and backward: constructor and state_dict of :class:`SELayer`.

    Where the operator does not serve it runs as plain PyTorch: :meth:`why` says so. Somebody's own layer that
    ``ghost_ops.fuse`` has fused counts as an instance too.
    """

    behaviour = FusedExcite
    plain_type = SELayer

    @functools.wraps(SELayer.__init__)
    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__[STATE] = SqueezeExciteRunner()


class FusedSqueezeExcite(BuiltFused, FusedExcite, SqueezeExcite, metaclass=ABCMeta):
    """As :class:`FusedSELayer`, with the constructor and state_dict of :class:`SqueezeExcite`."""

    behaviour = FusedExcite
    plain_type = SqueezeExcite

    @functools.wraps(SqueezeExcite.__init__)
    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__[STATE] = SqueezeExciteRunner()
