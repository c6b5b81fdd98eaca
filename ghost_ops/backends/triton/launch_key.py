"""What an operator's launches depend on, apart from its tensors' addresses: the key of a recording.

Every call makes one, so what can be known from the types of the arguments is kept.
"""

from __future__ import annotations

import itertools
import operator
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

_TENSORS = frozenset((Tensor, Parameter))
_CONSTANTS = frozenset((int, float, bool, str))
_MOST = 4096
# What torch.backends and os.environ.get look at, which take 1 us more.
_conv_tf32, _matmul_tf32 = torch._C._get_cudnn_allow_tf32, torch._C._get_cublas_allow_tf32
_environment, _table = os.environ._data, os.environ.encodekey("GHOST_OPS_TILES")


@dataclass(frozen=True)
class _Layout:
    """Which of the arguments, or of the items of a list, are tensors, constants and lists.

    Attributes:
        number: stands for the types in a key. Types count, since 1, 1.0 and True are equal.
        tensors, constants, lists: take the items of each.
    """

    number: int
    tensors: Callable[[tuple | list], tuple | list]
    constants: Callable[[tuple | list], tuple]
    lists: Callable[[tuple | list], tuple]


_layouts: dict[tuple[type, ...], _Layout] = {}
_numbers = itertools.count()


def kind_of(function: Callable, args: tuple, tensors: list[Tensor]) -> tuple:
    """The key without what it says of tensors, which are added to ``tensors``.

    Raises:
        TypeError: an argument of which a key cannot tell what launches depend on.
        RuntimeError: TF32 is set in two ways.
    """
    key = [function, _conv_tf32(), _matmul_tf32(), _environment.get(_table)]
    read(args, key, tensors)
    return tuple(key)


def read(args: tuple | list, key: list, tensors: list[Tensor]) -> None:
    """Adds what is not a tensor to the key, and collects the tensors: those of nested lists last."""
    types = tuple(map(type, args))
    layout = _layouts.get(types)
    if layout is None:
        layout = _layout_of(types)
    key.append(layout.number)
    key += layout.constants(args)
    tensors += layout.tensors(args)
    for a in layout.lists(args):
        read(a, key, tensors)


def form_of(t: Tensor, address: int) -> tuple:
    """What launches depend on of a tensor: kernels are specialised for addresses that are multiples of 16."""
    return t.shape, t.stride(), t.dtype, t.get_device(), address % 16 == 0


def _layout_of(types: tuple[type, ...]) -> _Layout:
    places: dict[str, list[int]] = {"tensors": [], "constants": [], "lists": []}
    for i, kind in enumerate(types):
        if kind in _TENSORS:
            places["tensors"].append(i)
        elif kind in _CONSTANTS:
            places["constants"].append(i)
        elif kind is list or kind is tuple:
            places["lists"].append(i)
        elif kind is not type(None):
            raise TypeError(f"cached_launches: {kind}")
    if len(_layouts) >= _MOST:
        _layouts.clear()
    take = {name: _take(found, len(types)) for name, found in places.items()}
    return _layouts.setdefault(types, _Layout(next(_numbers), **take))


def _take(places: list[int], size: int) -> Callable[[tuple | list], tuple | list]:
    """A function that takes the items at these places, in this order."""
    if not places:
        return lambda items: ()
    if len(places) == size:
        return lambda items: items
    if places == list(range(places[0], places[-1] + 1)):
        return operator.itemgetter(slice(places[0], places[-1] + 1))
    return operator.itemgetter(*places)
