"""What a fused module may read of the modules inside it, and how it notices that this has changed.

Fused code takes parameters past the ``forward`` of the children that own them. That is right only while the children
are exactly those that were recognised, and nothing (a hook, a parametrisation, a replaced forward) acts when they are
called. ``Structure`` finds them once and checks that on every call, at some 200 ns a child.
"""

from __future__ import annotations

import weakref
from typing import NamedTuple

from torch import nn

from ..activations import Function, fixed_attributes
from .errors import Unfusable
from .in_place import source_class
from .layers import ConvBNAct, conv_bn_act, does_nothing, geometry_now, take_layer
from .watch import Watched, is_own_method


class WatchedChild(NamedTuple):
    """A child that was found: where, and what it was. The dictionaries are looked into on every call."""

    siblings: dict
    name: str
    child: nn.Module
    kind: type
    forward: object  # that of the instance, or None
    state: dict
    children: int
    parameters: dict
    buffers: dict


class Structure:
    """The children of ``root`` that fused code reads, each checked as it is found; raises ``Unfusable``.

    Args:
        root: the module.
        is_probed: whether it is a copy that is run to be looked at: its hooks are the observer's.
    """

    def __init__(self, root: nn.Module, is_probed: bool = False) -> None:
        self.is_probed = is_probed
        self.root: nn.Module | None = root
        self.places: list[tuple[nn.Module, str]] = []  # owner and name of each child that was read
        # Of a replica's or a copy's nothing is known. What is kept must not hold the module, which holds it: else only
        # the garbage collector would free a net.
        self.modules, self.read_from = root._modules, weakref.ref(root)
        self.order = tuple(root._modules) if isinstance(root, nn.Sequential) else None  # it calls all its children
        self.children: list[WatchedChild] = []
        self.layers: list[ConvBNAct] = []
        self.fixed: list[tuple[dict, str, object]] = []  # attributes that decide on an activation, and their values
        self.watched: tuple[tuple[dict | None, str, object, Watched], ...] = ()

    def find(self, path: str) -> nn.Module:
        """The module at ``path``; everything on the way counts as read."""
        module = self.root
        for name in path.split("."):
            child = module._modules.get(name)
            if child is None:
                raise Unfusable(f"it has no child at {path!r}")
            if not any(owner is module and other == name for owner, other in self.places):
                self._read(module, name, child, path)
            module = child
        return module

    def _read(self, owner: nn.Module, name: str, child: nn.Module, path: str) -> None:
        own = child.__dict__.get("forward")
        if not self.is_probed and (has_hooks(child) or (own is not None and not is_own_method(child, own))):
            raise Unfusable(f"its child {path!r} carries hooks, or a forward of its own: these must run")
        if "parametrizations" in child._modules:
            raise Unfusable(f"its child {path!r} is parametrised")
        fixed = fixed_attributes(source_class(child))
        self.fixed += [(child.__dict__, attribute, getattr(child, attribute)) for attribute in fixed]
        self.places.append((owner, name))
        count, tensors = len(child._modules), (child._parameters, child._buffers)
        kind, state = type(child), child.__dict__
        self.children.append(WatchedChild(owner._modules, name, child, kind, own, state, count, *tensors))

    def close(self) -> Structure:
        """To be called when all was found: what runs as a ``Sequential`` on the way must hold nothing else."""
        self.root, self.places = None, []
        found = [watched.child for watched in self.children]
        for watched in self.children:
            for name, child in watched.child._modules.items() if _is_sequential(watched.child) else ():
                if not does_nothing(child) and not any(child is other for other in found):
                    raise Unfusable(f"its child {watched.name!r} also holds a {type(child).__name__}, {name!r}")
        return self

    def conv_bn_act(
        self, conv: str, norm: str | None, act: str | None, function: Function | None = None, *, derived: bool = False
    ) -> ConvBNAct:
        """A convolution with the BatchNorm and the activation after it, by their paths.

        Args:
            function: the activation where no module computes it.
            derived: whether the BatchNorm may be of a class derived from PyTorch's, which was seen to compute the same.
        """
        found = [None if path is None else self.find(path) for path in (conv, norm, act)]
        return self._layer(*found[:2], found[2] if function is None else function.module(), derived)

    def _layer(
        self, conv: nn.Module, norm: nn.Module | None, act: nn.Module | None, derived: bool = False
    ) -> ConvBNAct:  # fmt: skip
        layer = conv_bn_act(conv, norm, act, derived)
        self.layers.append(layer)
        return layer

    def leaves(self, paths: tuple[str, ...]) -> list[nn.Module]:
        """The modules at ``paths`` in order, ``Sequential`` opened, what does nothing left out."""
        found = []
        for path in paths:
            module = self.find(path)
            if type(module) is nn.Sequential:
                found += self.leaves(tuple(f"{path}.{name}" for name in module._modules))
            elif type(module) is not nn.Identity:
                found.append(module)
        return found

    def conv_bn_acts(self, paths: tuple[str, ...]) -> list[ConvBNAct]:
        """A chain of convolutions, each with the BatchNorm and the activation that may follow it."""
        chain, layers = self.leaves(paths), []
        while chain:
            conv, norm, act, _ = take_layer(chain)
            layers.append(self._layer(conv, norm, act))
        return layers

    def has_changed(self, module: nn.Module) -> bool:
        """Whether a child of the module that this was read from was swapped, hooked, given another class, or a
        convolution another geometry, or a watched attribute another value."""
        if module._modules is not self.modules or module is not self.read_from():
            return True
        if self.order is not None and tuple(self.modules) != self.order:
            return True
        for siblings, name, child, kind, forward, state, children, parameters, buffers in self.children:
            if (
                siblings.get(name) is not child
                or type(child) is not kind
                or len(state["_modules"]) != children
                or state["_parameters"] is not parameters
                or state["_buffers"] is not buffers
                or state["_forward_hooks"]
                or state["_forward_pre_hooks"]
                or state["_backward_hooks"]
                or state["_backward_pre_hooks"]
                or state.get("forward") is not forward
            ):
                return True
        for layer in self.layers:
            if geometry_now(layer.conv.__dict__) != layer.seen:
                return True
        for attributes, name, value in self.fixed:
            if attributes.get(name) != value:
                return True
        own = module.__dict__
        for attributes, name, fixed, attribute in self.watched:
            place = own if attributes is None else attributes
            if place.get(name, attribute) is not fixed and attribute.has_changed(module):
                return True
        return False


def _is_sequential(module: nn.Module) -> bool:
    """Whether it calls all its children in turn, a class derived from ``Sequential`` included."""
    return getattr(source_class(module), "forward", None) is nn.Sequential.forward


def is_hooked(module: nn.Module) -> bool:
    """Whether something else than its class's forward runs when it is called."""
    return has_hooks(module) or "forward" in module.__dict__


def has_hooks(module: nn.Module) -> bool:
    """Whether something runs before or after its forward when it is called."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
