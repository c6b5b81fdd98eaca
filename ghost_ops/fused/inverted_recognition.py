"""Which modules are inverted residuals: 1x1 and depthwise convolutions in a chain nominate them, a run tells the order.

A BatchNorm may apply an activation of its own, as timm's ``BatchNormAct2d``. Such a BatchNorm counts as one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..activations import code_of
from .conv_layer import is_sequence
from .errors import Unfusable
from .ghost_recognition import skipped_reads
from .in_place import source_class
from .layers import does_nothing, is_conv, is_norm
from .squeeze_excite import SqueezeExciteBlock
from .structure import Structure

if TYPE_CHECKING:
    from .block import Block, Reads

MOST = 6  # convolutions in what is still a block
_WRONG = "it does not compute its convolutions one after the other, with or without its input added to the result"


class _Layer:
    """A convolution with what follows it, by the calls of the children."""

    def __init__(self, conv: str) -> None:
        self.conv = conv
        self.norm: str | None = None
        self.act: str | None = None


def recognise(kind: type[Block], candidate: object) -> tuple[object, Reads] | None:
    """The parts of an inverted residual and the attributes that its forward reads; None of a module that looks like no
    one.

    Raises:
        Unfusable: it looks like one but is none, or no program computes it.
    """
    module = candidate.module
    if type(module) is nn.Sequential and not is_sequence(module):
        return None
    channels = _nominate(module, candidate.blocks)
    if channels is None:
        return None
    probe = candidate.probe(channels)
    theirs, calls = probe.observe()
    probe.refuse()
    calls = list(_whole_norms(probe.copy, calls))
    parts = _parts(kind, probe.copy, calls, candidate.blocks)

    def chain(x: torch.Tensor) -> torch.Tensor:
        for _, child in calls:
            x = child(x)
        return x

    ways: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (chain, lambda x: chain(x) + x)
    adds = theirs[1].shape == probe.input.shape and not probe.computes(chain)
    if not probe.computes(ways[adds]):
        raise Unfusable(probe.explain(_WRONG))
    probe.confirm(ways[adds], _WRONG, kind)
    parts = kind.Parts(*parts, adds_input=adds)
    kind.read(Structure(probe.copy, is_probed=True), parts)  # whether a program reads its layers
    return parts, (*candidate.reads(probe), *skipped_reads(module, parts.others))


def _nominate(module: nn.Module, blocks: dict[str, type]) -> int | None:
    """The channels of the input of what has the structure; None of another module."""
    if not all(block is SqueezeExciteBlock for block in blocks.values()) or len(blocks) > 1:
        return None
    convs: list[nn.Conv2d] = []
    for path, child in module.named_modules():
        if any(path == block or path.startswith(f"{block}.") for block in blocks):
            continue
        own = source_class(child)
        if is_conv(child, own):
            convs.append(child)
        elif (child._parameters or child._buffers) and not (_is_norm(child) or code_of(child, own) is not None):
            return None
        if len(convs) > MOST:
            return None
    depthwise = [1 < conv.groups == conv.in_channels == conv.out_channels for conv in convs]
    pointwise = [conv.kernel_size == conv.stride == (1, 1) and conv.groups == 1 for conv in convs]
    fits = all(first.out_channels == second.in_channels for first, second in pairwise(convs))
    is_one = fits and any(depthwise) and any(pointwise) and all(d or p for d, p in zip(depthwise, pointwise))
    return convs[0].in_channels if is_one else None


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d) or is_norm(module, source_class(module))


def _whole_norms(root: nn.Module, calls: list) -> Iterator[tuple[str, nn.Module]]:
    """The calls, those inside of a BatchNorm as one call of it."""
    last = None
    for path, child in calls:
        steps = path.split(".")
        outer = (".".join(steps[:i]) for i in range(1, len(steps)))
        norm = next((above for above in outer if _is_norm(root.get_submodule(above))), None)
        if norm is None:
            yield path, child
        elif norm != last:
            yield norm, root.get_submodule(norm)
        last = norm


def _parts(kind: type[Block], root: nn.Module, calls: list, blocks: dict[str, type]) -> tuple:
    """The paths of the pieces in the order of the calls; raises ``Unfusable`` where another module is called."""
    layers: list[_Layer] = []
    se, excited, others = None, 0, []
    for path, child in calls:
        layer = layers[-1] if layers and (se is None or excited < len(layers)) else None
        if path in blocks and layers and se is None:
            se, excited = path, len(layers)
        elif is_conv(child):
            layers.append(_Layer(path))
        elif does_nothing(child):
            others.append(path)
        elif _is_norm(child) and layer is not None and layer.norm is None and layer.act is None:
            layer.norm = path
            inside = [(f"{path}.{name}", m) for name, m in child.named_modules() if name and not m._modules]
            idle = [inner for inner, m in inside if does_nothing(m)]
            acts = [inner for inner, m in inside if inner not in idle and code_of(m) is not None]
            if len(acts) > 1 or len(acts) + len(idle) < len(inside):
                raise Unfusable(f"its BatchNorm {path!r} applies more than an activation")
            layer.act = acts[0] if acts else None
            others += idle
        elif code_of(child) is not None and layer is not None and layer.act is None:
            layer.act = path
        else:
            raise Unfusable(f"it also calls {path!r}, a {type(child).__name__}, where a block has no such layer")
    if se is not None and excited == len(layers):
        raise Unfusable("no convolution follows its squeeze-and-excite layer")
    convs, norms, acts = (tuple(getattr(layer, name) for layer in layers) for name in ("conv", "norm", "act"))
    return convs, norms, acts, se, excited, tuple(dict.fromkeys(others))
