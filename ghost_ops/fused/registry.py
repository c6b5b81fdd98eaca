"""The kinds of blocks that ``fuse`` and ``freeze`` know."""

from __future__ import annotations

import inspect
from dataclasses import is_dataclass
from typing import TypeVar

from .behaviour import Fused
from .block import Block
from .layer_block import LayerBlock

B = TypeVar("B", bound=type[Block])
_blocks: list[type[Block]] = []

# What a kind of block must define, with the names of the arguments.
_OF_BLOCK = {
    "match": ("candidate",),
    "describe": ("module", "structure"),
    "route_without_program": ("module", "x", "why"),
}
_OF_LAYER_BLOCK = {
    "find": ("module",),
    "read": ("structure", "parts"),
    "compute": ("layers", "x"),
}
_OPTIONAL = {
    "lower": ("layers", "builder", "source"),
    "in_channels": ("layers",),
    "channels": ("module",),
    "examples": (),
    "lower_module": ("module", "builder", "source"),
}


def register_block(block: B) -> B:
    """Make a kind of block known to ``fuse``, ``freeze`` and ``explain``; usable as a decorator.

    A module that the block finds is held against the block by running a copy of it: values and gradients, in training
    and in eval, and in eval the result of the program. Where they differ the module stays as it is, and ``fuse`` warns
    with the difference.

    Args:
        block: a class that derives from :class:`ghost_ops.LayerBlock`. See there for what it defines.

    Returns:
        ``block``.

    Raises:
        TypeError: block is not such a class, or lacks something, or one of its methods takes other arguments.
        ValueError: its ``kind`` is empty, or that of another block.
    """
    owner = f"register_block: {getattr(block, '__name__', block)!s}"
    if not (isinstance(block, type) and issubclass(block, Block)):
        raise TypeError(f"register_block: block: expected a class that derives from LayerBlock, got {block!r}")
    kind, parts = getattr(block, "kind", None), getattr(block, "Parts", None)
    if not isinstance(kind, str) or not kind:
        raise ValueError(f"{owner}.kind: expected what explain calls such a module, got {kind!r}")
    if any(known.kind == kind for known in _blocks if known is not block):
        raise ValueError(f"{owner}.kind: expected one that no other block has, got {kind!r}")
    if not (isinstance(parts, type) and is_dataclass(parts)):
        raise TypeError(f"{owner}.Parts: expected a dataclass of paths, got {parts!r}")
    required = _OF_LAYER_BLOCK if issubclass(block, LayerBlock) else _OF_BLOCK
    for name, arguments in (required | _OPTIONAL).items():
        method = inspect.getattr_static(block, name, None)
        bases = (inspect.getattr_static(base, name, None) for base in (Block, LayerBlock))
        if name in required and any(method is inherited for inherited in (None, *bases)):
            raise TypeError(f"{owner}.{name}: expected a method that takes ({', '.join(arguments)}), found none")
        if method is not None:
            _check_signature(f"{owner}.{name}", block, name, arguments)
    if block not in _blocks:
        block.behaviour = behaviour_of(block)
        _blocks.append(block)
    return block


def _check_signature(owner: str, block: type[Block], name: str, arguments: tuple[str, ...]) -> None:
    method = inspect.getattr_static(block, name)
    bound = isinstance(method, (staticmethod, classmethod))
    function = method.__func__ if bound else method
    signature = inspect.signature(function)
    given = arguments if isinstance(method, staticmethod) else ("self", *arguments)
    try:
        signature.bind(*given)
    except TypeError:
        expected = ", ".join(arguments)
        raise TypeError(f"{owner}: expected a method that takes ({expected}), got {name}{signature}") from None


def behaviour_of(block: type[Block]) -> type[Fused]:
    """The class that comes before the own class of a fused module. Pickles find it by its qualified name."""
    body = {
        "__doc__": f"The behaviour of a fused {block.kind}.",
        "__module__": block.__module__,
        "__qualname__": f"{block.__qualname__}.behaviour",
        "block_type": block,
    }
    return type("behaviour", (Fused,), body)


def unregister_block(block: type[Block]) -> None:
    """Forget a kind of block. Modules that are fused already stay fused.

    Raises:
        ValueError: it is not registered.
    """
    if block not in _blocks:
        raise ValueError(f"unregister_block: block: expected a registered one, got {block!r}")
    _blocks.remove(block)


def registered_blocks(
    holds_blocks: bool | None = None, is_layer: bool | None = None, is_open: bool | None = None
) -> list[type[Block]]:
    """The kinds of blocks in the order in which they are looked for: by priority, then as they were registered.

    Args:
        holds_blocks: only those whose pieces are blocks (True) or are not (False); None for all.
        is_layer: only those that are looked for outside of blocks (True) or that are not (False); None for all.
        is_open: only those inside of which all is fused on its own too (True) or is not (False); None for all.
    """
    wanted = [block for block in _blocks if holds_blocks is None or block.holds_blocks == holds_blocks]
    wanted = [block for block in wanted if is_layer is None or block.is_layer == is_layer]
    wanted = [block for block in wanted if is_open is None or block.is_open == is_open]
    return sorted(wanted, key=lambda block: -block.priority)
