"""What a fused module may read of the modules inside it, and how it notices that this has changed.

Fused code takes parameters past the ``forward`` of the children that own them. That is right only while the children
are exactly those that were recognised, and nothing (a hook, a parametrisation, a replaced forward) acts when they are
called. ``Structure`` finds them once and checks that on every call, at some 200 ns a child.
"""

from __future__ import annotations

from operator import itemgetter
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.utils import _pair

from ..activations import NONE, PRELU, code_of, fixed_attributes, slope_of
from ._watch import Watched
from .sync_batch_norm import SyncBatchNorm

SYNCED = (nn.SyncBatchNorm, SyncBatchNorm)
NORMS = (nn.BatchNorm2d, *SYNCED)
_GEOMETRY_OF = itemgetter("stride", "padding", "dilation", "groups", "padding_mode")
_NO_PADDING = ((0, 0), "valid", "same")


class Unfusable(Exception):
    """Why a module runs as plain PyTorch, in a sentence."""


class NotNow(Unfusable):
    """As :class:`Unfusable`, for a cause that may end without any change of structure."""


class Link(NamedTuple):
    """A child that was found: where, and what it was. The dictionaries are looked into on every call."""

    siblings: dict
    name: str
    child: nn.Module
    kind: type
    state: dict
    children: int
    parameters: dict
    buffers: dict


