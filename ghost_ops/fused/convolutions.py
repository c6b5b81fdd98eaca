"""The convolutions between a block's Ghost modules: depthwise ones by their operator, others by their modules. In
training BatchNorm and activation of a large map are one operator."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..activations import activate
from ..dispatch import Decision, select
from ..nn.running_statistics import update_all
from ..ops import depthwise as operator
from ..ops.batch_norm_act_train import BatchNormResult, call_batch_norm_act_train
from ..ops.checks import autocast
from .batch_norm import BATCH, statistics
from .errors import NotNow, Unfusable
from .layers import ConvBNAct
from .parameters import check_parameters

LEAST_NORMALISED = 2**19  # values of a map: a smaller one is in cache, where PyTorch's two modules are as fast


class ConvCall(NamedTuple):
    """What was decided for a convolution of a block.

    Attributes:
        layer: the convolution with what follows it.
        decision: the operator that runs it; None where its module is called.
        reason: why its module is called; None of a convolution that is not depthwise.
        numbers: slope of its LeakyReLU and eps of its BatchNorm.
    """

    layer: ConvBNAct
    decision: Decision | None
    reason: str | None = None
    numbers: tuple[float, float] = (0.0, 0.0)


def decide_convolution(layer: ConvBNAct, x: torch.Tensor) -> ConvCall:
    """What runs a convolution on an input of x's dtype and device. ``refuse_call`` has been asked about x."""
    numbers = layer.slope(), 0.0 if layer.norm is None else layer.norm.eps
    if not layer.is_depthwise:
        return ConvCall(layer, None, None, numbers)
    try:
        return ConvCall(layer, _decide(layer, x), None, numbers)
    except Unfusable as reason:
        return ConvCall(layer, None, str(reason), numbers)


def _decide(layer: ConvBNAct, x: torch.Tensor) -> Decision:
    """The operator; refuses what PyTorch would refuse, so that it does, and what is not a plain tensor."""
    conv, (seen,) = layer.conv, autocast(x)
    try:
        weight, bias = conv._parameters["weight"], conv._parameters["bias"]
    except KeyError as name:
        raise NotNow(f"{name} of one of its convolutions is not a parameter of its own") from None
    check_parameters(seen, (weight, bias))
    kernel = layer.kernel()
    if weight.shape != (conv.in_channels, 1, *kernel):
        raise NotNow("the weight of one of its convolutions does not have its shape")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise NotNow("the bias of one of its convolutions does not have its shape")
    decision = select("depthwise", seen, kernel[0])
    if decision.is_reference:
        raise NotNow(decision.why)
    return decision


def run_convolution(call: ConvCall, x: torch.Tensor) -> torch.Tensor:
    """A convolution with what follows it."""
    layer = call.layer
    if call.decision is None or layer.conv._parameters["weight"].shape[0] != x.shape[1] or 0 in x.shape:
        x = layer.conv(x)
    else:
        parameters = layer.conv._parameters
        (x,) = autocast(x)
        x = operator.call_depthwise(call.decision, x, parameters["weight"], parameters["bias"], layer.geometry[0][0])
    if layer.norm is not None and x.numel() >= LEAST_NORMALISED:
        return run_norm(layer, x)
    if layer.norm is not None:
        x = layer.norm(x)
    return x if layer.act is None else layer.act(x)


def run_norm(layer: ConvBNAct, z: torch.Tensor) -> torch.Tensor:
    """BatchNorm and activation of a convolution's result, which is large."""
    found = _normalised(layer, z)
    if found is not None:
        with torch.no_grad():
            update_all([(layer.norm, found.mean, found.var)], z.shape[0] * z.shape[2] * z.shape[3])
        return found.out
    act = layer.act
    if act is not None and any(act is inner for inner in layer.norm.modules()):
        act = None  # a BatchNorm that applies its activation itself, as timm's BatchNormAct2d
    z = layer.norm(z)
    return z if act is None else act(z)


def _normalised(layer: ConvBNAct, z: torch.Tensor) -> BatchNormResult | None:
    """What one operator makes of both; None where PyTorch must: over running statistics, over those of all processes,
    on what no kernel takes, on what it refuses."""
    try:
        if statistics(layer.norm) is not BATCH:
            return None
        _, _, gamma, beta, _, _, slopes = layer.tensors()
        check_parameters(z, (), (gamma, beta, slopes))
    except Unfusable:
        return None
    channels = z.shape[1:2]
    if z.numel() <= z.shape[1] or any(t is not None and t.shape != channels for t in (gamma, beta)):
        return None
    if slopes is not None and slopes.shape not in (channels, (1,)):
        return None
    decision = select("batch_norm_act_train", z)
    if decision.is_reference:
        return None
    numbers = layer.code, layer.slope(), layer.norm.eps
    return BatchNormResult(*call_batch_norm_act_train(decision, z, gamma, beta, slopes, *numbers))


def run_convolution_with(call: ConvCall, x: torch.Tensor, tensors: tuple, batch_statistics: bool) -> torch.Tensor:
    """Run a convolution as :func:`run_convolution` does, on given tensors, without an update of running statistics."""
    layer = call.layer
    weight, bias, gamma, beta, mean, var, slopes = tensors
    stride, padding, dilation, groups, _ = layer.geometry
    if call.decision is None or 0 in x.shape:
        z = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    else:
        (x,) = autocast(x)
        z = operator.call_depthwise(select("depthwise", x, weight.shape[-1]), x, weight, bias, stride[0])
    if layer.norm is not None and batch_statistics and z.numel() >= LEAST_NORMALISED:
        numbers = layer.code, *call.numbers
        decision = select("batch_norm_act_train", z)
        return call_batch_norm_act_train(decision, z, gamma, beta, slopes, *numbers)[0]
    if layer.norm is not None:
        running = (None, None) if batch_statistics else (mean, var)
        z = F.batch_norm(z, *running, gamma, beta, batch_statistics, 0.0, call.numbers[1])
    return activate(z, layer.code, call.numbers[0], slopes)
