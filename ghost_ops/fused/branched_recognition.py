"""Which modules are Ghost modules whose convolutions are sums of branches, as RepGhost's and GhostNetV3's in training.

Their convolutions nominate them: 1x1 ones of the same sizes, depthwise ones over their channels, and nothing else but
those of a DFC gate. A BatchNorm stands behind each, and one may stand alone, the identity as a branch. What is computed
of these is then held against what a copy computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..activations import GATES, Function, code_of
from .behaviour import is_fused
from .dfc_recognition import is_along_columns, is_along_rows
from .errors import Unfusable
from .ghost_recognition import skipped_reads
from .layers import does_nothing
from .structure import Structure

if TYPE_CHECKING:
    from .block import Block, Reads

Layer = tuple[str, str]  # paths of a convolution and of the BatchNorm behind it
WRONG = "it does not compute a Ghost module of the sums of its branches"
_MOST = 20  # convolutions in what is still a module of this kind


@dataclass(frozen=True)
class Branches:
    """The layers of a module, by what they look like.

    Attributes:
        primary: 1x1 convolutions.
        cheap: depthwise convolutions of one size.
        scale: a depthwise convolution of one pixel, or None.
        identity: path of the BatchNorm that stands alone, or None.
        attention: of a DFC gate the product, the convolution along rows, and the one along columns; or none.
        in_channels, channels: of the input, and of each branch.
    """

    primary: tuple[Layer, ...]
    cheap: tuple[Layer, ...]
    scale: Layer | None
    identity: str | None
    attention: tuple[Layer, ...]
    in_channels: int
    channels: int


def recognise(kind: type[Block], candidate: object) -> tuple[object, Reads] | None:
    """The parts of such a module and the attributes that its forward reads; None of a module that looks like no one, or
    computes something else.

    Raises:
        Unfusable: it computes such a module, but no operator does.
    """
    branches = nominate(candidate.module)
    if branches is None:
        return None
    try:
        probe = candidate.probe(branches.in_channels)
        theirs, calls = probe.observe()
    except Unfusable:
        return None  # it splits its input, say, or adds blocks of its own: other kinds name it
    kept = theirs[0].shape[1]
    if not branches.channels <= kept <= 2 * branches.channels:
        return None
    parts = next(filter(lambda p: _computes(kind, probe, p), _ways(kind, branches, calls, kept)), None)
    if parts is None:
        return None
    probe.confirm(_composed(kind, probe, parts), WRONG, kind)
    kind(parts).describe(probe.copy, Structure(probe.copy, is_probed=True))  # whether an operator computes it
    return parts, (*candidate.reads(probe), *skipped_reads(candidate.module, parts.others))


def _computes(kind: type[Block], probe: object, parts: object) -> bool:
    return probe.computes(_composed(kind, probe, parts), far=True)


def _composed(kind: type[Block], probe: object, parts: object) -> Callable[[torch.Tensor], torch.Tensor]:
    pieces = kind.read(Structure(probe.copy, is_probed=True), parts)
    return pieces.compose


def _ways(kind: type[Block], branches: Branches, calls: list, kept: int) -> Iterator[object]:
    """The parts with each of the activations and gates that it may have."""
    called = [call.path for call in calls]
    layers = (*branches.primary, *branches.cheap, *([branches.scale] if branches.scale else []), *branches.attention)
    pieces = {path for layer in layers for path in layer} | {branches.identity}
    acts = [call.path for call in calls if code_of(call.module) and not _is_within(call.path, pieces)]
    relu = Function("relu")
    pairs = [(first, second) for i, first in enumerate(acts) for second in acts[i + 1 :]]
    pairs += [(None, None), *((act, None) for act in acts), *((None, act) for act in acts)]
    pairs += [(relu, relu), (relu, None), (None, relu), *((act, relu) for act in acts), *((relu, act) for act in acts)]
    for first, second in pairs:
        skipped = [path for path in called if path not in pieces and path not in (first, second)]
        for gate in GATES if branches.attention else ("identity",):
            yield kind.Parts(
                tuple(conv for conv, _ in branches.primary),
                tuple(norm for _, norm in branches.primary),
                tuple(conv for conv, _ in branches.cheap),
                tuple(norm for _, norm in branches.cheap),
                scale=branches.scale or (),
                identity=branches.identity,
                primary_act=first if isinstance(first, str) else None,
                cheap_act=second if isinstance(second, str) else None,
                primary_function=first if isinstance(first, Function) else None,
                cheap_function=second if isinstance(second, Function) else None,
                out_channels=kept,
                attention=tuple(path for layer in branches.attention for path in layer),
                gate=gate,
                others=tuple(dict.fromkeys(skipped)),
            )


def _is_within(path: str, pieces: set[str | None]) -> bool:
    return any(piece is not None and path.startswith(f"{piece}.") for piece in pieces)


def nominate(module: nn.Module) -> Branches | None:
    """The layers of what has the structure of such a module."""
    convs = {path: m for path, m in module.named_modules() if path and isinstance(m, nn.Conv2d)}
    if not 2 <= len(convs) <= _MOST or any(is_fused(m) for m in module.modules() if m is not module):
        return None  # what is fused inside is a block of its own
    norms = {path: _norm_behind(module, path, conv) for path, conv in convs.items()}
    if None in norms.values():
        return None
    taken = set(norms.values())
    alone = [
        (path, m)
        for path, m in module.named_modules()
        if isinstance(m, nn.BatchNorm2d) and path not in taken and not _is_within(path, taken)
    ]
    along = [[p for p, conv in convs.items() if is_along(conv)] for is_along in (is_along_rows, is_along_columns)]
    gate = [path for paths in along for path in paths]
    depthwise = {p: c for p, c in convs.items() if 1 < c.groups == c.in_channels == c.out_channels and p not in gate}
    cheap = [p for p, c in depthwise.items() if c.kernel_size != (1, 1)]
    scale = [p for p, c in depthwise.items() if c.kernel_size == (1, 1)]
    pointwise = {p: c for p, c in convs.items() if c.groups == 1 and c.kernel_size == c.stride == (1, 1)}
    if len({(c.out_channels, c.kernel_size) for p, c in depthwise.items() if p in cheap}) != 1 or len(scale) > 1:
        return None
    m = convs[cheap[0]].out_channels
    products = [p for p, c in pointwise.items() if gate and c.out_channels == convs[gate[0]].out_channels != m]
    primary = [p for p, c in pointwise.items() if c.out_channels == m]
    if [len(found) for found in along] not in ([0, 0], [1, 1]) or len(products) != len(gate) // 2:
        return None
    if len(primary) + len(depthwise) + len(gate) + len(products) != len(convs) or not primary or len(alone) > 1:
        return None
    channels = {convs[p].in_channels for p in (*primary, *products)}
    if len(channels) != 1 or any(norm.num_features != m for _, norm in alone):
        return None
    if len(primary) + len(depthwise) + len(alone) < 3:
        return None  # a Ghost module without branches
    layers = lambda paths: tuple((path, norms[path]) for path in paths)
    return Branches(
        layers(primary),
        layers(cheap),
        next(iter(layers(scale)), None),
        alone[0][0] if alone else None,
        layers((*products, *gate)),
        channels.pop(),
        m,
    )


def _norm_behind(module: nn.Module, path: str, conv: nn.Conv2d) -> str | None:
    """The path of the BatchNorm that follows a convolution among its siblings."""
    above, _, name = path.rpartition(".")
    siblings = list(module.get_submodule(above)._modules.items())
    at = next(i for i, (other, _) in enumerate(siblings) if other == name)
    for other, sibling in siblings[at + 1 :]:
        if isinstance(sibling, nn.BatchNorm2d) and sibling.num_features == conv.out_channels:
            return f"{above}.{other}" if above else other
        if not does_nothing(sibling):
            return None
    return None