class Half(NamedTuple):
    """A convolution with what follows it.

    Attributes:
        conv, norm, act: the modules; None where there is none.
        code: code of the activation.
        geometry: stride, padding, dilation, groups and padding mode, each size a pair (or the name of a padding).
        seen: the same attributes as they stood, to notice a change.
        is_depthwise: whether there is a filter for each channel, square, with one stride, padded by half its size.
    """

    conv: nn.Conv2d
    norm: nn.Module | None
    act: nn.Module | None
    code: int
    geometry: tuple
    seen: tuple
    is_depthwise: bool = False

    def slope(self) -> float:
        return slope_of(self.act, self.code)

    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """Weight, bias, gamma, beta, running mean and variance, PReLU's weight: each None where there is none.

        From the dictionaries, where ``torch.func.functional_call`` too puts its tensors.
        """
        conv, norm = self.conv._parameters, self.norm
        try:
            weight, bias = conv["weight"], conv["bias"]
            slopes = self.act._parameters["weight"] if self.code == PRELU else None
            if norm is None:
                return weight, bias, None, None, None, None, slopes
            affine, running = norm._parameters, norm._buffers
            mean, var = running["running_mean"], running["running_var"]
            return weight, bias, affine["weight"], affine["bias"], mean, var, slopes
        except KeyError as name:  # sharded, pruned or otherwise computed: an attribute, but no parameter
            raise NotNow(f"{name} of one of its children is not a parameter or buffer of its own") from None

    def entries(self) -> tuple[tuple[dict, str] | None, ...]:
        """Where each of ``tensors`` stands: a dictionary and a name, or None where there is no such module."""
        conv, norm = self.conv._parameters, self.norm
        found = [(conv, "weight"), (conv, "bias"), None, None, None, None, None]
        if norm is not None:
            found[2:4] = (norm._parameters, "weight"), (norm._parameters, "bias")
            found[4:6] = (norm._buffers, "running_mean"), (norm._buffers, "running_var")
        if self.code == PRELU:
            found[6] = self.act._parameters, "weight"
        return tuple(found)

    def kernel(self) -> tuple[int, int]:
        """Height and width of the filters."""
        return _pair(self.conv.kernel_size)

    def is_pointwise(self) -> bool:
        stride, padding, _, groups, _ = self.geometry
        one = self.kernel() == (1, 1) and stride == (1, 1)
        return one and padding in _NO_PADDING and groups == 1

    def is_cheap(self, channels: int) -> bool:
        """A depthwise convolution of ``channels`` that keeps the size of the map."""
        (height, width), conv = self.kernel(), self.conv
        stride, padding, dilation, groups, _ = self.geometry
        same = padding in ((height // 2, width // 2), "same") and (dilation == (1, 1) or height == 1)
        square = height == width and height % 2 == 1
        return square and same and stride == (1, 1) and groups == conv.in_channels == channels

    def _is_depthwise(self) -> bool:
        (height, width), conv = self.kernel(), self.conv
        stride, padding, dilation, groups, _ = self.geometry
        half = padding == (height // 2, width // 2) or (padding == "same" and height % 2 == 1)
        regular = height == width and stride[0] == stride[1] and (dilation == (1, 1) or height == 1)
        return half and regular and groups == conv.in_channels == conv.out_channels


class Structure:
    """The children of ``root`` that fused code reads, each checked as it is found; raises ``Unfusable``."""

    def __init__(self, root: nn.Module) -> None:
        self.root: nn.Module | None = root
        self.places: list[tuple[nn.Module, str]] = []  # of the links: owner and name, while it is being read
        self.children, self.attributes = root._modules, root.__dict__  # of a replica's or a copy's nothing is known
        self.links: list[Link] = []
        self.halves: list[Half] = []
        self.fixed: list[tuple[dict, str, object]] = []  # attributes, name and value of what decides on an activation
        self.watched: tuple[tuple[dict, str, object, Watched], ...] = ()

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
        if is_hooked(child):
            raise Unfusable(f"its child {path!r} carries hooks, or a forward of its own: these must run")
        if "parametrizations" in child._modules:
            raise Unfusable(f"its child {path!r} is parametrised")
        self.fixed += [(child.__dict__, attribute, getattr(child, attribute)) for attribute in fixed_attributes(child)]
        self.places.append((owner, name))
        count, tensors = len(child._modules), (child._parameters, child._buffers)
        self.links.append(Link(owner._modules, name, child, type(child), child.__dict__, count, *tensors))

    def close(self) -> Structure:
        """To be called when all was found: a ``Sequential`` on the way must hold nothing else."""
        self.root, self.places = None, []  # the module holds its plan, and must not be held by it
        found = [link.child for link in self.links]
        for link in self.links:
            for name, child in link.child._modules.items() if link.kind is nn.Sequential else ():
                if not _is_nothing(child) and not any(child is other for other in found):
                    raise Unfusable(f"its child {link.name!r} also holds a {type(child).__name__}, {name!r}")
        return self

    def half(self, conv: str, norm: str | None, act: str | None) -> Half:
        """A convolution, the BatchNorm and the activation after it."""
        modules = [None if path is None else self.find(path) for path in (conv, norm, act)]
        return self.triple(*modules)

    def triple(self, conv: nn.Module, norm: nn.Module | None, act: nn.Module | None) -> Half:
        if type(conv) is not nn.Conv2d:
            raise Unfusable(f"one of its convolutions is a {type(conv).__name__}, not a Conv2d")
        if conv.padding_mode != "zeros":
            raise Unfusable(f"one of its convolutions pads with mode {conv.padding_mode!r}")
        norm = None if _is_nothing(norm) else norm
        if norm is not None and type(norm) not in NORMS:
            raise Unfusable(f"one of its normalisations is a {type(norm).__name__}, not a BatchNorm2d")
        seen = _geometry(conv)
        stride, padding, dilation, groups, mode = seen
        sizes = _pair(stride), padding if isinstance(padding, str) else _pair(padding), _pair(dilation)
        half = Half(conv, norm, act, self.activation(act), (*sizes, groups, mode), seen)
        half = half._replace(is_depthwise=half._is_depthwise())
        self.halves.append(half)
        return half

    @staticmethod
    def activation(act: nn.Module | None) -> int:
        """The code of an activation module."""
        if _is_nothing(act):
            return NONE
        code = code_of(act)
        if code is None:
            raise Unfusable(f"one of its activations is a {type(act).__name__}, which no operator knows")
        return code

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

    def halves_of(self, paths: tuple[str, ...]) -> list[Half]:
        """A chain of convolutions, each with the BatchNorm and the activation that may follow it."""
        chain, steps = self.leaves(paths), []
        while chain:
            conv, norm, act = chain.pop(0), None, None
            if chain and type(chain[0]) in NORMS:
                norm = chain.pop(0)
            if chain and code_of(chain[0]) is not None:
                act = chain.pop(0)
            steps.append(self.triple(conv, norm, act))
        return steps

    def has_changed(self, module: nn.Module) -> bool:
        """Whether a child of the module that this was read from was swapped, hooked, given another class, or a
        convolution another geometry, or a watched attribute another value."""
        if module._modules is not self.children or module.__dict__ is not self.attributes:
            return True
        for siblings, name, child, kind, state, children, parameters, buffers in self.links:
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
                or "forward" in state
            ):
                return True
        for half in self.halves:
            if _GEOMETRY_OF(half.conv.__dict__) != half.seen:
                return True
        for attributes, name, value in self.fixed:
            if attributes.get(name) != value:
                return True
        for attributes, name, fixed, attribute in self.watched:
            if attributes.get(name, attribute) is not fixed and attribute.has_changed():
                return True
        return False


def is_hooked(module: nn.Module) -> bool:
    """Whether something else than its class's forward runs when it is called."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def _is_nothing(module: nn.Module | None) -> bool:
    return module is None or type(module) is nn.Identity or (type(module) is nn.Sequential and not module._modules)


def _geometry(conv: nn.Conv2d) -> tuple:
    """As ``_GEOMETRY_OF``, which the compiler does not follow."""
    return conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode
