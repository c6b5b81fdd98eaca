"""``FusedGhostModule``: a Ghost module whose convolutions, BatchNorms, activations and concatenation run fused."""

from __future__ import annotations

import functools
from abc import ABCMeta
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .. import functional
from ..activations import ACTIVATIONS, Function
from ..dispatch import Decision, forced, plain, refuse_call, select
from ..nn import GhostModule
from ..nn.running_statistics import update_all
from ..ops import ghost_module_train as training
from ..ops.checks import autocast
from ..ops.ghost_module import ghost_module_eval_operator
from . import batch_norm
from .batch_norm import ABSENT, BATCH, RUNNING
from .behaviour import BuiltFused, plain_forward
from .block import Block, Reads, Route, any_requires_grad
from .builder import Builder
from .errors import NotNow, Unfusable
from .ghost_recognition import recognise
from .in_place import STATE
from .layers import ConvBNAct, gather
from .parameters import check_parameters
from .registry import register_block
from .structure import Structure

EVAL, FOLDED, TRAIN, TAIL = "ghost_module_eval", "ghost_module", "ghost_module_train", "cheap_concat"
_NO_TENSORS = (None,) * 7


@dataclass(frozen=True)
class GhostParts:
    """The pieces of a Ghost module.

    Attributes:
        primary_conv: path of the primary ``Conv2d``.
        primary_norm: path of the ``BatchNorm2d`` after it, or None.
        primary_act: path of its activation, or None; an empty ``Sequential`` or an ``Identity`` counts as none.
        cheap_conv: path of the depthwise ``Conv2d``, or None: ratio 1, a plain convolution.
        cheap_norm, cheap_act: as for the primary layer.
        out_channels: channels kept of the concatenation; None keeps all.
        primary_function, cheap_function: the activation where no module that is known computes it: a function that the
            forward calls, or somebody's own class.
        others: paths of the further modules that the forward calls, such as that class: fused code skips them, so that
            they must carry no hooks.
    """

    primary_conv: str
    primary_norm: str | None = None
    primary_act: str | None = None
    cheap_conv: str | None = None
    cheap_norm: str | None = None
    cheap_act: str | None = None
    out_channels: int | None = None
    primary_function: Function | None = None
    cheap_function: Function | None = None
    others: tuple[str, ...] = ()


class GhostPlan(NamedTuple):
    structure: Structure
    primary: ConvBNAct
    cheap: ConvBNAct | None
    out_channels: int | None
    pointwise: bool
    entries: tuple  # dictionary and name of each tensor that the operators read, None where there is none
    norms: tuple
    decided: list  # what was decided for the last call, see GhostModuleBlock.choose


class GhostCall(NamedTuple):
    """What was decided for one call of a Ghost module.

    Attributes:
        decision: the operator and its backend.
        plan: what was read from the module.
        x: the input as autocast wants it.
        tensors: parameters and statistics, seven for each convolution (see ``ConvBNAct.tensors``).
        numbers: slopes of the two activations, and eps of the two BatchNorms; 0 where there is none.
    """

    decision: Decision
    plan: GhostPlan
    x: torch.Tensor
    tensors: tuple
    numbers: tuple[float, float, float, float]


@register_block
class GhostModuleBlock(Block):
    """A Ghost module: one of four operators, or a program of one step."""

    kind = "Ghost module"
    trains_as_program = True
    Parts = GhostParts

    @classmethod
    def match(cls, candidate: object) -> tuple[GhostParts, Reads] | None:
        return recognise(cls, candidate)

    def describe(self, module: nn.Module, structure: Structure) -> GhostPlan:
        parts = self.parts_of(module)
        for path in parts.others:
            structure.find(path)
        layer = structure.conv_bn_act
        primary = layer(parts.primary_conv, parts.primary_norm, parts.primary_act, parts.primary_function)
        cheap = None
        if parts.cheap_conv is not None:
            cheap = layer(parts.cheap_conv, parts.cheap_norm, parts.cheap_act, parts.cheap_function)
            if not cheap.is_cheap(primary.conv.out_channels):
                raise Unfusable(cheap.why_not_cheap(primary.conv.out_channels))
        entries = (*primary.entries(), *(_NO_TENSORS if cheap is None else cheap.entries()))
        norms = tuple(layer.norm for layer in (primary, cheap) if layer is not None and layer.norm is not None)
        pointwise = primary.is_pointwise()
        return GhostPlan(structure.close(), primary, cheap, parts.out_channels, pointwise, entries, norms, [])

    def route_without_program(self, module: nn.Module, x: torch.Tensor, why: str | None) -> Route:
        try:
            call = self.choose(module, x)
        except Unfusable as reason:
            why = str(reason)
            return Route(plain(why), lambda: plain_forward(module, x))
        return Route(call.decision, lambda: execute(call))

    def channels(self, module: nn.Module) -> int:
        return self.current_plan(module).primary.conv.in_channels

    def lower_module(
        self, module: nn.Module, builder: Builder, source: int, *, keep_source: bool = False, **options: object
    ) -> int:
        plan = self.current_plan(module)
        out = builder.ghost(plan.primary, plan.cheap, plan.out_channels, source, **options)
        builder.release(*[] if keep_source else [source])
        return out

    def choose(self, module: nn.Module, x: torch.Tensor) -> GhostCall:
        """The operator for x now.

        At batch 1 a check of everything costs as much as the arithmetic of a small module. What was decided for the
        same tensors is used again after a look at what may have changed since.

        Raises:
            Unfusable: no operator can.
        """
        why = refuse_call(x)
        if why is not None:
            raise NotNow(why)
        plan = self.current_plan(module)
        tensors = gather(plan.entries)
        if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
            return _choose(plan, x, autocast(x)[0], tensors)
        key = [x.dtype, x.device, x.shape[1], forced(), any_requires_grad((x, *tensors))]
        for norm in plan.norms:
            key.append(norm.training)
        several = x.shape[0] * x.shape[2] * x.shape[3] > 1  # values a channel, as batch statistics need
        if plan.decided and several:
            (then,) = plan.decided  # read once, since other threads may call the module too
            if then[0] == key and _are_as_seen(tensors, then[2]):
                return GhostCall(then[1], plan, x, tensors, _numbers(plan))
        call = _choose(plan, x, x, tensors)
        seen = [None if t is None else (t, t.dtype, t.shape) for t in tensors]
        plan.decided[:] = [(key, call.decision, seen)]
        return call


def _are_as_seen(tensors: tuple, seen: list[tuple | None]) -> bool:
    """Whether these are the tensors that were seen, with the dtypes and shapes that they had."""
    for t, then in zip(tensors, seen, strict=True):
        if then is None or t is None:
            if t is not then:
                return False
        elif t is not then[0] or t.dtype is not then[1] or t.shape != then[2]:
            return False
    return True


def _choose(plan: GhostPlan, x: torch.Tensor, seen: torch.Tensor, tensors: tuple) -> GhostCall:
    primary, cheap = plan.primary, plan.cheap
    compiling = torch.compiler.is_compiling()
    first = batch_norm.statistics(primary.norm)
    second = ABSENT if cheap is None else batch_norm.statistics(cheap.norm)
    _check_tensors(plan, tensors, x, seen)
    if BATCH in (first, second):
        if first is not second:
            raise NotNow("only one of its two convolutions has a BatchNorm over batch statistics")
        if not plan.pointwise:
            raise NotNow("over batch statistics the operator takes a 1x1 primary convolution of stride 1")
        if seen.shape[0] * seen.shape[2] * seen.shape[3] <= 1:
            raise NotNow("batch statistics need more than one value a channel")
        operator = TRAIN
    elif not plan.pointwise:
        if cheap is None:
            raise NotNow("it is one convolution that is not 1x1, which PyTorch does best")
        operator = TAIL
    else:
        direct = cheap is not None and first is RUNNING and second is RUNNING and not compiling
        operator = EVAL if direct and not any_requires_grad((x, *tensors)) else FOLDED
    decision = select(operator, seen, None if cheap is None else cheap.kernel()[0])
    if decision.is_reference:
        raise NotNow(decision.why)
    return GhostCall(decision, plan, seen, tensors, _numbers(plan))


