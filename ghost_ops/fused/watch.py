"""Attributes that a forward reads and that decide what it computes: noticed when one changes.

A recogniser says which attributes these are, such as a drop-path rate, a scale or the number of channels that are kept.
"""

from __future__ import annotations

import types
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import nn

from .in_place import source_class

MISSING = object()
_NEVER = object()
_FIXED = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)


class _Same(NamedTuple):
    """Stands for a value that is compared by identity, and for a tensor by its version too."""

    kind: type
    identity: int
    version: int


class Watched(NamedTuple):
    """An attribute of a module, and a snapshot of its value. ``owner`` is None of the module that is watched itself."""

    owner: nn.Module | None
    name: str
    value: object

    def has_changed(self, module: nn.Module) -> bool:
        return snapshot(_value(module if self.owner is None else self.owner, self.name)) != self.value


_FRAMEWORK = frozenset(vars(nn.Module()))


def plain_attributes(module: nn.Module) -> list[str]:
    """The names of the attributes that a module has beside those of every module."""
    return [name for name in vars(module) if name not in _FRAMEWORK]


class Watch:
    """What attributes were when a module was recognised.

    Args:
        module: the module.
        reads: path of a module inside it ("" for itself) and name of an attribute, for each that counts.
    """

    def __init__(self, module: nn.Module, reads: tuple[tuple[str, str], ...]) -> None:
        self.reads = tuple(dict.fromkeys(reads))
        self.values = [snapshot(_read(module, path, name)) for path, name in self.reads]

    def __getstate__(self) -> dict:
        """What is compared by identity is another object in a copy: it is taken as it stands there."""
        return {"reads": self.reads, "values": [None if _by_identity(value) else value for value in self.values]}

    def changed(self, module: nn.Module) -> str | None:
        """The first attribute that has another value now, as a phrase; None where there is none."""
        compiling = torch.compiler.is_compiling()
        for i, (path, name) in enumerate(self.reads):
            value = self.values[i]
            if compiling and (value is None or _by_identity(value)):
                continue  # the compiler guards the objects that it meets
            now = snapshot(_read(module, path, name))
            if value is None:
                self.values[i] = now
            elif now != value:
                where = f" of its child {path!r}" if path else ""
                return f"the attribute {name!r}{where} has changed since it was recognised"
        return None

    def bound(
        self, module: nn.Module, known: Collection[nn.Module] = ()
    ) -> tuple[tuple[dict | None, str, object, Watched], ...]:
        """The attributes with their owners, for a check on every call: where each stands (None: in the module itself),
        and the value itself where that cannot change. An owner that is gone was a child, whose return the structure
        notices.

        Args:
            known: modules whose classes are checked elsewhere.
        """
        found = []
        for (path, name), value in zip(self.reads, self.values, strict=True):
            owner, now = _owner(module, path), _read(module, path, name)
            if owner is None or (name == "__class__" and any(owner is m for m in known)):
                continue
            own = owner is module
            watched = Watched(None if own else owner, name, value)
            if name == "forward":  # by what stands in the dictionary: asking for a method makes a new object
                fixed = owner.__dict__.get(name, watched)
            else:
                fixed = now if type(now) in _FIXED else _NEVER
            found.append((None if own else owner.__dict__, name, fixed, watched))
        return tuple(found)


def _by_identity(value: object) -> bool:
    if isinstance(value, _Same):
        return True
    return isinstance(value, (tuple, frozenset)) and any(map(_by_identity, value))


def _owner(module: nn.Module, path: str) -> nn.Module | None:
    for step in path.split(".") if path else ():
        module = module._modules.get(step)
        if module is None:
            return None
    return module


def _read(module: nn.Module, path: str, name: str) -> object:
    owner = _owner(module, path)
    return MISSING if owner is None else _value(owner, name)


def _value(owner: nn.Module, name: str) -> object:
    """The value of an attribute; of the class the module's own, whatever was put before it; of a forward that the
    instance has, the name of a method of its class."""
    if name == "__class__":
        return source_class(owner)
    if name != "forward":
        return getattr(owner, name, MISSING)
    forward = vars(owner).get(name, MISSING)
    return forward.__name__ if is_own_method(owner, forward) else forward


def is_own_method(module: nn.Module, forward: object) -> bool:
    """Whether a forward that an instance has is another method of its own class, which a copy of it has too.

    ``ultralytics`` sets ``module.forward = module.forward_fuse`` when it folds BatchNorms. Which method it is decides
    what is computed: whoever takes it for granted must watch it. Of a module that fused code reads in the stead of
    running it, such as a convolution, no other forward will do.
    """
    if not isinstance(forward, types.MethodType) or forward.__self__ is not module or not module._modules:
        return False
    inherited = getattr(type(module), forward.__name__, None)
    return type(module) is not nn.Sequential and inherited is forward.__func__


def snapshot(value: object) -> object:
    """Something that equals the snapshot of the value as long as the value is the same."""
    kind = type(value)
    if kind in _FIXED:
        return kind, value
    if value is MISSING:  # in a copy too
        return kind, "missing"
    if kind in (tuple, list, torch.Size):
        return kind, tuple(map(snapshot, value))
    if kind is dict:
        return kind, tuple((snapshot(k), snapshot(v)) for k, v in value.items())
    if kind in (set, frozenset):
        return kind, frozenset(map(snapshot, value))
    version = value._version if isinstance(value, torch.Tensor) and not value.is_inference() else 0
    return _Same(kind, id(value), version)
