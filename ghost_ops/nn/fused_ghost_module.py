"""``FusedGhostModule``: a Ghost module whose convolutions, BatchNorms, activations and concatenation run fused."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .. import functional
from ..backends import Choice, choose
from ..ops.checks import autocast
from ..ops.ghost_module import ghost_module_eval_operator
from ..ops.ghost_module_train import TrainResult
from . import _batch_norm
from ._batch_norm import ABSENT, BATCH, RUNNING
from ._program import Builder
from ._programmed import Programmed, need_grad
from ._running_statistics import update_all
from ._structure import PLAIN_TENSORS, Half, Structure, Unfusable, refuse_input, refuse_now
from .ghost_module import GhostModule
from .parts import GhostParts

EVAL, FOLDED, TRAIN = "ghost_module_eval", "ghost_module", "ghost_module_train"


class _Plan(NamedTuple):
    structure: Structure
    primary: Half
    cheap: Half | None
    out_channels: int | None
    pointwise: bool


class FusedGhostModule(Programmed, GhostModule):
    """Ghost module over the fused operators: constructor, parameters and state_dict of :class:`GhostModule`.

    With batch statistics (training) it runs ``functional.ghost_module_train`` and updates the running ones; with
    running statistics ``program_eval``, or ``functional.ghost_module`` where gradients are wanted, the BatchNorms
    folded on every call, so that a result is never stale. Where no operator serves (another device or dtype, hooks or
    parametrisations inside, an unknown activation, ...) it runs as plain PyTorch: :meth:`why` says so.

    ``FusedGhostModule.wrap(module, GhostParts(...))`` takes the place of somebody else's Ghost module.

    Shape, dtype: as :class:`GhostModule`; the output has the input's memory format.
    """

    _plain_class = GhostModule

    @staticmethod
    def _paths(parts: object) -> list[str]:
        if not isinstance(parts, GhostParts):
            raise TypeError(f"FusedGhostModule.wrap: parts: expected GhostParts, got {type(parts).__name__}")
        paths = (getattr(parts, f"{half}_{what}") for half in ("primary", "cheap") for what in ("conv", "norm", "act"))
        return [path for path in paths if path is not None]

    def _describe(self) -> _Plan:
        parts, structure = self.parts(), Structure(self)
        primary = structure.half(parts.primary_conv, parts.primary_norm, parts.primary_act)
        cheap = None
        if parts.cheap_conv is not None:
            cheap = structure.half(parts.cheap_conv, parts.cheap_norm, parts.cheap_act)
            if not cheap.is_cheap(primary.conv.out_channels):
                raise Unfusable("its cheap operation is no depthwise convolution that keeps the size of the map")
        return _Plan(structure.close(), primary, cheap, parts.out_channels, primary.is_pointwise())

    def _in_parts(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(x)

    def run(
        self,
        x: torch.Tensor,
        *,
        input_scale: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        return_squeeze: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """The forward, with what a bottleneck wants done in the same pass.

        Args:
            x: N x C x H x W.
            input_scale: N x C, the excitation of x.
            residual: added to the output, in its shape.
            return_squeeze: also return the mean of the output over H and W.
        """
        try:
            route, plan, seen, tensors = self._route(x)
        except Unfusable:
            return _around(self._plain, x, input_scale, residual, return_squeeze)
        if route is TRAIN:
            return _around(lambda x: _train(plan, tensors, x).out, seen, input_scale, residual, return_squeeze)
        if input_scale is None and residual is None:
            run = _eval if route is EVAL else _folded
        else:
            run = _folded if route is FOLDED or need_grad((input_scale, residual)) else _eval
            seen, input_scale, residual = autocast(seen, input_scale, residual)
        return run(plan, tensors, seen, input_scale, residual, return_squeeze)

    def keep(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """The forward, and the four batch statistics that it took, for ``again``; raises ``Unfusable``."""
        route, plan, seen, tensors = self._route(x)
        if route is not TRAIN:
            return self.run(x), None
        out, *statistics = _train(plan, tensors, seen)
        return out, tuple(statistics)

    def again(self, x: torch.Tensor, kept: tuple[torch.Tensor | None, ...], wanted: bool = True) -> torch.Tensor:
        """What ``keep`` returned, for the gradients: over the statistics of then, and none is updated.

        Args:
            x: as it was.
            kept: the batch statistics, or four None where there were none.
            wanted: False where the values of the output are not.
        """
        _, plan, seen, tensors = self._route(x)
        if kept[0] is None:
            return _folded(plan, tensors, seen, None, None, False)
        return _train_operator(plan, tensors, seen, known=TrainResult(None, *kept), wanted=wanted).out

    def why(self, x: torch.Tensor) -> str:
        """Which operator would run, on which backend, on an input such as x; if none, why not."""
        if not self.training:
            with contextlib.suppress(Unfusable):
                self._program_for(x)
                return f"program_eval on {choose('program_eval', x)}"
        try:
            route, plan, seen, _ = self._route(x)
        except Unfusable as reason:
            return f"plain PyTorch: {reason}"
        return f"{_operator(route, plan)} on {_choice(route, plan, seen)}"

    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """Parameters and statistics that an operator would read; raises ``Unfusable``."""
        plan = self._current_plan()
        return _tensors(plan.primary, plan.cheap)

    def channels(self) -> int:
        return self._current_plan().primary.conv.in_channels

    def build(self, builder: Builder, source: int, **more) -> int:
        """Write its step of a program; returns the slot of its output."""
        _, primary, cheap, kept, _ = self._current_plan()
        return builder.ghost(primary, cheap, kept, source, **more)

    def _route(self, x: torch.Tensor) -> tuple[str, _Plan, torch.Tensor, tuple]:
        """The operator for x now, the plan, x as autocast wants it, and the tensors; raises ``Unfusable``."""
        compiling = torch.compiler.is_compiling()
        why = refuse_now() or (None if compiling else refuse_input(x))
        if why is not None:
            raise Unfusable(why)
        plan = self._current_plan()
        _, primary, cheap, out_channels, pointwise = plan
        first = _batch_norm.statistics(primary.norm)
        second = ABSENT if cheap is None else _batch_norm.statistics(cheap.norm)
        tensors = _tensors(primary, cheap)
        (seen,) = autocast(x)
        _check_tensors(plan, tensors, x, seen, compiling)
        if BATCH in (first, second):
            if first is not second:
                raise Unfusable("only one of its two convolutions has a BatchNorm over batch statistics")
            if not pointwise:
                raise Unfusable("over batch statistics the operator takes a 1x1 primary convolution of stride 1")
            if seen.shape[0] * seen.shape[2] * seen.shape[3] <= 1:
                raise Unfusable("batch statistics need more than one value a channel")
            route = TRAIN
        elif cheap is None and not pointwise:
            raise Unfusable("it is one convolution that is not 1x1, which PyTorch does best")
        else:
            direct = pointwise and first is RUNNING and second is RUNNING and not compiling
            route = EVAL if direct and not need_grad((x, *tensors)) else FOLDED
        choice = _choice(route, plan, seen)
        if choice.backend == "reference":
            raise Unfusable(str(choice))
        return route, plan, seen, tensors


def _tensors(primary: Half, cheap: Half | None) -> tuple:
    return (*primary.tensors(), *((None,) * 7 if cheap is None else cheap.tensors()))


def _operator(route: str, plan: _Plan) -> str:
    return "cheap_concat" if route is FOLDED and not plan.pointwise else route


def _choice(route: str, plan: _Plan, x: torch.Tensor) -> Choice:
    kernel = None if plan.cheap is None else plan.cheap.conv.kernel_size[0]
    return choose(_operator(route, plan), x, kernel)


def _check_tensors(plan: _Plan, tensors: tuple, x: torch.Tensor, seen: torch.Tensor, compiling: bool) -> None:
    """Refuse what PyTorch would refuse (so that it does, in its words) and parameters that are no plain tensors."""
    primary, cheap = tensors[0], tensors[7]
    dtype, device = seen.dtype, seen.device
    widened, on_cpu = torch.is_autocast_enabled(device.type), seen.is_cpu
    for t in tensors:
        if t is None:
            continue
        if not compiling and type(t) not in PLAIN_TENSORS:
            raise Unfusable(f"one of its parameters is a {type(t).__name__}, not a plain tensor")
        if t.dtype is not dtype and t.dtype is not torch.float32:
            raise Unfusable(f"its input is {dtype}, one of its parameters {t.dtype}")
        if not t.is_cpu if on_cpu else t.device != device:  # making a device costs more than asking for the CPU
            raise Unfusable(f"its input is on {device}, one of its parameters on {t.device}")
    if not widened:
        for weight in (primary, cheap):
            if weight is not None and weight.dtype is not dtype:
                raise Unfusable(f"its input is {dtype}, the weight of a convolution {weight.dtype}")
    m, kept = primary.shape[0], plan.out_channels
    if x.shape[1] != primary.shape[1] * plan.primary.conv.groups:
        raise Unfusable(f"its input has {x.shape[1]} channels, its weights do not")
    if kept is not None and not (m == kept if cheap is None else m < kept <= m + cheap.shape[0]):
        raise Unfusable(f"no operator keeps {kept} channels of what it computes")


def _around(run, x, input_scale, residual, return_squeeze):
    """``run`` with the additions of a bottleneck before and after it."""
    out = run(x if input_scale is None else x * input_scale[:, :, None, None])
    out = out if residual is None else out + residual
    return (out, out.mean((2, 3))) if return_squeeze else out


def _activations(plan: _Plan, tensors: tuple) -> dict[str, object]:
    primary, cheap = plan.primary, plan.cheap
    found = {"act": primary.name, "act_slope": primary.slope(), "act_weight": tensors[6]}
    if cheap is not None:
        found |= {"cheap_act": cheap.name, "cheap_act_slope": cheap.slope(), "cheap_act_weight": tensors[13]}
    return found


def _train(plan: _Plan, tensors: tuple, x: torch.Tensor) -> TrainResult:
    result = _train_operator(plan, tensors, x)
    norm, cheap_norm = plan.primary.norm, plan.cheap.norm
    count = x.shape[0] * x.shape[2] * x.shape[3]
    with torch.no_grad():
        first = norm, result.primary_mean, result.primary_var
        update_all([first, (cheap_norm, result.cheap_mean, result.cheap_var)], count)
    return result


def _train_operator(plan: _Plan, tensors: tuple, x: torch.Tensor, **again) -> TrainResult:
    w1, b1, gamma1, beta1, _, _, _, w2, b2, gamma2, beta2, *_ = tensors
    return functional.ghost_module_train(
        x, w1, b1, gamma1, beta1, w2, b2, gamma2, beta2, out_channels=plan.out_channels,
        primary_eps=plan.primary.norm.eps, cheap_eps=plan.cheap.norm.eps, **_activations(plan, tensors), **again,
    )  # fmt: skip


def _folded(plan, tensors, x, input_scale, residual, return_squeeze):
    """With PyTorch folding the BatchNorms, if any, so that gradients reach what they are folded from."""
    primary, cheap = plan.primary, plan.cheap
    weight, bias = _batch_norm.folded(primary)
    cheap_weight, cheap_bias = (None, None) if cheap is None else _batch_norm.folded(cheap)
    more = _activations(plan, tensors) | {
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


def _eval(plan, tensors, x, input_scale, residual, return_squeeze):
    _, primary, cheap, kept, _ = plan
    w1, b1, gamma1, beta1, mean1, var1, act_weight, w2, b2, gamma2, beta2, mean2, var2, cheap_act_weight = tensors
    out, squeeze = ghost_module_eval_operator(
        x, w1, b1, gamma1, beta1, mean1, var1, w2, b2, gamma2, beta2, mean2, var2, input_scale, residual, act_weight,
        cheap_act_weight, w1.shape[0] + w2.shape[0] if kept is None else kept, primary.code, cheap.code,
        primary.slope(), cheap.slope(), primary.norm.eps, cheap.norm.eps, return_squeeze,
    )  # fmt: skip
    return (out, squeeze) if return_squeeze else out