def _numbers(plan: GhostPlan) -> tuple[float, float, float, float]:
    primary, cheap = plan.primary, plan.cheap
    eps = 0.0 if primary.norm is None else primary.norm.eps
    if cheap is None:
        return primary.slope(), 0.0, eps, 0.0
    return primary.slope(), cheap.slope(), eps, 0.0 if cheap.norm is None else cheap.norm.eps


def execute(call: GhostCall) -> torch.Tensor:
    """The output of a Ghost module; updates the running statistics where it takes those of the batch."""
    operator = call.decision.operator
    if operator is TRAIN:
        return train(call).out
    if operator is EVAL:
        return _eval(call, None, None, False)
    return folded(call)


def _check_tensors(plan: GhostPlan, tensors: tuple, x: torch.Tensor, seen: torch.Tensor) -> None:
    """Refuse what PyTorch would refuse (so that it does, in its words) and parameters that are not plain tensors."""
    primary, cheap = tensors[0], tensors[7]
    check_parameters(seen, (primary, tensors[1], cheap, tensors[8]), (*tensors[2:7], *tensors[9:]))
    m, kept = primary.shape[0], plan.out_channels
    if x.shape[1] != primary.shape[1] * plan.primary.conv.groups:
        raise NotNow(f"its input has {x.shape[1]} channels, its weights do not")
    cheap_channels = 0 if cheap is None else cheap.shape[0]
    _check_shapes(plan.primary, tensors[:7], m)
    if cheap is not None:
        _check_shapes(plan.cheap, tensors[7:], cheap_channels)
        if cheap.shape[1] != 1 or cheap_channels % m:
            raise NotNow("the weight of its cheap operation does not have the shape of a depthwise convolution's")
    if kept is not None and not (m == kept if cheap is None else m < kept <= m + cheap_channels):
        raise NotNow(f"no operator keeps {kept} channels of what it computes")


def _check_shapes(layer: ConvBNAct, tensors: tuple, channels: int) -> None:
    weight, *vectors, slopes = tensors
    if tuple(weight.shape[2:]) != layer.kernel():
        raise NotNow("the weight of one of its convolutions does not have the size of its kernel")
    for t in vectors:
        if t is not None and tuple(t.shape) != (channels,):
            raise NotNow("one of its biases or statistics does not have a value a channel")
    if slopes is not None and slopes.numel() not in (1, channels):
        raise NotNow("the weight of its PReLU does not have one value, or one a channel")


def _activations(call: GhostCall) -> dict[str, object]:
    (primary, cheap), tensors, numbers = call.plan[1:3], call.tensors, call.numbers
    found = {"act": ACTIVATIONS[primary.code], "act_slope": numbers[0], "act_weight": tensors[6]}
    if cheap is not None:
        found |= {"cheap_act": ACTIVATIONS[cheap.code], "cheap_act_slope": numbers[1], "cheap_act_weight": tensors[13]}
    return found


def train_arguments(call: GhostCall) -> tuple:
    """The arguments of ``ghost_module_train`` in the order of its schema."""
    _, plan, x, tensors, numbers = call
    w1, b1, gamma1, beta1, _, _, slopes1, w2, b2, gamma2, beta2, _, _, slopes2 = tensors
    primary, cheap, kept = plan.primary, plan.cheap, plan.out_channels
    return (
        x, w1, b1, gamma1, beta1, w2, b2, gamma2, beta2, slopes1, slopes2,
        w1.shape[0] + w2.shape[0] if kept is None else kept, primary.code, cheap.code, *numbers,
    )  # fmt: skip


def train(call: GhostCall) -> training.TrainResult:
    """Output and batch statistics, by which the running ones are updated."""
    plan, x = call.plan, call.x
    result = training.train(train_arguments(call))
    count = x.shape[0] * x.shape[2] * x.shape[3]
    first = plan.primary.norm, result.primary_mean, result.primary_var
    with torch.no_grad():
        update_all([first, (plan.cheap.norm, result.cheap_mean, result.cheap_var)], count)
    return result


