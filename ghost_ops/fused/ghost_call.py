"""``GhostCall``: which operator runs a call of a Ghost module, and the call."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .. import functional
from ..activations import ACTIVATIONS
from ..dispatch import Decision, forced, select
from ..nn.running_statistics import update_all
from ..ops import cheap_concat_train as tail_training
from ..ops import ghost_module_train as training
from ..ops.batch_statistics import TrainResult
from ..ops.cheap_concat import cheap_concat_eval_operator
from ..ops.checks import autocast
from ..ops.ghost_module import ghost_module_eval_operator
from . import batch_norm
from .batch_norm import ABSENT, BATCH, RUNNING
from .block import any_requires_grad
from .errors import NotNow
from .layers import ConvBNAct, gather
from .parameters import check_parameters
from .structure import Structure

EVAL, FOLDED, TRAIN = "ghost_module_eval", "ghost_module", "ghost_module_train"
TAIL_EVAL, TAIL, TAIL_TRAIN = "cheap_concat_eval", "cheap_concat", "cheap_concat_train"  # after PyTorch's convolution
OVER_BATCH = TRAIN, TAIL_TRAIN  # those of batch statistics
OF_INFERENCE = EVAL, TAIL_EVAL  # those that fold the BatchNorms, and have no gradients
STATISTICS = 4  # of a Ghost module over batch statistics


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

    # For a block that is recomputed in the backward (``recompute.py``)

    def output_size(self) -> tuple[int, int]:
        """Height and width of its output."""
        size = self.x.shape[2:]
        return tuple(size) if self.plan.pointwise else self.plan.primary.output_size(*size)

    def without_tensors(self) -> GhostCall:
        return self._replace(x=None, tensors=())

    def read(self) -> tuple:
        """The tensors that it reads for its gradients: not the running statistics that a forward over a batch
        updates."""
        if self.decision.operator not in OVER_BATCH:
            return self.tensors
        t = self.tensors
        return *t[:4], None, None, *t[6:11], None, None, t[13]

    def run(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> tuple[torch.Tensor, tuple]:
        """The output for x, times the gate if there is one, and the batch statistics that were taken or four None."""
        call = self._replace(x=x)
        if self.decision.operator in OVER_BATCH:
            out, *statistics = train(call, gate)
            return out, tuple(statistics)
        return gated(execute(call), gate), (None,) * STATISTICS

    def run_again(
        self, x: torch.Tensor, tensors: list, statistics: list, need_output: bool, gate: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The output for x, with these tensors as ``read`` gives them, and the statistics of ``run``; its values are
        undefined where it is not needed."""
        call = self._replace(x=x, tensors=tuple(tensors))
        if self.decision.operator is TRAIN:
            return training.recompute(train_arguments(call), tuple(statistics), need_output, gate)
        if self.decision.operator is TAIL_TRAIN:
            return gated(tail_training.train(tail_arguments(call)).out, gate)
        return gated(folded(call), gate)


def choose_ghost(plan: GhostPlan, x: torch.Tensor) -> GhostCall:
    """The operator for x now; raises ``Unfusable``. ``refuse_call`` has been asked about x."""
    tensors = gather(plan.entries)
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return _choose(plan, x, autocast(x)[0], tensors)
    key = [x.dtype, x.device, x.shape[1], forced(), any_requires_grad((x, *tensors))]
    for norm in plan.norms:
        key.append(norm.training)
    if plan.decided and _has_several_values(plan, x):
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
        if cheap is None:
            raise NotNow("over batch statistics it is one convolution with its BatchNorm, which PyTorch does best")
        if first is not second:
            raise NotNow("only one of its two convolutions has a BatchNorm over batch statistics")
        if not _has_several_values(plan, seen):
            raise NotNow("batch statistics need more than one value a channel")
        operator = TRAIN if plan.pointwise else TAIL_TRAIN
    elif not plan.pointwise:
        if cheap is None:
            raise NotNow("it is one convolution that is not 1x1, which PyTorch does best")
        operator = TAIL if any_requires_grad((x, *tensors)) else TAIL_EVAL
    else:
        direct = cheap is not None and first is RUNNING and second is RUNNING and not compiling
        bare = cheap is not None and first is second is ABSENT and not compiling and seen.is_cpu
        if bare and any_requires_grad((x, *tensors)):
            operator = TAIL  # the backward of FOLDED makes the product again, a tenth of a step
        else:
            operator = EVAL if direct and not any_requires_grad((x, *tensors)) else FOLDED
    decision = select(operator, seen, None if cheap is None else cheap.kernel()[0])
    if decision.is_reference:
        raise NotNow(decision.why)
    return GhostCall(decision, plan, seen, tensors, _numbers(plan))


