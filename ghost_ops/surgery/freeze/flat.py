"""Maps that are flattened to features: ``x.flatten(1)``, ``x.view(x.size(0), -1)``."""

from __future__ import annotations

from collections.abc import Collection

from torch import fx, nn

from .calls import is_called
from .seen import Seen


def is_flat(node: fx.Node, module: nn.Module | None, seen: Seen, known: Collection[fx.Node]) -> bool:
    """Whether a node is all numbers of each image of a map in a row, as many on every call.

    Args:
        module: what it calls.
        known: nodes whose values have the batch of the map.
    """
    shapes = seen.shapes(node)
    if shapes is None or any(len(shape) != 2 or shape[1] != shapes[0][1] for shape in shapes):
        return False
    if type(module) is nn.Flatten:
        return (module.start_dim, module.end_dim) in ((1, -1), (1, 3))
    if is_called(node, ("flatten",)):
        dims = {"start_dim": 0, "end_dim": -1} | dict(zip(("start_dim", "end_dim"), node.args[1:])) | node.kwargs
        return dims["start_dim"] == 1 and dims["end_dim"] in (-1, 3)
    sizes = _sizes_of(node)
    if len(sizes) != 2 or not (sizes[1] == -1 or (seen.number(sizes[1]) or 0) > 0):
        return False
    batch = seen.dims(sizes[0]) or []
    return [dim.index for dim in batch] == [0] and batch[0].node in known


def says_count(node: fx.Node) -> bool:
    """Whether it says itself how many numbers there are, so that it takes maps of no other size."""
    return [type(size) for size in _sizes_of(node)[1:]] == [int] and _sizes_of(node)[1] > 0


def _sizes_of(node: fx.Node) -> tuple:
    """The sizes that a view is given, one after the other or as one argument."""
    sizes = node.args[1:] if is_called(node, ("view", "reshape")) and not node.kwargs else ()
    return tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
