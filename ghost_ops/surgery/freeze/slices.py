"""Slices of a map by channels, and every other row or column of it; zeros around its channels.

The shortcut without parameters of a residual net (He et al., arXiv:1512.03385, option A) is both: it drops pixels, and
pads the channels that the block has more.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import fx, nn

from ...fused.errors import Unfusable
from ...fused.layers import ConvBNAct, conv_bn_act
from .calls import is_called
from .seen import Seen

_WHY = "no step computes such a slice"
_ALL = slice(None)


class Taken(NamedTuple):
    """Channels [begin, end) of a map, and of each ``stride`` rows and columns the first."""

    begin: int
    end: int
    stride: tuple[int, int] = (1, 1)


def taken(node: fx.Node, channels: int, seen: Seen) -> Taken:
    """What a slice takes of a map of so many channels. Raises ``Unfusable`` for another slice."""
    if is_called(node, ("narrow",)):
        names = dict(zip(("dim", "start", "length"), node.args[1:])) | node.kwargs
        begin, count = (seen.number(names[key]) for key in ("start", "length"))
        if names["dim"] not in (1, -3) or begin is None or count is None:
            raise Unfusable(_WHY)
        return _checked(Taken(begin % channels, begin % channels + count))
    index = _whole_index(node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],))
    bounds = [i if i is None else seen.number(i) for i in (index[1].start, index[1].stop)]
    given = index[1].start, index[1].stop
    is_computed = any(number is not None and known is None for number, known in zip(given, bounds))
    if index[0] != _ALL or is_computed or index[1].step not in (None, 1):
        raise Unfusable(_WHY)
    stride = tuple(1 if side.step is None else side.step for side in index[2:])
    if any(side.start not in (None, 0) or side.stop is not None for side in index[2:]):
        raise Unfusable("no step takes a part of the rows or columns of a map")
    if not all(type(n) is int and n > 0 for n in stride):
        raise Unfusable(_WHY)
    begin, end, _ = slice(*bounds).indices(channels)
    return _checked(Taken(begin, end, stride))


def _whole_index(index: tuple) -> list[slice]:
    """An index of four slices. Raises ``Unfusable`` for another one."""
    if Ellipsis in index:
        at = index.index(Ellipsis)
        index = (*index[:at], *[_ALL] * (5 - len(index)), *index[at + 1 :])
    if len(index) > 4 or not all(isinstance(i, slice) for i in index):
        raise Unfusable(_WHY)
    return [*index, *[_ALL] * (4 - len(index))]


def _checked(found: Taken) -> Taken:
    if found.end <= found.begin:
        raise Unfusable("its result has no channels")
    return found


def every_other(channels: int, stride: tuple[int, int], like: torch.Tensor) -> ConvBNAct:
    """A depthwise convolution of one pixel that takes the first of each ``stride`` rows and columns.

    Args:
        like: a parameter, whose dtype and device the weight has.
    """
    return conv_bn_act(_picking(channels, stride, like), None, None)


def identity_convolution(norm: nn.Module) -> nn.Conv2d:
    """A depthwise convolution that changes nothing, to stand before a BatchNorm of its own."""
    if norm.running_mean is None:
        raise Unfusable("one of its BatchNorms uses batch statistics")
    return _picking(norm.num_features, (1, 1), norm.running_mean)


def _picking(channels: int, stride: tuple[int, int], like: torch.Tensor) -> nn.Conv2d:
    conv = nn.Conv2d(channels, channels, 1, stride, groups=channels, bias=False, device="meta")
    weight = torch.ones(channels, 1, 1, 1, dtype=like.dtype, device=like.device)
    conv.weight = nn.Parameter(weight, requires_grad=False)
    return conv.eval()


def zeros_around(node: fx.Node, seen: Seen) -> tuple[int, int]:
    """How many channels of zeros a padding puts before and after those of a map.

    Raises:
        Unfusable: it pads with something else, or other sides.
    """
    names = dict(zip(("pad", "mode", "value"), node.args[1:])) | node.kwargs
    if names.get("mode", "constant") != "constant" or names.get("value") not in (None, 0):
        raise Unfusable("no step pads a map with something else than zeros")
    given = names.get("pad")
    pad = [seen.number(n) for n in given] if isinstance(given, (tuple, list)) else []
    if len(pad) < 6 or any(pad[:4]) or any(pad[6:]) or None in pad or min(pad[4:6]) < 0:
        raise Unfusable("no step pads the sides of a map but within a convolution")
    return pad[4], pad[5]
