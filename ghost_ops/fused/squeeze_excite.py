"""``FusedSELayer`` and ``FusedSqueezeExcite``: squeeze-and-excite layers over ``functional.squeeze_excite``."""

from __future__ import annotations

import functools
from abc import ABCMeta
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.utils import _pair

from ..activations import (
    ACTIVATIONS,
    GATES,
    NONE,
    PRELU,
    WITH_SLOPES,
    Function,
    activate,
    apply_gate,
    code_of,
    slope_of,
)
from ..dispatch import Decision, plain, refuse_call, select
from ..nn import SELayer, SqueezeExcite
from ..ops.checks import autocast
from ..ops.excite import excite_operator
from ..ops.squeeze_excite import call_squeeze_excite
from ..ops.strides import as_matrix
from .behaviour import BuiltFused, plain_forward
from .block import Block, Reads, Route, _observers
from .builder import Builder
from .errors import NotNow, Unfusable
from .examples import conv_bn
from .ghost_recognition import skipped_reads
from .in_place import STATE
from .layers import LinearAct, activation_code, does_nothing, is_conv
from .numbers import NO_NUMBERS, Numbers, line_through, with_numbers
from .parameters import check_parameters
from .registry import register_block
from .structure import Structure

_AS_FAST = "without gradients, on a CPU, PyTorch's own operators are as fast"
_WITHOUT_SLOPES = tuple(code for code in range(len(ACTIVATIONS)) if code not in WITH_SLOPES)


@dataclass(frozen=True)
class SqueezeExciteParts:
    """The pieces of a squeeze-and-excite layer.

    Attributes:
        reduce, expand: paths of the two ``Linear`` or 1x1 ``Conv2d``.
        act: path of the activation between them, or None.
        gate: ``clamp``, ``hard_sigmoid``, ``sigmoid`` or ``identity``: not in a state_dict, so the recogniser says.
        others: paths of the further modules that a forward calls (pooling, gate): fused code skips them, so that they
            must carry no hooks.
        function: the activation where no module that is known computes it: a function that the forward calls, or
            somebody's own class.
        numbers: what the result of the second layer is multiplied by, and what is added to it, before a ``clamp``: 1/5
            and 0.5 of ``(x / 5 + 0.5).clamp(0, 1)``.
    """

    reduce: str
    expand: str
    act: str | None = None
    gate: str = "sigmoid"
    others: tuple[str, ...] = ()
    function: Function | None = None
    numbers: tuple[float, float] = NO_NUMBERS


class ExcitePlan(NamedTuple):
    structure: Structure
    reduce: nn.Module
    expand: nn.Module
    module: nn.Module | None  # the activation's
    act: int
    gate: int
    numbers: tuple[float, float]


class ExciteCall(NamedTuple):
    """What was decided for one call: the operator, the input as autocast wants it, weight and bias of both layers."""

    decision: Decision
    plan: ExcitePlan
    x: torch.Tensor
    tensors: tuple