def folded(
    call: GhostCall,
    input_scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    return_squeeze: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The output where PyTorch folds the BatchNorms, if any, so that gradients reach what they are folded from."""
    _, plan, x, tensors, numbers = call
    primary, cheap = plan.primary, plan.cheap
    weight, bias = batch_norm.folded(primary, tensors[:7], numbers[2])
    cheap_weight, cheap_bias = (None, None) if cheap is None else batch_norm.folded(cheap, tensors[7:], numbers[3])
    more = _activations(call) | {
        "out_channels": plan.out_channels,
        "residual": residual,
        "return_squeeze": return_squeeze,
    }
    if plan.pointwise:
        return functional.ghost_module(x, weight, bias, cheap_weight, cheap_bias, input_scale=input_scale, **more)
    if input_scale is not None:
        x = x * input_scale[:, :, None, None]
    stride, padding, dilation, groups, _ = primary.geometry
    z = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    return functional.cheap_concat(z, cheap_weight, cheap_bias, **more)


def _eval(call: GhostCall, input_scale, residual, return_squeeze: bool):
    _, plan, x, tensors, numbers = call
    primary, cheap, kept = plan.primary, plan.cheap, plan.out_channels
    w1, b1, gamma1, beta1, mean1, var1, slopes1, w2, b2, gamma2, beta2, mean2, var2, slopes2 = tensors
    out, squeeze = ghost_module_eval_operator(
        x, w1, b1, gamma1, beta1, mean1, var1, w2, b2, gamma2, beta2, mean2, var2, input_scale, residual, slopes1,
        slopes2, w1.shape[0] + w2.shape[0] if kept is None else kept, primary.code, cheap.code, *numbers,
        return_squeeze,
    )  # fmt: skip
    return (out, squeeze) if return_squeeze else out


def with_epilogues(
    module: nn.Module,
    x: torch.Tensor,
    *,
    input_scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    return_squeeze: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The output, with what a bottleneck wants done in the same pass.

    Args:
        module: a fused Ghost module.
        input_scale: N x C, the excitation of the input.
        residual: added to the output, in its shape.
        return_squeeze: also return the mean of the output over H and W.
    """
    block = module._ghost_ops
    try:
        call = block.choose(module, x)
    except Unfusable:
        call = None
    if call is not None and call.decision.operator is EVAL and not any_requires_grad((input_scale, residual)):
        return _eval(call, input_scale, residual, return_squeeze)
    if call is not None and call.decision.operator is not TRAIN:
        return folded(call, input_scale, residual, return_squeeze)
    x = x if input_scale is None else x * input_scale[:, :, None, None]
    out = block.forward(module, x)
    out = out if residual is None else out + residual
    return (out, out.mean((2, 3))) if return_squeeze else out


class FusedGhostModule(BuiltFused, GhostModuleBlock.behaviour, GhostModule, metaclass=ABCMeta):
    """Ghost module over the fused operators: constructor, parameters and state_dict of :class:`GhostModule`.

    With batch statistics (training) it runs ``functional.ghost_module_train`` and updates the running ones. With
    running statistics it runs ``program_eval``, or ``functional.ghost_module`` where gradients are wanted; the
    BatchNorms are folded on every call, so that a result is never stale. Where no operator serves (another device or
    dtype, hooks or parametrisations inside, an unknown activation, ...) it runs as plain PyTorch: :meth:`why` says so.

    A Ghost module of another class that ``ghost_ops.fuse`` has fused counts as an instance too.

    Shape, dtype: as :class:`GhostModule`; the output has the input's memory format.
    """

    behaviour = GhostModuleBlock.behaviour
    plain_type = GhostModule

    @functools.wraps(GhostModule.__init__)
    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__[STATE] = GhostModuleBlock()

    def parts(self) -> GhostParts:
        """Return the paths of its pieces."""
        layers = ["primary_conv"] if self.ratio == 1 else ["primary_conv", "cheap_operation"]
        paths = [f"{layer}.{i}" for layer in layers for i in range(3)]
        return GhostParts(*paths, out_channels=self.oup)
