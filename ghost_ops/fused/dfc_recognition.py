"""Which modules are Ghost modules with DFC attention: five convolutions nominate them, and running says which is which.

As of Ghost modules, an activation or the gate may be a module that the operators know, a function that the forward
calls, or somebody's own class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from ..activations import GATES, Function, apply_gate
from .errors import Unfusable
from .ghost_call import gated
from .ghost_recognition import skipped_reads
from .layers import is_activation, is_conv, is_norm, take_layer
from .structure import Structure

if TYPE_CHECKING:
    from .block import Block, Reads

Forward = Callable[[torch.Tensor], torch.Tensor]
_WRONG = f"it does not compute a Ghost module times a gate, one of {', '.join(GATES)}, of half its size"


@dataclass(frozen=True)
class _Split:
    """What the calls of the children may be.

    Attributes:
        ghost, attention: the layers of the Ghost module and of the gate: of each the calls of convolution, BatchNorm
            and activation; None where there is none.
        others: further calls, which fused code skips.
        gate: one of ``GATES``.
        functions: the activations of the Ghost module that its values tell, where no module that is known computes
            them.
    """

    ghost: list[tuple]
    attention: list[tuple]
    others: list
    gate: str = "identity"
    functions: tuple[Function | None, ...] = (None, None)

    def made(self) -> int:
        """The channels of the concatenation."""
        return sum(conv.module.out_channels for conv, *_ in self.ghost)

    def gate_of(self, x: torch.Tensor) -> torch.Tensor:
        """The gate at half the size."""
        y = pool(x)
        for layer in self.attention:
            y = _run(layer, y)
        return apply_gate(y, GATES.index(self.gate))

    def compose(self, kept: int) -> Forward:
        """The computation put together, of which ``kept`` channels are kept."""

        def run(x: torch.Tensor) -> torch.Tensor:
            gate, pieces = self.gate_of(x), []
            for layer, function in zip(self.ghost, self.functions, strict=True):
                x = _run(layer, x)
                x = x if function is None else function(x)
                pieces.append(x)
            return gated(torch.cat(pieces, 1)[:, :kept], gate)

        return run


def recognise(kind: type[Block], candidate: object) -> tuple[object, Reads] | None:
    """The parts of a Ghost module with DFC attention and the attributes that its forward reads; None of a module that
    looks like no one.

    Raises:
        Unfusable: it looks like one but is none, or no operator computes it.
    """
    convs = [m for m in candidate.module.modules() if is_conv(m)]
    if len(convs) != 5 or sum(map(is_along_rows, convs)) != 1 or sum(map(is_along_columns, convs)) != 1:
        return None
    channels = next((conv.in_channels for conv in convs if conv.groups == 1), 1)
    probe = candidate.probe(channels)
    theirs, calls = probe.observe()
    probe.refuse()
    kept = theirs[0].shape[1]
    found, refusal = [], None
    try:
        found = [split for split in _by_modules(calls) if probe.computes(split.compose(kept))]
    except Unfusable as reason:
        refusal = reason
    if len({split.gate for split in found}) != 1:
        found = list(_by_values(probe, calls, kept))
    if len({split.gate for split in found}) != 1:
        raise refusal or Unfusable(probe.explain(_WRONG))
    split = found[0]
    probe.confirm(split.compose(kept), _WRONG, kind)
    paths = [None if call is None else call.path for layer in split.ghost for call in layer]
    others = tuple(dict.fromkeys(call.path for call in split.others))
    first, second = split.functions
    parts = kind.Parts(
        *paths,
        out_channels=None if kept == split.made() else kept,
        primary_function=first,
        cheap_function=second,
        others=others,
        attention=tuple(call.path for layer in split.attention for call in layer if call is not None),
        gate=split.gate,
    )
    kind(parts).describe(probe.copy, Structure(probe.copy, is_probed=True))  # whether an operator computes it
    return parts, (*candidate.reads(probe), *skipped_reads(candidate.module, others))


def pool(x: torch.Tensor) -> torch.Tensor:
    """What the gate is made of: the input at half its size."""
    return F.avg_pool2d(x, 2, 2)


def is_along_rows(conv: nn.Conv2d) -> bool:
    return _is_along(conv, 1)


def is_along_columns(conv: nn.Conv2d) -> bool:
    return _is_along(conv, 0)


def _is_along(conv: nn.Conv2d, axis: int) -> bool:
    """Whether it is a depthwise convolution along one axis, of an odd size, that keeps the size of the map."""
    taps, one = conv.kernel_size[axis], conv.kernel_size[1 - axis]
    padding = tuple(taps // 2 if i == axis else 0 for i in (0, 1))
    same = conv.padding in (padding, "same") and conv.stride == conv.dilation == (1, 1)
    depthwise = conv.groups == conv.in_channels == conv.out_channels
    return taps > 1 and taps % 2 == 1 and one == 1 and same and depthwise


def _run(layer: tuple, x: torch.Tensor) -> torch.Tensor:
    for call in layer:
        x = x if call is None else call.module(x)
    return x


def _by_modules(calls: list) -> list[_Split]:
    """What the calls may be where every activation is a module: one at the end may be the gate, or belong to the layer
    before it."""
    splits = []
    for last in (1, 0):
        if last and not is_activation(calls[-1].module):
            continue
        items, others, layers = list(calls[: len(calls) - last]), list(calls[len(calls) - last :]), []
        try:
            while items:
                if is_conv(items[0].module):
                    layers.append(take_layer(items, lambda call: call.module).slots())
                elif not items[0].module.state_dict():  # pooling, upsampling or the gate, as the values will show
                    others.append(items.pop(0))
                else:
                    raise Unfusable(f"it also calls {items[0].path!r}, a {type(items[0].module).__name__}")
        except Unfusable:
            if last == 0 and not splits:
                raise
            continue
        splits += _arranged(layers, others)
    return splits


def _by_values(probe: object, calls: list, kept: int) -> Iterator[_Split]:
    """The same where an activation is a function or of an unknown class: it is told from what is computed."""
    items, layers, others = list(calls), [], []
    while items:
        call = items.pop(0)
        if not is_conv(call.module):
            others.append(call)
            continue
        after = items[0].module if items else None
        has_norm = is_norm(after) and after.num_features == call.module.out_channels
        layers.append((call, items.pop(0) if has_norm else None, None))
    if any(call.module.state_dict() for call in others):
        return
    for split in _arranged(layers, others):
        primary, cheap = split.ghost
        m = primary[0].module.out_channels
        gate = lambda x, of=split.gate_of: gated(x.new_ones(x.shape[0], kept, *x.shape[2:]), of(x))
        first = probe.function_of(lambda x, layer=primary: _run(layer, x), slice(0, m), gate)
        if first is None:
            continue
        before = lambda x, p=primary, c=cheap, f=first, m=m: _run(c, f(_run(p, x)))[:, : kept - m]
        second = probe.function_of(before, slice(m, kept), gate)
        if second is not None:
            yield _Split(split.ghost, split.attention, others, split.gate, (first, second))


def _arranged(layers: list[tuple], others: list) -> list[_Split]:
    """Which of five layers are the gate's: one before that along rows, this and that along columns; with every gate."""
    at = next((i for i, (conv, *_) in enumerate(layers) if is_along_rows(conv.module)), 0)
    if len(layers) != 5 or at == 0 or not is_along_columns(layers[min(at + 1, 4)][0].module):
        return []
    ghost, attention = layers[: at - 1] + layers[at + 2 :], layers[at - 1 : at + 2]
    return [_Split(ghost, attention, others, gate) for gate in GATES]
