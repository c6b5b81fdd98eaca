"""Which modules are Ghost modules: two convolutions nominate them, and what is computed after each is found out.

An activation may be a module that the operators know, a function that the forward calls, or somebody's own class. The
last two are recognised by their values: whichever of the known activations makes a half of the output of what comes
before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..activations import Function
from ..nn import GhostModule
from .errors import Unfusable
from .layers import OTHER_NORMS, activation_code, is_conv, is_norm, take_layer
from .structure import Structure
from .watch import plain_attributes

if TYPE_CHECKING:
    from .block import Block, Reads

Forward = Callable[[torch.Tensor], torch.Tensor]
_WRONG = "it does not compute a Ghost module: its results differ from those of its two convolutions"


@dataclass(frozen=True)
class _Layers:
    """What a Ghost module was found to compute: a convolution, a BatchNorm and an activation in each half.

    Attributes:
        calls: of each half the calls of convolution, BatchNorm and activation; None where there is none.
        functions: of each half the activation that its values tell, where no module that is known computes it.
        others: the further modules that the forward calls, which fused code skips.
    """

    calls: list[tuple]
    functions: tuple[Function | None, ...] = (None, None)
    others: tuple[str, ...] = ()

    def compose(self, kept: int) -> Forward:
        """The halves put together, of which ``kept`` channels are kept."""

        def run(x: torch.Tensor) -> torch.Tensor:
            pieces = []
            for layer, function in zip(self.calls, self.functions):
                for call in layer:
                    x = x if call is None else call.module(x)
                x = x if function is None else function(x)
                pieces.append(x)
            return torch.cat(pieces, 1)[:, :kept]

        return run


def recognise(kind: type[Block], candidate: object) -> tuple[object, Reads] | None:
    """The parts of a Ghost module and the attributes that its forward reads; None of a module that looks like no one.

    Raises:
        Unfusable: it looks like a Ghost module but is none, or no operator computes it.
    """
    primary = _nominate(candidate.module)
    if primary is None:
        if {"primary_conv", "cheap_operation"} <= set(candidate.module._modules):
            candidate.refuse_compiled()
            structure = "its primary_conv and cheap_operation are not one convolution each, the second depthwise"
            raise Unfusable(candidate.resemblance() or structure)
        return None
    probe = candidate.probe(primary.in_channels)
    theirs, calls = probe.observe()
    kept = theirs[0].shape[1]
    if kept <= primary.out_channels and not isinstance(candidate.module, GhostModule):
        return None  # a separable convolution, say: nothing is concatenated
    probe.refuse()
    convs = [call for call in calls if isinstance(call.module, nn.Conv2d)]
    if len(convs) > 2:
        extra = next(call.path for call in convs if call.module not in _two_convolutions(probe.copy))
        raise Unfusable(f"it also calls {extra!r}, a convolution more than a Ghost module has")
    found, refusal = None, None
    try:
        found = _by_modules(calls)
    except Unfusable as reason:
        refusal = reason
    if found is None or not probe.computes(found.compose(kept)):
        found = _by_values(probe, calls, kept) or found
    if found is None:
        raise refusal
    probe.confirm(found.compose(kept), _WRONG, kind)
    paths = [None if call is None else call.path for layer in found.calls for call in layer]
    computed = sum(layer[0].module.out_channels for layer in found.calls)
    first, second = found.functions
    parts = kind.Parts(
        *paths,
        out_channels=None if kept == computed else kept,
        primary_function=first,
        cheap_function=second,
        others=found.others,
    )
    kind(parts).describe(probe.copy, Structure(probe.copy, is_probed=True))  # whether an operator computes it
    return parts, (*candidate.reads(probe), *skipped_reads(candidate.module, found.others))


def skipped_reads(module: nn.Module, paths: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """What decides on the values of modules that fused code skips: their classes and plain attributes."""
    for path in paths:
        child = module.get_submodule(path)
        yield path, "__class__"
        for name in plain_attributes(child):
            yield path, name


def _two_convolutions(module: nn.Module) -> list[nn.Conv2d]:
    """The convolutions of the children that have one each."""
    found = ([m for m in child.modules() if isinstance(m, nn.Conv2d)] for child in module.children())
    return [convs[0] for convs in found if len(convs) == 1]


def _nominate(module: nn.Module) -> nn.Conv2d | None:
    """The primary convolution of what has the structure of a Ghost module."""
    convs = _two_convolutions(module)
    if len(convs) == 1 and isinstance(module, GhostModule):  # ours at ratio 1
        return convs[0]
    if len(convs) != 2:
        return None
    primary, cheap = convs
    depthwise = cheap.groups == cheap.in_channels == primary.out_channels and cheap.out_channels > 0
    return primary if depthwise else None


def _by_modules(calls: list) -> _Layers:
    """Convolutions, each with the BatchNorm and the activation called after it, all of them modules."""
    both = sum(call.module.out_channels for call in calls if is_conv(call.module))
    calls, layers = list(calls), []
    while calls:
        path, module = calls[0]
        if not is_conv(module):
            kind = type(module).__name__
            if isinstance(module, OTHER_NORMS) or {"running_mean", "running_var"} <= module._buffers.keys():
                raise Unfusable(f"its normalisation {path!r} is of the class {kind}, which is not a BatchNorm2d")
            if isinstance(module, nn.Conv2d):
                raise Unfusable(f"its convolution {path!r} is of the class {kind}, with a forward of its own")
            if layers and layers[-1][2] is None:
                activation_code(module)
            raise Unfusable(f"it also calls {path!r}, a {kind}")
        conv, norm, act = take_layer(calls, lambda call: call.module).slots()
        features = None if norm is None else getattr(norm.module, "num_features", conv.module.out_channels)
        if features not in (None, conv.module.out_channels):
            if layers and features == both:
                raise Unfusable(f"its BatchNorm {norm.path!r} normalises the concatenation, not each half of it")
            raise Unfusable(f"its {norm.path!r} normalises something else than the output of {conv.path!r}")
        layers.append((conv, norm, act))
    if not 1 <= len(layers) <= 2:
        raise Unfusable(f"it calls {len(layers)} convolutions where a Ghost module calls two")
    return _Layers(layers)


def _by_values(probe: object, calls: list, kept: int) -> _Layers | None:
    """The same where an activation is a function or of an unknown class: it is told from what it computes.

    Raises:
        Unfusable: the halves are put together in another way, which is known.
    """
    at = [index for index, call in enumerate(calls) if is_conv(call.module)]
    if len(at) != 2:
        return None
    layers, others = [], calls[: at[0]]
    for start, end in zip(at, (at[1], len(calls))):
        conv, after = calls[start], calls[start + 1 : end]
        first = after[0].module if after else None
        norm = after.pop(0) if is_norm(first) and first.num_features == conv.module.out_channels else None
        layers.append((conv, norm, None))
        others += after
    if any(call.module.state_dict() for call in others):
        return None
    primary, cheap = (_chain(conv.module, norm and norm.module) for conv, norm, _ in layers)
    m = layers[0][0].module.out_channels
    first = probe.function_of(primary, slice(0, m))
    if first is not None:
        second = probe.function_of(lambda x: cheap(first(primary(x)))[:, : kept - m], slice(m, kept))
        if second is not None:
            return _Layers(layers, (first, second), tuple(dict.fromkeys(call.path for call in others)))
    after = probe.function_of(lambda x: _joined(z := primary(x), cheap(z))[:, :kept], slice(0, kept))
    if after is not None:
        what = f"its activation, {after.name}, comes after the concatenation"
        raise Unfusable(f"{what}: its cheap operation reads a map that is not activated")
    first = probe.function_of(primary, slice(kept - m, kept))
    if first is not None:
        second = probe.function_of(lambda x: cheap(first(primary(x))), slice(0, kept - m))
        if second is not None:
            raise Unfusable("it concatenates its halves in the reverse order, the cheap one first")
    return None


def _chain(*modules: nn.Module | None) -> Forward:
    def run(x: torch.Tensor) -> torch.Tensor:
        for module in modules:
            x = x if module is None else module(x)
        return x

    return run


def _joined(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return torch.cat([first, second], 1)
