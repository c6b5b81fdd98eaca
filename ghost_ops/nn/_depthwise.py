"""The convolutions between a block's Ghost modules: depthwise ones by their operator, others by their modules."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..activations import activate
from ..dispatch import PLAIN_TENSORS, Decision, select
from ..ops import depthwise as operator
from ..ops.checks import autocast
from ._structure import Half, NotNow, Unfusable


class ConvCall(NamedTuple):
    """What was decided for a convolution of a block.

    Attributes:
        half: the convolution with what follows it.
        decision: the operator that runs it; None where its module is called.
        reason: why its module is called; None of a convolution that is not depthwise.
        numbers: slope of its activation and eps of its BatchNorm.
    """

    half: Half
    decision: Decision | None
    reason: str | None = None
    numbers: tuple[float, float] = (0.0, 0.0)


def decide(half: Half, x: torch.Tensor) -> ConvCall:
    """What runs a convolution on an input of x's dtype and device. ``refuse_call`` has been asked about x."""
    numbers = half.slope(), 0.0 if half.norm is None else half.norm.eps
    if not half.is_depthwise:
        return ConvCall(half, None, None, numbers)
    try:
        return ConvCall(half, _decide(half, x), None, numbers)
    except Unfusable as reason:
        return ConvCall(half, None, str(reason), numbers)


def _decide(half: Half, x: torch.Tensor) -> Decision:
    """The operator; refuses what PyTorch would refuse, so that it does, and what is not a plain tensor."""
    conv, (seen,) = half.conv, autocast(x)
    try:
        weight, bias = conv._parameters["weight"], conv._parameters["bias"]
    except KeyError as name:
        raise NotNow(f"{name} of one of its convolutions is not a parameter of its own") from None
    widened = torch.is_autocast_enabled(x.device.type)
    compiling = torch.compiler.is_compiling()
    for t in (weight, bias):
        if t is None:
            continue
        if not compiling and type(t) not in PLAIN_TENSORS:
            raise NotNow(f"one of its parameters is a {type(t).__name__}, not a plain tensor")
        if t.dtype is not seen.dtype and not (widened and t.dtype is torch.float32):
            raise NotNow(f"its input is {x.dtype}, one of its parameters {t.dtype}")
        if t.device != x.device:
            raise NotNow(f"its input is on {x.device}, one of its parameters on {t.device}")
    kernel = half.kernel()
    if weight.shape != (conv.in_channels, 1, *kernel):
        raise NotNow("the weight of one of its convolutions does not have its shape")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise NotNow("the bias of one of its convolutions does not have its shape")
    decision = select("depthwise", seen, kernel[0])
    if decision.backend == "reference":
        raise NotNow(decision.why)
    return decision


def run(call: ConvCall, x: torch.Tensor) -> torch.Tensor:
    """A convolution with what follows it, through the modules of the latter."""
    half = call.half
    if call.decision is None or half.conv._parameters["weight"].shape[0] != x.shape[1] or 0 in x.shape:
        x = half.conv(x)
    else:
        parameters = half.conv._parameters
        (x,) = autocast(x)
        x = operator.run(call.decision, x, parameters["weight"], parameters["bias"], half.geometry[0][0])
    if half.norm is not None:
        x = half.norm(x)
    return x if half.act is None else half.act(x)


def run_with(call: ConvCall, x: torch.Tensor, tensors: tuple, batch_statistics: bool) -> torch.Tensor:
    """As :func:`run`, of the given tensors (``Half.tensors``) and without an update of running statistics."""
    half = call.half
    weight, bias, gamma, beta, mean, var, slopes = tensors
    stride, padding, dilation, groups, _ = half.geometry
    if call.decision is None or 0 in x.shape:
        z = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    else:
        (x,) = autocast(x)
        z = operator.run(select("depthwise", x, weight.shape[-1]), x, weight, bias, stride[0])
    if half.norm is not None:
        running = (None, None) if batch_statistics else (mean, var)
        z = F.batch_norm(z, *running, gamma, beta, batch_statistics, 0.0, call.numbers[1])
    return activate(z, half.code, call.numbers[0], slopes)