@register_block
class SqueezeExciteBlock(Block):
    """A squeeze-and-excite layer: one operator, which saves in training what PyTorch's keep, or a part of a program.

    In inference on a CPU it gains nothing by itself: both read the map twice and write it once, and the check of a
    layer's children costs as much as the calls of its operators. There its own forward runs.
    """

    kind = "squeeze-and-excite"
    Parts = SqueezeExciteParts
    priority = 1
    autocast_dtypes = (torch.float32, torch.bfloat16)

    @classmethod
    def paths(cls, parts: SqueezeExciteParts, owner: str) -> list[str]:
        if parts.gate not in GATES:
            raise ValueError(f"{owner}: parts.gate: expected one of {', '.join(GATES)}, got {parts.gate!r}")
        return [path for path in (parts.reduce, parts.act, parts.expand, *parts.others) if path is not None]

    @classmethod
    def examples(cls) -> dict[str, Callable[[], nn.Module]]:
        return {
            "the article's": lambda: nn.Sequential(conv_bn(8, 16, act=nn.ReLU()), SELayer(16)),
            "timm's": lambda: nn.Sequential(conv_bn(8, 24, act=nn.Hardswish()), SqueezeExcite(24)),
        }

    @classmethod
    def match(cls, candidate: object) -> tuple[SqueezeExciteParts, Reads] | None:
        dense = [m for m in candidate.module.modules() if m._parameters and not isinstance(m, nn.PReLU)]
        if len(dense) != 2 or not all(map(_is_dense, dense)):
            return None
        reduce, expand = dense
        (hidden, channels), (back, other) = reduce.weight.shape[:2], expand.weight.shape[:2]
        if (channels, hidden) != (back, other):
            return None
        probe = candidate.probe(channels)
        try:
            theirs, calls = probe.observe()
        except Unfusable:
            return None  # some other two layers, for inputs of another kind
        at = [i for i, call in enumerate(calls) if _is_dense(call.module)]
        if len(at) != 2 or any(out.shape != probe.input.shape for out in theirs):
            return None
        probe.refuse()
        first, second = calls[at[0]], calls[at[1]]
        between = [call for call in calls[at[0] + 1 : at[1]] if not does_nothing(call.module)]
        known = code_of(between[0].module) if len(between) == 1 else None if between else NONE
        module = between[0].module if between and known is not None else None
        found = _fitting(probe, first, second, () if known is None else (known,), module)
        found = found or _fitting(probe, first, second, _WITHOUT_SLOPES)  # a function or an own class
        codes = _WITHOUT_SLOPES if known is None else (known, *_WITHOUT_SLOPES)
        if not found and not any(b.is_floating_point() for b in candidate.module.buffers()):  # which are drawn
            found = _lines(probe.input, theirs[1], first, second, codes, module)
        found = [way for way in found if probe.computes(_compose(first, second, *way, module), far=True)] or found
        gates = ", ".join(GATES)
        wrong = f"it does not compute a squeeze-and-excite of known activations with any of the gates {gates}"
        if not found or not probe.computes(_compose(first, second, *found[0], module)):
            raise Unfusable(probe.explain(wrong))
        code, gate, numbers = found[0]
        probe.confirm(_compose(first, second, *found[0], module), wrong, cls)
        act = between[0].path if between and code == known else None
        read = {first.path, second.path, act}
        others = tuple(dict.fromkeys(call.path for call in calls if call.path not in read))
        function = None if code == known else Function(ACTIVATIONS[code])
        parts = SqueezeExciteParts(first.path, second.path, act, gate, others, function, numbers)
        return parts, (*candidate.reads(probe), *skipped_reads(candidate.module, others))

    def forward(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled() and not _observers and type(x) is torch.Tensor and x.is_cpu:
            return plain_forward(module, x)
        return super().forward(module, x)

    def describe(self, module: nn.Module, structure: Structure) -> ExcitePlan:
        parts = self.parts_of(module)
        reduce, expand = structure.find(parts.reduce), structure.find(parts.expand)
        module = None if parts.act is None else structure.find(parts.act)
        act = activation_code(module)
        act = act if parts.function is None else ACTIVATIONS.index(parts.function.name)
        for path in parts.others:
            structure.find(path)
        for layer in (reduce, expand):
            if not (_is_dense(layer)):
                raise Unfusable(f"one of its layers is a {type(layer).__name__}, not a Linear or 1x1 Conv2d")
        return ExcitePlan(structure.close(), reduce, expand, module, act, GATES.index(parts.gate), parts.numbers)

    def route_without_program(self, module: nn.Module, x: torch.Tensor, why: str | None) -> Route:
        try:
            call = self.choose(module, x)
        except Unfusable as reason:
            return Route(plain(str(reason)), lambda: plain_forward(module, x))
        return Route(call.decision, lambda: execute(call, call.x, call.tensors))

    def choose(self, module: nn.Module, x: torch.Tensor) -> ExciteCall:
        """The operator for x now; raises ``Unfusable``."""
        why = refuse_call(x)
        if why is not None:
            raise NotNow(why)
        plan = self.current_plan(module)
        check_operator_takes(plan)
        (seen,) = autocast(x)
        tensors = _tensors(plan, seen)
        if tensors[0].shape[1] != x.shape[1]:
            raise NotNow(f"its input has {x.shape[1]} channels, its layers do not")
        decision = select("squeeze_excite", seen)
        if decision.is_reference:
            raise NotNow(decision.why)
        if x.is_cpu and not torch.is_grad_enabled():
            raise NotNow(_AS_FAST)
        return ExciteCall(decision, plan, seen, tensors)

    def tensors(self, module: nn.Module) -> tuple[torch.Tensor | None, ...]:
        """Weight and bias of both layers; raises ``Unfusable``."""
        plan = self.current_plan(module)
        return tuple(layer._parameters.get(name) for layer in (plan.reduce, plan.expand) for name in ("weight", "bias"))

    def excitation(self, module: nn.Module, squeeze: torch.Tensor) -> torch.Tensor:
        """The gate's values, N x C, of the means of the map; without gradients.

        Raises:
            NotNow: the operator does not take its activation.
        """
        plan = self.current_plan(module)
        check_operator_takes(plan)
        w1, b1, *second = self.tensors(module)
        w2, b2 = with_numbers(*second, plan.numbers)
        return excite_operator(squeeze, as_matrix(w1), b1, as_matrix(w2), b2, plan.act, plan.gate)

    def lower_excitation(self, module: nn.Module, builder: Builder) -> None:
        """Write the layer's step of a program, from the squeeze to the excitation.

        Raises:
            Unfusable: its children must be called.
        """
        _, reduce, expand, between, act, gate, numbers = self.current_plan(module)
        for part in (reduce, expand):
            if "weight" not in part._parameters:
                raise NotNow("the weight of one of its layers is not a parameter of its own")
        norm = None if numbers == NO_NUMBERS else Numbers(expand.weight, *numbers)
        builder.excite(
            expand.weight.shape[0], LinearAct(reduce, None, between, act), LinearAct(expand, norm, None, NONE), gate
        )


def check_operator_takes(plan: ExcitePlan) -> None:
    """Raises ``NotNow`` for an activation with slopes, which programs take and the operator does not."""
    if plan.act in WITH_SLOPES:
        raise NotNow(f"{ACTIVATIONS[plan.act]} between its layers is fused in programs only")


def execute(call: ExciteCall, x: torch.Tensor, tensors: tuple) -> torch.Tensor:
    """The layer's output for x, of these weights and biases."""
    w1, b1, w2, b2 = tensors
    plan = call.plan
    if plan.numbers is not NO_NUMBERS:
        w2, b2 = with_numbers(w2, b2, plan.numbers)
    return call_squeeze_excite(call.decision, x, as_matrix(w1), b1, as_matrix(w2), b2, plan.act, plan.gate)


def _tensors(plan: ExcitePlan, seen: torch.Tensor) -> tuple:
    """Weight and bias of both layers; refuses what PyTorch would refuse and what is not a plain tensor."""
    try:
        reduce, expand = plan.reduce._parameters, plan.expand._parameters
        tensors = w1, b1, w2, b2 = reduce["weight"], reduce["bias"], expand["weight"], expand["bias"]
    except KeyError as name:
        raise NotNow(f"{name} of one of its layers is not a parameter of its own") from None
    check_parameters(seen, tensors)
    (hidden, channels), ones = w1.shape[:2], (*w1.shape[2:], *w2.shape[2:])
    fit = w2.shape[:2] == (channels, hidden) and ones.count(1) == len(ones)
    if not fit or (b1 is not None and b1.shape != (hidden,)) or (b2 is not None and b2.shape != (channels,)):
        raise NotNow("its two layers do not fit each other")
    return tensors


def _is_dense(module: nn.Module) -> bool:
    """Whether it is a linear layer, or a convolution that is one on a single pixel."""
    if not is_conv(module):
        return type(module) is nn.Linear
    one = _pair(module.kernel_size) == _pair(module.stride) == (1, 1) and module.groups == 1
    return one and module.padding in ((0, 0), 0, "valid", "same")


Way = tuple[int, str, tuple[float, float]]  # code of the activation, gate, numbers before it


def _fitting(
    probe: object, reduce: object, expand: object, codes: tuple[int, ...], module: nn.Module | None = None
) -> list[Way]:
    """Each activation of these, with each gate, with which a layer of these two calls computes what is probed."""
    ways = ((code, gate, NO_NUMBERS) for code in codes for gate in GATES)
    return [way for way in ways if probe.computes(_compose(reduce, expand, *way, module))]


def _lines(
    x: torch.Tensor, out: torch.Tensor, reduce: object, expand: object, codes: tuple[int, ...], module: nn.Module | None
) -> list[Way]:
    """Each activation of these with which the factor of every map is a line of the logits, between 0 and 1.

    Args:
        x, out: what the layer was run on, and what came out in eval.
    """
    found = []
    with torch.no_grad():
        factors = (out * x).sum((2, 3)) / (x * x).sum((2, 3))
        for code in codes:
            numbers = line_through(_logits(reduce.module, expand.module, code, module, x).double(), factors.double())
            found += [] if numbers is None else [(code, "clamp", numbers)]
    return found


def _logits(
    reduce: nn.Module, expand: nn.Module, act: int, module: nn.Module | None, x: torch.Tensor
) -> torch.Tensor:  # fmt: skip
    """What the gate is computed of; ``module`` has the activation's slopes."""

    def dense(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, layer.weight.flatten(1), layer.bias)

    slope, weight = slope_of(module, act), module.weight if act == PRELU else None
    return dense(expand, activate(dense(reduce, x.mean((2, 3))), act, slope, weight))


def _compose(
    reduce: object, expand: object, act: int, gate: str, numbers: tuple[float, float], module: nn.Module | None = None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A squeeze-and-excite put together from the calls of its two layers."""
    scale, shift = numbers

    def run(x: torch.Tensor) -> torch.Tensor:
        logits = _logits(reduce.module, expand.module, act, module, x)
        logits = logits if numbers == NO_NUMBERS else logits * scale + shift
        return x * apply_gate(logits, GATES.index(gate))[:, :, None, None]

    return run


class FusedSELayer(BuiltFused, SqueezeExciteBlock.behaviour, SELayer, metaclass=ABCMeta):
    """Squeeze-and-excite in one operator, forward and backward: constructor and state_dict of :class:`SELayer`.

    Where the operator does not serve it runs as plain PyTorch: :meth:`why` says so. Somebody's own layer that
    ``ghost_ops.fuse`` has fused counts as an instance too.
    """

    behaviour = SqueezeExciteBlock.behaviour
    plain_type = SELayer

    @functools.wraps(SELayer.__init__)
    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__[STATE] = SqueezeExciteBlock()

    def parts(self) -> SqueezeExciteParts:
        """Return the paths of its pieces."""
        return SqueezeExciteParts("fc.0", "fc.2", "fc.1", gate="clamp", others=("avg_pool",))


class FusedSqueezeExcite(BuiltFused, SqueezeExciteBlock.behaviour, SqueezeExcite, metaclass=ABCMeta):
    """The same for :class:`SqueezeExcite`: its constructor and state_dict over one operator."""

    behaviour = SqueezeExciteBlock.behaviour
    plain_type = SqueezeExcite

    @functools.wraps(SqueezeExcite.__init__)
    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__[STATE] = SqueezeExciteBlock()

    def parts(self) -> SqueezeExciteParts:
        """Return the paths of its pieces."""
        return SqueezeExciteParts("conv_reduce", "conv_expand", "act1", gate="hard_sigmoid")
