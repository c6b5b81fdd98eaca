"""The depthwise convolutions of a block: by ``functional.depthwise`` where it serves, else through their modules."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from .. import functional
from ..backends import Choice, choose
from ..ops.checks import autocast
from ._structure import PLAIN_TENSORS, Half, Unfusable, refuse_autocast, refuse_input, refuse_now

_OP = "depthwise"


def run(half: Half, x: torch.Tensor) -> torch.Tensor:
    """A convolution with what follows it, one after the other."""
    x = convolve(half, x)
    for module in (half.norm, half.act):
        if module is not None:
            x = module(x)
    return x


def convolve(half: Half, x: torch.Tensor) -> torch.Tensor:
    """What the convolution of ``half`` makes of x."""
    try:
        weight, bias = _route(half, x)
    except Unfusable:
        return half.conv(x)
    if weight.shape[0] != x.shape[1] or 0 in x.shape:
        return half.conv(x)
    return functional.depthwise(x, weight, bias, stride=half.geometry[0][0])


def serves(half: Half, x: torch.Tensor) -> bool:
    """Whether the operator would run a convolution on an input of x's dtype and device."""
    try:
        _route(half, x)
    except Unfusable:
        return False
    return True


def why(halves: Iterable[Half], x: torch.Tensor) -> tuple[str | None, str | None]:
    """What would run the depthwise ones of some convolutions, and for the others of these why nothing faster does."""
    runs = reason = None
    for half in filter(Half.is_depthwise, halves):
        try:
            if (refusal := refuse_autocast(x)) is not None:
                raise Unfusable(refusal)
            _route(half, x)
            runs = f"{_OP} on {_choice(half, *autocast(x))}"
        except Unfusable as refusal:
            reason = str(refusal)
    return runs, reason


def _choice(half: Half, x: torch.Tensor) -> Choice:
    return choose(_OP, x, half.conv.kernel_size[0])


def _route(half: Half, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias; refuses what PyTorch would refuse, so that it does, and what is no plain tensor."""
    if not half.is_depthwise():
        raise Unfusable("it is no depthwise convolution padded by half its kernel")
    compiling = torch.compiler.is_compiling()
    why = refuse_now() or (None if compiling else refuse_input(x))
    if why is not None:
        raise Unfusable(why)
    conv, (seen,) = half.conv, autocast(x)
    try:
        weight, bias = (conv._parameters[name] for name in ("weight", "bias"))
    except KeyError as name:
        raise Unfusable(f"{name} of one of its convolutions is no parameter of its own") from None
    widened = torch.is_autocast_enabled(x.device.type)
    for t in (weight, bias):
        if t is None:
            continue
        if not compiling and type(t) not in PLAIN_TENSORS:
            raise Unfusable(f"one of its parameters is a {type(t).__name__}, not a plain tensor")
        if t.dtype is not seen.dtype and not (widened and t.dtype is torch.float32):
            raise Unfusable(f"its input is {x.dtype}, one of its parameters {t.dtype}")
        if t.device != x.device:
            raise Unfusable(f"its input is on {x.device}, one of its parameters on {t.device}")
    if weight.shape != (conv.in_channels, 1, *conv.kernel_size):
        raise Unfusable("the weight of one of its convolutions does not have its shape")
    choice = _choice(half, seen)
    if choice.backend == "reference":
        raise Unfusable(str(choice))
    return weight, bias
