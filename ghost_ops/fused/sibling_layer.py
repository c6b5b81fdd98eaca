"""A convolution, BatchNorm and activation that are children of a net and are called by its forward one after the other.

They are three modules, each of which may be called on its own, so each must return what it is to return. Only where the
calling code is proven to hand each result to the next one and to nothing else (:mod:`.call_sites`) does the convolution
compute all three. The other two then hand on what they get.
"""

from __future__ import annotations

import sys
import threading
import weakref
from types import FrameType

import torch
from torch import nn

from ..activations import code_of
from ..dispatch import PLAIN_TENSORS, Decision, plain
from . import convolutions
from .behaviour import Fused, block_of, is_fused, plain_forward
from .block import Route, _observers, observed
from .call_sites import children_called_at, sites_of_class
from .conv_layer import ConvLayerBlock, ConvLayerParts, may_run
from .errors import NotNow, Unfusable
from .in_place import change_class
from .layers import is_conv, is_norm
from .registry import behaviour_of

_CALLS = Fused._forward, nn.Module._call_impl, nn.Module._wrapped_call_impl
_BETWEEN = frozenset(function.__code__ for function in _CALLS)  # a call of a module and its block


class _Running(threading.local):
    """The run of this thread whose convolution has computed all: the modules still to come, and its result."""

    to_come: tuple[nn.Module, ...] = ()
    result: weakref.ref | None = None


_running = _Running()


class SiblingBlock(ConvLayerBlock):
    """What one of the three remembers: the names of all, and which of them it is.

    Attributes:
        names: of the modules in the order of their calls.
        name: of this one.
    """

    kind = "convolution layer of siblings"

    def __init__(self, parts: ConvLayerParts, name: str) -> None:
        super().__init__(parts)
        self.name = name
        self.names = tuple(path for path in (parts.conv, parts.norm, parts.act) if path is not None)

    def forward(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if _observers and not torch.compiler.is_compiling():
            caller = sys._getframe(1)
            return observed(module, x, lambda: self._route_from(module, x, caller))
        if self.name == self.names[0]:
            if may_run(module, x) and _may_be_large(module, x):
                return self._route_from(module, x, sys._getframe(1)).run()
        elif not torch.compiler.is_compiling() and _takes(module, x):
            return x
        return plain_forward(module, x)

    def route(self, module: nn.Module, x: torch.Tensor) -> Route:
        return self._route_from(module, x, None)

    def _route_from(self, module: nn.Module, x: torch.Tensor, frame: FrameType | None) -> Route:
        """What runs a call that comes from a frame, or from nowhere."""
        if self.name != self.names[0]:
            if _takes(module, x):
                return Route(Decision(f"within {self.names[0]}", "reference"), lambda: x)
            return Route(plain(), lambda: plain_forward(module, x))
        _running.to_come = ()
        try:
            return self._route_of_run(module, x, frame)
        except Unfusable as why:
            return Route(plain(str(why)), lambda: plain_forward(module, x))

    def _route_of_run(self, module: nn.Module, x: torch.Tensor, frame: FrameType | None) -> Route:
        if not module.training:
            raise NotNow("in eval it is a program only where ghost_ops.freeze makes one")
        if type(x) not in PLAIN_TENSORS:
            raise NotNow(f"its input is a {type(x).__name__}, not a plain tensor")
        parent = _owner(module, self.names, frame)
        route = self.trained_layer(parent, x)
        names = self.names[1:]
        following = tuple(parent._modules[name] for name in names)

        def run() -> torch.Tensor:
            out = route.run()
            _running.to_come, _running.result = following, weakref.ref(out)
            return out

        return Route(Decision(f"with {' and '.join(names)}, {route.decision.runs}", route.decision.backend), run)


SiblingBlock.behaviour = behaviour_of(SiblingBlock)


def _may_be_large(conv: nn.Module, x: torch.Tensor) -> bool:
    """Whether its result may be large enough for an operator; cheaper than to look who calls it."""
    return x.dim() == 4 and x.shape[0] * conv.out_channels * x.shape[2] * x.shape[3] >= convolutions.LEAST_NORMALISED


def _takes(module: nn.Module, x: torch.Tensor) -> bool:
    """Whether x is the result of a run in which ``module`` is the next: it is done already."""
    run = _running
    if not run.to_come or run.to_come[0] is not module or run.result() is not x:
        return False
    run.to_come = run.to_come[1:]
    return True


def _owner(module: nn.Module, names: tuple[str, ...], frame: FrameType | None) -> nn.Module:
    """The module whose method calls ``module`` now, at a place where the other two follow; raises ``Unfusable``."""
    while frame is not None and (frame.f_code in _BETWEEN or frame.f_code is type(module).forward.__code__):
        frame = frame.f_back
    called = () if frame is None else children_called_at(frame)
    if called[: len(names)] != names:
        raise NotNow("what calls it is not known to give its result to nothing but its BatchNorm")
    owner = frame.f_locals[frame.f_code.co_varnames[0]]
    if not isinstance(owner, nn.Module) or owner._modules.get(names[0]) is not module:
        raise NotNow("it is not called by a method of the module whose child it is")
    own = type(owner)
    for name in names:
        block = block_of(owner._modules.get(name))
        if not isinstance(block, SiblingBlock) or block.names != names or block.name != name:
            raise NotNow(f"{name!r} is another module than was fused with it")
        if name in owner.__dict__ or getattr(own, name, None) is not None:
            raise NotNow(f"{name!r} is not only a child of the module that calls it")
    if own.__getattr__ is not nn.Module.__getattr__ or own.__getattribute__ is not object.__getattribute__:
        raise NotNow("the class of the module that calls it looks its children up in another way")
    return owner


def fuse_siblings(owner: nn.Module) -> None:
    """Fuse the convolutions among the children of a module with those that its methods call after them, in place."""
    children = owner._modules
    convs = {name for name, m in children.items() if is_conv(m) and m.padding_mode == "zeros"}
    if not convs or not any(map(is_norm, children.values())):
        return
    for site in sorted(set(sites_of_class(type(owner)))):
        modules = [children.get(name) for name in site]
        if site[0] not in convs or not is_norm(modules[1]):
            continue
        ends_in_act = len(site) > 2 and modules[2] is not None and code_of(modules[2]) is not None
        taken = list(zip(site, modules))[: 3 if ends_in_act else 2]
        if not any(is_fused(module) for _, module in taken):
            parts = ConvLayerParts(*[name for name, _ in taken])
            for name, module in taken:
                change_class(module, SiblingBlock.behaviour, SiblingBlock(parts, name))