def _has_several_values(plan: GhostPlan, x: torch.Tensor) -> bool:
    """Whether there is more than one value a channel after the primary convolution, as batch statistics need."""
    height, width = x.shape[2:] if plan.pointwise else plan.primary.output_size(*x.shape[2:])
    return x.shape[0] * height * width > 1


def _numbers(plan: GhostPlan) -> tuple[float, float, float, float]:
    primary, cheap = plan.primary, plan.cheap
    eps = 0.0 if primary.norm is None else primary.norm.eps
    if cheap is None:
        return primary.slope(), 0.0, eps, 0.0
    return primary.slope(), cheap.slope(), eps, 0.0 if cheap.norm is None else cheap.norm.eps


def gated(out: torch.Tensor, gate: torch.Tensor | None) -> torch.Tensor:
    """The output times the gate, upsampled to its size, if there is one."""
    return out if gate is None else out * training.upsample(gate, out)


def execute(call: GhostCall) -> torch.Tensor:
    """The output of a Ghost module; updates the running statistics where it takes those of the batch."""
    if call.decision.operator in OVER_BATCH:
        return train(call).out
    if call.decision.operator in OF_INFERENCE:
        return evaluate(call, None, None, False)
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
    w1, b1, gamma1, beta1, _, _, _, w2, b2, gamma2, beta2, *_ = call.tensors
    return call.x, w1, b1, gamma1, beta1, w2, b2, gamma2, beta2, *_rest_of_arguments(call)


def tail_arguments(call: GhostCall) -> tuple:
    """Those of ``cheap_concat_train``, whose input PyTorch's convolution makes."""
    w1, b1, gamma1, beta1, _, _, _, w2, b2, gamma2, beta2, *_ = call.tensors
    z = _convolve(call.plan, call.x, w1, None)
    return z, b1, gamma1, beta1, w2, b2, gamma2, beta2, *_rest_of_arguments(call)


def _rest_of_arguments(call: GhostCall) -> tuple:
    """The end of both: weights of the activations, then what is no tensor."""
    _, plan, _, tensors, numbers = call
    kept = tensors[0].shape[0] + tensors[7].shape[0] if plan.out_channels is None else plan.out_channels
    return tensors[6], tensors[13], kept, plan.primary.code, plan.cheap.code, *numbers


def _convolve(
    plan: GhostPlan, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:  # fmt: skip
    """The primary convolution by PyTorch."""
    stride, padding, dilation, groups, _ = plan.primary.geometry
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def train(call: GhostCall, gate: torch.Tensor | None = None) -> TrainResult:
    """Output, times the gate if there is one, and batch statistics, by which the running ones are updated."""
    plan = call.plan
    if call.decision.operator is TRAIN:
        result = training.train(train_arguments(call), gate)
    else:
        result = tail_training.train(tail_arguments(call))
        result = result._replace(out=gated(result.out, gate))
    count = result.out.shape[0] * result.out.shape[2] * result.out.shape[3]
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
    if call.decision.operator is FOLDED:
        return functional.ghost_module(x, weight, bias, cheap_weight, cheap_bias, input_scale=input_scale, **more)
    if input_scale is not None:
        x = x * input_scale[:, :, None, None]
    z = _convolve(plan, x, weight, bias)
    return functional.cheap_concat(z, cheap_weight, cheap_bias, **more)


def evaluate(
    call: GhostCall, input_scale: torch.Tensor | None, residual: torch.Tensor | None, return_squeeze: bool
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The output where nothing needs a gradient and the operator folds the BatchNorms."""
    plan, x = call.plan, call.x
    w1, *first, slopes1, w2, b2, gamma2, beta2, mean2, var2, slopes2 = call.tensors  # first: b1 and the BatchNorm
    kept = w1.shape[0] + w2.shape[0] if plan.out_channels is None else plan.out_channels
    rest = slopes1, slopes2, kept, plan.primary.code, plan.cheap.code, *call.numbers, return_squeeze
    if call.decision.operator is EVAL:
        out, squeeze = ghost_module_eval_operator(
            x, w1, *first, w2, b2, gamma2, beta2, mean2, var2, input_scale, residual, *rest
        )
    else:
        x = x if input_scale is None else x * input_scale[:, :, None, None]
        z = _convolve(plan, x, w1, None)
        out, squeeze = cheap_concat_eval_operator(z, *first, w2, b2, gamma2, beta2, mean2, var2, residual, *rest)
    return (out, squeeze) if return_squeeze else out
