"""A module's class changed in place, so that the module stays the object that it was.

``fuse`` and ``freeze`` give a module a class that derives from a behaviour (a subclass of :class:`InPlace`) and from
the module's own class, as ``torch.distributed.fsdp.fully_shard`` does. ``isinstance``, methods, properties,
attributes, the signature of ``forward`` and references held elsewhere stay as they were. Whatever the behaviour does
not define is the module's own.
"""

from __future__ import annotations

import copyreg
import functools
import inspect
import types
from collections.abc import Callable
from typing import ClassVar

from torch import nn

_EMPTY = types.CellType()
STATE = "_ghost_ops"  # the one attribute that a fused module gains


class InPlace(nn.Module):
    """Base of the behaviours that come before a module's own class in the method resolution order.

    A behaviour overrides ``_forward``, which gets the arguments of a call. It has no other public method or attribute,
    since each would hide one of the module's own. What it must remember is the one attribute that the module gains.
    """

    name_prefix: ClassVar[str] = "InPlace"
    state_name: ClassVar[str] = STATE

    def _forward(self, *args: object, **kwargs: object) -> object:
        """What a call of the module computes."""
        raise NotImplementedError

    def __init_subclass__(cls, **kwargs: object) -> None:
        if "_source_class" not in cls.__dict__:  # a made class is none that the source's own hook should register
            super().__init_subclass__(**kwargs)

    def __reduce_ex__(self, protocol: int) -> tuple:
        made = made_class(type(self))
        reduced = super().__reduce_ex__(max(protocol, 2))
        if made is None or not isinstance(reduced, tuple) or reduced[0] is not copyreg.__newobj__:
            return reduced
        cls, *args = reduced[1]
        if cls is not made:
            return reduced
        return _new, (made._behaviour, made._source_class, *args), *reduced[2:]  # a made class has no importable name


def in_place_class(behaviour: type[InPlace], source: type[nn.Module]) -> type[nn.Module]:
    """The class that puts ``behaviour`` before ``source``, made at the first request."""
    for known in type.__subclasses__(source):
        if known.__dict__.get("_behaviour") is behaviour:
            return known

    @functools.wraps(source.__init__)
    def __init__(self, *args, **kwargs):
        if type(self) is made:  # ``type(module)(...)`` makes a module as the class's own methods do: a plain one
            object.__setattr__(self, "__class__", source)
        source.__init__(self, *args, **kwargs)

    body = {
        "__init__": __init__,
        "__doc__": source.__doc__,
        "__module__": source.__module__,
        "_behaviour": behaviour,
        "_source_class": source,
        "forward": standing_for(source.forward),
    }
    name = behaviour.name_prefix + source.__name__
    made = types.new_class(name, (behaviour, source), exec_body=lambda namespace: namespace.update(body))
    return made


def _forward(self, *args, **kwargs):
    return self._forward(*args, **kwargs)


def standing_for(own: Callable[..., object], forward: types.FunctionType = _forward) -> Callable[..., object]:
    """A forward that is for all who read it the module's own one.

    It has the signature of that one, which callers and trainers ask for, and its source and its names, which
    ``torch.jit.script`` compiles: what is scripted is the plain module.

    Args:
        own: the module's own forward.
        forward: what it does instead, with attributes of the module only; by default it calls ``_forward``.
    """
    scope = getattr(own, "__globals__", {})
    cells = zip(own.__code__.co_freevars, own.__closure__ or ()) if inspect.isfunction(own) else ()
    local = {name: cell.cell_contents for name, cell in cells if cell != _EMPTY}
    made = types.FunctionType(forward.__code__, {**scope, **local} if local else scope)
    return functools.wraps(own)(made)


def made_class(cls: type) -> type | None:
    """The class among ``cls`` and its bases that ``in_place_class`` made, or None."""
    return next((base for base in cls.__mro__ if "_source_class" in base.__dict__), None)


def source_class(module: nn.Module) -> type[nn.Module]:
    """The module's own class."""
    made = made_class(type(module))
    return type(module) if made is None else made._source_class


def change_class(module: nn.Module, behaviour: type[InPlace], state: object) -> None:
    """Put ``behaviour`` before the module's own class, with ``state`` as what it remembers.

    Raises:
        TypeError: Python cannot change this object's class, or the class cannot be derived from.
    """
    made = in_place_class(behaviour, type(module))
    object.__setattr__(module, "__class__", made)
    module.__dict__[behaviour.state_name] = state


def restore_class(module: nn.Module) -> None:
    """Give the module its own class back.

    Raises:
        TypeError: another library has derived a class from the one that was made here.
    """
    made = made_class(type(module))
    if made is not type(module):
        raise TypeError(f"expected a module whose class was changed last by ghost_ops, got a {type(module).__name__}")
    object.__setattr__(module, "__class__", made._source_class)
    module.__dict__.pop(made._behaviour.state_name, None)


def _new(behaviour: type[InPlace], source: type[nn.Module], *args: object) -> nn.Module:
    """An object of the made class without its state, for copies and pickles."""
    made = in_place_class(behaviour, source)
    return made.__new__(made, *args)
