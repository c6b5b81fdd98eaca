"""The behaviour of fused modules: put before a module's own class in place, or built into ours.

A module is fused by :func:`apply`, which changes its class in place, and plain again by :func:`remove`. Modules that
are built fused (:class:`FusedGhostModule` and the like) have the behaviour as a base class. Both hold a block
(:mod:`._block`), which decides and runs a call.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import nn

from .block import Block
from .in_place import STATE, InPlace, change_class, made_class, restore_class, standing_for


class Fused(InPlace):
    """Base of the behaviours of fused modules."""

    name_prefix = "Fused"
    block_type: ClassVar[type[Block]]

    @classmethod
    def __subclasshook__(cls, subclass: type) -> bool:
        """Every module with the behaviour of a class that can be built fused counts as its instance (``ABCMeta``)."""
        made = made_class(subclass)
        if made is None or "behaviour" not in cls.__dict__:
            return NotImplemented
        return issubclass(made._behaviour, cls.behaviour) or NotImplemented

    def _forward(self, *args: object, **kwargs: object) -> torch.Tensor:
        block = self._ghost_ops
        if len(args) == 1 and not kwargs:
            return block.forward(self, args[0])
        if not args and len(kwargs) == 1 and block.input_name in kwargs:
            return block.forward(self, kwargs[block.input_name])
        return plain_forward(self, *args, **kwargs)  # raises the error of the module's own forward

    def _apply(self, *args: object, **kwargs: object) -> nn.Module:
        block = self.__dict__.get(STATE)
        if block is not None and block.graphs is not None:
            block.graphs.forget()
        return super()._apply(*args, **kwargs)

    def _replicate_for_data_parallel(self) -> nn.Module:
        replica = super()._replicate_for_data_parallel()
        replica.__dict__[STATE] = block_of(self).fresh()
        return replica


def _forward_of_block(self: BuiltFused, x: torch.Tensor) -> torch.Tensor:
    return self._ghost_ops.forward(self, x)


class BuiltFused(nn.Module):
    """What can be built fused, before its behaviour in the method resolution order."""

    behaviour: ClassVar[type[Fused]]
    plain_type: ClassVar[type[nn.Module]]

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "plain_type" in cls.__dict__:
            cls.forward = standing_for(cls.plain_type.forward, _forward_of_block)

    def why(self, x: torch.Tensor) -> str:
        """What would run on an input such as x, and why nothing faster does."""
        return str(self._ghost_ops.decide(self, x))

    @classmethod
    def wrap(cls, source: nn.Module, parts: object) -> nn.Module:
        """Fuse a module of any class in place; ``ghost_ops.fuse`` recognises it and does the same.

        Args:
            source: a module that computes what this class computes; the caller has made sure of it.
            parts: where its pieces are, as of ``ghost_ops.nn.GhostParts`` and the like.

        Returns:
            ``source``.

        Raises:
            TypeError: a source that is not a module or is fused already, parts of another kind.
            ValueError: a path in ``parts`` that does not exist, or a source whose forward was replaced.
        """
        apply(source, cls.behaviour, parts, owner=f"{cls.__name__}.wrap")
        return source

    def unwrap(self) -> nn.Module:
        """Make this module plain, in place, and return it."""
        remove(self)
        return self

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        if STATE not in self.__dict__:
            _of_version_0_1(self)


def _of_version_0_1(module: nn.Module) -> None:
    """A fused module that version 0.1 has pickled stood in the place of another, ``_source``, and shared its state."""
    state = module.__dict__
    source, parts, memory = (state.pop(name, None) for name in ("_source", "_source_parts", "memory"))
    state[STATE] = module.block_type()
    if source is not None:
        behaviour = type(module).behaviour
        object.__setattr__(module, "__class__", type(source))
        apply(module, behaviour, parts)
    if memory is not None:
        module._ghost_ops.memory = memory


def block_of(module: nn.Module) -> Block | None:
    """The block of a fused module; None of any other."""
    return module._ghost_ops if isinstance(module, Fused) else None


def is_fused(module: nn.Module) -> bool:
    """Whether the module is fused: by ``fuse``, or built so."""
    return isinstance(module, Fused)


def plain_type(module: nn.Module) -> type[nn.Module]:
    """The class that a fused module has without its behaviour."""
    own = getattr(type(module), "_source_class", None)  # of the nearest class that was made
    return type(module).plain_type if own is None else own


def plain_forward(module: nn.Module, *args: object, **kwargs: object) -> torch.Tensor:
    """The computation of the plain module, through its children."""
    return plain_type(module).forward(module, *args, **kwargs)


def apply(
    module: nn.Module,
    behaviour: type[Fused],
    parts: object,
    reads: tuple[tuple[str, str], ...] = (),
    owner: str = "fuse",
) -> None:
    """Fuse a module in place.

    Args:
        module: a plain module that computes what the behaviour computes; the caller has made sure of it.
        behaviour: what it becomes.
        parts: where its pieces are.
        reads: path and name of the attributes that decide what its forward computes.
        owner: who asks, for messages.

    Raises:
        TypeError: no module, one that is fused already, parts of another kind, or a class that cannot be derived from.
        ValueError: a path in ``parts`` that does not exist, or a module whose forward was replaced.
    """
    if not isinstance(module, nn.Module) or is_fused(module):
        raise TypeError(f"{owner}: source: expected a plain module, got {type(module).__name__}")
    if "forward" in module.__dict__:
        raise ValueError(f"{owner}: source: expected its class's forward, got one set on the instance")
    block_type = behaviour.block_type
    if not isinstance(parts, block_type.Parts):
        raise TypeError(f"{owner}: parts: expected {block_type.Parts.__name__}, got {type(parts).__name__}")
    for path in block_type.paths(parts, owner):
        try:
            module.get_submodule(path)
        except AttributeError:
            raise ValueError(f"{owner}: parts: expected paths inside a {type(module).__name__}, got {path!r}") from None
    (input_name, *_) = inspect.signature(module.forward).parameters
    block = block_type(parts, input_name)
    reads = (*reads, *_forwards(module, block_type.paths(parts, owner)))
    units = [f"{name}." for name, child in module.named_modules() if name and is_fused(child)]  # watch themselves
    block.watch(module, tuple(read for read in reads if not f"{read[0]}.".startswith(tuple(units))))
    change_class(module, behaviour, block)


def _forwards(module: nn.Module, paths: list[str]) -> Iterator[tuple[str, str]]:
    """What decides on the forwards of the containers on the way to the pieces: the class, and one of the instance."""
    for path in paths:
        names = path.split(".")
        for i in range(1, len(names)):
            above = ".".join(names[:i])
            container = module.get_submodule(above)
            if type(container) is not nn.Sequential and not is_fused(container):
                yield above, "__class__"
                yield above, "forward"


def remove(module: nn.Module) -> None:
    """Make a fused module plain again, in place: what ``apply`` did is undone, what was built fused becomes plain.

    A module whose class derives from a fused one stays as it is.
    """
    made = made_class(type(module))
    if made is type(module):
        restore_class(module)
    elif made is None and "behaviour" in vars(type(module)):
        module.__dict__.pop(STATE, None)
        object.__setattr__(module, "__class__", type(module).plain_type)
