"""A copy of a module that can be run: parameters drawn anew, in float64 on the CPU, without hooks.

With random parameters and statistics of the same shapes neither a large net nor a freshly initialised one (ones and
zeros, where half of all mistakes are invisible) is any different.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.parameter import UninitializedTensorMixin

from ..fused.behaviour import is_fused, remove
from ..fused.errors import Unfusable, first_line
from ..fused.layers import SYNCED
from ..fused.watch import is_own_method

_PLAIN_TENSORS = (torch.Tensor, nn.Parameter)
_NORMS = (nn.modules.batchnorm._NormBase,)


class Refused(Unfusable):
    """Why a module stays plain PyTorch, in a sentence."""


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Standard normal numbers in float64, on the CPU whatever the default device is."""
    return torch.randn(shape, dtype=torch.float64, device="cpu", generator=generator)


def drawn_copy(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy of ``module`` with drawn parameters and buffers; BatchNorms do not update their running statistics.

    Raises:
        Refused: fused code could not stand in for what a call of the module does, or it cannot be copied.
    """
    _check(module)
    memo = _substitutes(module, generator)
    try:
        copied = copy.deepcopy(module, memo)
    except Exception as error:
        raise Refused(f"it cannot be copied ({first_line(error)})") from error
    for child in copied.modules():
        if is_fused(child):  # what is looked at is the module's own forward
            remove(child)
        if isinstance(child, _NORMS):
            child.momentum = 0.0
        if isinstance(child, SYNCED):  # the copy runs in one process, and PyTorch's refuses the CPU
            child.__class__ = nn.BatchNorm2d
    return copied


def refuse_compiled(module: nn.Module) -> None:
    """Raise ``Refused`` if something inside was scripted or traced: of that nothing can be read or copied so."""
    for path, child in module.named_modules():
        if isinstance(child, torch.jit.ScriptModule):
            raise Refused(f"its child {path!r} was compiled by torch.jit")


def _check(module: nn.Module) -> None:
    """What is seen without running: a fused module has one input and calls the class's forward."""
    refuse_compiled(module)
    if "forward" in vars(module):
        raise Refused("its forward was replaced on the instance")
    if type(module).__call__ is not nn.Module.__call__:
        raise Refused("its class has a __call__ of its own")
    signature = inspect.signature(module.forward)
    x, *others = signature.parameters.values() or (None,)
    if x is None or x.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
        raise Refused(f"its forward does not take one input {signature}")
    if any(other.default is inspect.Parameter.empty for other in others):  # given others, a fused module runs plainly
        raise Refused(f"its forward takes more than one input {signature}")
    for path, child in module.named_modules():
        if "parametrizations" in child._modules:
            raise Refused(f"its child {path!r} is parametrised")
        if isinstance(child, (nn.Conv2d, nn.Linear)) and path and "weight" not in child._parameters:
            raise Refused(f"the weight of its child {path!r} is computed, not a parameter")
        if "forward" in vars(child) and not is_own_method(child, vars(child)["forward"]):
            raise Refused(f"the forward of its child {path!r} was replaced on the instance")


def _substitutes(module: nn.Module, generator: torch.Generator) -> dict[int, object]:
    """A deepcopy memo: random tensors in the place of parameters and buffers, no hooks in the place of hooks."""
    memo: dict[int, object] = {}
    for path, child in module.named_modules():
        for name, t in (*child._parameters.items(), *child._buffers.items()):
            if t is None or id(t) in memo:
                continue
            if isinstance(t, UninitializedTensorMixin):
                raise Refused(f"its child {path!r} is not initialised yet")
            if type(t) not in _PLAIN_TENSORS:
                raise Refused(f"one of its parameters is a {type(t).__name__}, not a plain tensor")
            new = _random(child, name, t, generator) if t.is_floating_point() else torch.zeros_like(t, device="cpu")
            memo[id(t)] = nn.Parameter(new, requires_grad=False) if isinstance(t, nn.Parameter) else new
    for child in module.modules():
        for name, value in vars(child).items():
            if "_hooks" in name and isinstance(value, dict):
                memo[id(value)] = OrderedDict()
            elif name not in ("_parameters", "_buffers", "_modules"):
                for t in _tensors(value, set()):  # results kept from an earlier call cannot be copied by deepcopy
                    memo.setdefault(id(t), torch.zeros_like(t, device="cpu") if t.is_meta else t.detach().cpu().clone())
    return memo


def _tensors(value: object, seen: set[int]) -> Iterator[torch.Tensor]:
    """The tensors in an attribute, also those in lists, tuples, sets and dictionaries."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple, set, dict)) and id(value) not in seen:
        seen.add(id(value))
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item, seen)


def _random(owner: nn.Module, name: str, t: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if isinstance(owner, _NORMS):  # of a kind that leaves no channel dead behind a ReLU
        uniform = torch.rand(t.shape, dtype=torch.float64, device="cpu", generator=generator)
        return uniform + (0.5 if name in ("weight", "running_var") else -0.5)
    fan_in = t[0].numel() if t.dim() > 1 and t.numel() else 1
    return normal(generator, *t.shape) / fan_in**0.5
