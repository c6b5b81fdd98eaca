"""Which modules of somebody's net are Ghost modules, squeeze-and-excite layers and Ghost bottlenecks.

They are recognised by what they are and do, never by name. The structure nominates a module: for a Ghost module, two
children with one convolution each, the second depthwise over the first. A copy is then run (``_probe``), the calls of
its children say which piece is which, and the results and gradients must be those of the operator, in training and in
eval, on ordinary and on hard inputs; and the forward must do nothing besides. So the article's modules, Huawei's,
timm's, YOLO's ``GhostConv``, Ghost-ResNet's and whatever else computes a Ghost module are one case. Those that only
look alike (GhostNetV2's attention, a scaled output, a stored feature map) are left alone, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ..activations import GATES, WITH_SLOPES, activate, apply_gate, code_of
from ..nn import (
    BottleneckParts,
    FusedGhostBottleneck,
    GhostModule,
    GhostParts,
    SqueezeExciteParts,
)
from ..nn._fused import Fused, runner_of
from ..nn._structure import NORMS, Structure, Unfusable
from ..nn.frozen_net import Frozen
from ..nn.fused_bottleneck import BottleneckRunner
from ..nn.fused_ghost_module import GhostModuleRunner
from ..nn.fused_squeeze_excite import SqueezeExciteRunner
from ._copy import Refused, refuse_compiled
from ._probe import BOTTLENECK, GHOST, SQUEEZE_EXCITE, Call, Probe

_UNITS = {GHOST: GhostModuleRunner, SQUEEZE_EXCITE: SqueezeExciteRunner}
Parts = GhostParts | SqueezeExciteParts | BottleneckParts
Reads = tuple[tuple[str, str], ...]
_OTHER_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # of these the forward is known: never one of ours


@dataclass(frozen=True, eq=False)
class Finding:
    """A module that looks like one of ours.

    Attributes:
        name: its first path in the net.
        module: itself.
        kind: ``Ghost module``, ``squeeze-and-excite`` or ``Ghost bottleneck``.
        parts: where its pieces are; None if it is left alone.
        reason: why it is left alone, in a sentence; None if it is not.
        reads: every plain attribute of an object or of its class that the computation may depend on: the path of the
            module inside ``module`` ("" for itself) and the attribute's name. Attributes that fused code reads live
            (children, parameters, buffers, hooks, ``training``, what convolutions, linear layers, BatchNorms and known
            activations have) are left out. An attribute that was asked for and does not exist is among them.
    """

    name: str
    module: nn.Module
    kind: str
    parts: Parts | None = None
    reason: str | None = None
    reads: tuple[tuple[str, str], ...] = ()


def survey(net: nn.Module) -> list[Finding]:
    """Every module of ``net`` that is, or looks like, one of ours and is not fused yet; ``net`` itself included.

    The net is not changed, its forward is not run, and the state of PyTorch's random generators stays as it is.

    Raises:
        TypeError: net is no ``torch.nn.Module``.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"survey: net: expected a torch.nn.Module, got {type(net).__name__}")
    findings: dict[nn.Module, Finding] = {}
    for name, module in _outermost(net, (Fused,)):
        finding = _examine(name, module, SQUEEZE_EXCITE, _squeeze_excite) or _examine(name, module, GHOST, _ghost)
        if finding is not None:
            findings[module] = finding
    blocks: dict[nn.Module, Finding] = {}
    for name, module in reversed(list(_outermost(net, (FusedGhostBottleneck,)))):  # the innermost first
        if any(isinstance(inner, FusedGhostBottleneck) or _is_ours(inner, blocks) for inner in module.modules()):
            continue
        finding = _examine(name, module, BOTTLENECK, lambda m: _bottleneck(m, findings))
        if finding is not None:
            blocks[module] = finding
    return [*findings.values(), *reversed(blocks.values())]


def _outermost(net: nn.Module, closed: tuple[type, ...]) -> Iterator[tuple[str, nn.Module]]:
    """Every module once, parents first, those inside a ``closed`` one left out, and it too."""
    inside = {m for outer in net.modules() if isinstance(outer, closed) for m in outer.modules()}
    skipped = (*closed, Frozen)  # a frozen module stays as it is; what is inside of it may have been left alone
    return ((n, m) for n, m in net.named_modules() if m not in inside and not isinstance(m, skipped))


def _examine(name: str, module: nn.Module, kind: str, find) -> Finding | None:
    if type(module) in _CONTAINERS or isinstance(module, torch.jit.ScriptModule):
        return None
    try:
        found = find(module)
    except (Refused, Unfusable) as reason:
        return Finding(name, module, kind, reason=str(reason))
    return None if found is None else Finding(name, module, kind, found[0], reads=found[1])


def _is_nothing(module: nn.Module) -> bool:
    return type(module) is nn.Identity or (type(module) is nn.Sequential and not module._modules)


# Ghost modules


def _two_convolutions(module: nn.Module) -> list[nn.Conv2d]:
    """The convolutions of the children that have one each."""
    found = ([m for m in child.modules() if isinstance(m, nn.Conv2d)] for child in module.children())
    return [convs[0] for convs in found if len(convs) == 1]


def _nominate(module: nn.Module) -> nn.Conv2d | None:
    """The primary convolution of what has the structure of a Ghost module."""
    halves = _two_convolutions(module)
    if len(halves) == 1 and isinstance(module, GhostModule):  # ours at ratio 1
        return halves[0]
    if len(halves) != 2:
        return None
    primary, cheap = halves
    depthwise = cheap.groups == cheap.in_channels == primary.out_channels and cheap.out_channels > 0
    return primary if depthwise else None


def _ghost(module: nn.Module) -> tuple[GhostParts, Reads] | None:
    primary = _nominate(module)
    if primary is None:
        if {"primary_conv", "cheap_operation"} <= set(module._modules):
            refuse_compiled(module)
            raise Refused("its primary_conv and cheap_operation are not one convolution each, the second depthwise")
        return None
    probe = Probe(module, primary.in_channels)
    theirs, calls = probe.observe()
    kept = theirs[0].shape[1]
    if kept <= primary.out_channels and not isinstance(module, GhostModule):
        return None  # a separable convolution, say: nothing is concatenated
    probe.refuse()
    convs = [call for call in calls if isinstance(call.module, nn.Conv2d)]
    if len(convs) > 2:
        extra = next(call.path for call in convs if call.module not in _two_convolutions(probe.copy))
        raise Refused(f"it also calls {extra!r}, a convolution more than a Ghost module has")
    halves = _halves(calls)
    if not 1 <= len(halves) <= 2:
        raise Refused(f"it calls {len(halves)} convolutions where a Ghost module calls two")
    channels = [half[0].module.out_channels for half in halves]

    def compose(x: torch.Tensor) -> torch.Tensor:
        pieces = []
        for half in halves:
            for call in half:
                x = x if call is None else call.module(x)
            pieces.append(x)
        return torch.cat(pieces, 1)[:, :kept]

    wrong = "it does not compute a Ghost module: its results differ from those of its two convolutions"
    probe.confirm(compose, wrong, GHOST)
    paths = [None if call is None else call.path for half in halves for call in half]
    return GhostParts(*paths, out_channels=None if kept == sum(channels) else kept), probe.reads


def _halves(calls: list[Call]) -> list[tuple[Call, Call | None, Call | None]]:
    """Convolutions, each with the BatchNorm and the activation called after it."""
    calls, halves = list(calls), []
    while calls:
        conv, norm, act = calls.pop(0), None, None
        if type(conv.module) is not nn.Conv2d:
            raise Refused(f"it also calls {conv.path!r}, a {type(conv.module).__name__}")
        empty = len(calls) > 1 and _is_nothing(calls[0].module) and not isinstance(calls[1].module, nn.Conv2d)
        if calls and (type(calls[0].module) in NORMS or empty):
            norm = calls.pop(0)
            if getattr(norm.module, "num_features", conv.module.out_channels) != conv.module.out_channels:
                raise Refused(f"its {norm.path!r} normalises something else than the output of {conv.path!r}")
        if calls and not isinstance(calls[0].module, nn.Conv2d):
            act = calls.pop(0)
            if isinstance(act.module, _OTHER_NORMS):
                kind = type(act.module).__name__
                raise Refused(f"its normalisation {act.path!r} is of the class {kind}, which is not a BatchNorm2d")
            Structure.activation(act.module)
        halves.append((conv, norm, act))
    return halves


# Squeeze-and-excite


def _is_dense(module: nn.Module) -> bool:
    if type(module) is nn.Conv2d:
        return module.kernel_size == module.stride == (1, 1) and module.groups == 1 and module.padding in ((0, 0), 0)
    return type(module) is nn.Linear


def _squeeze_excite(module: nn.Module) -> tuple[SqueezeExciteParts, Reads] | None:
    dense = [m for m in module.modules() if m._parameters and not isinstance(m, nn.PReLU)]
    if len(dense) != 2 or not all(_is_dense(m) for m in dense):
        return None
    reduce, expand = dense
    (hidden, channels), (back, other) = reduce.weight.shape[:2], expand.weight.shape[:2]
    if (channels, hidden) != (back, other):
        return None
    probe = Probe(module, channels)
    try:
        theirs, calls = probe.observe()
    except Refused:
        return None  # some other two layers, for inputs of another kind
    at = [i for i, call in enumerate(calls) if _is_dense(call.module)]
    if len(at) != 2 or any(out.shape != probe.input.shape for out in theirs):
        return None
    probe.refuse()
    between = [call for call in calls[at[0] + 1 : at[1]] if not _is_nothing(call.module)]
    code = Structure.activation(between[0].module if between else None)
    if len(between) > 1 or code in WITH_SLOPES:
        raise Refused(f"between its layers it calls {', '.join(type(c.module).__name__ for c in between)}")
    first, second = calls[at[0]], calls[at[1]]
    gates = [gate for gate in GATES if probe.computes(_excite(first.module, second.module, code, gate))]
    wrong = f"it does not compute a squeeze-and-excite with any of the gates {', '.join(GATES)}"
    if len(gates) != 1:
        raise Refused(probe.explain(wrong))
    probe.confirm(_excite(first.module, second.module, code, gates[0]), wrong, SQUEEZE_EXCITE)
    act = between[0].path if between else None
    read = {first.path, second.path, act}
    others = tuple(dict.fromkeys(call.path for call in calls if call.path not in read))
    return SqueezeExciteParts(first.path, second.path, act, gates[0], others), probe.reads


def _excite(reduce: nn.Module, expand: nn.Module, act: int, gate: str):
    def dense(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, layer.weight.flatten(1), layer.bias)

    def run(x: torch.Tensor) -> torch.Tensor:
        logits = dense(expand, activate(dense(reduce, x.mean((2, 3))), act))
        return x * apply_gate(logits, GATES.index(gate))[:, :, None, None]

    return run


# Bottlenecks


def _is_ours(module: nn.Module, findings: dict[nn.Module, Finding]) -> bool:
    return module in findings and findings[module].parts is not None


def _unit_kind(module: nn.Module, findings: dict[nn.Module, Finding]) -> str | None:
    """What a child counts as inside a bottleneck: fused before, or recognised now."""
    runner = runner_of(module)
    if runner is not None:
        return next((kind for kind, of in _UNITS.items() if isinstance(runner, of)), None)
    return findings[module].kind if _is_ours(module, findings) else None


def _inputs(ghost: nn.Module, findings: dict[nn.Module, Finding]) -> int:
    parts = runner_of(ghost).parts_of(ghost) if isinstance(ghost, Fused) else findings[ghost].parts
    return ghost.get_submodule(parts.primary_conv).in_channels


def _bottleneck(module: nn.Module, findings: dict[nn.Module, Finding]) -> tuple[BottleneckParts, Reads] | None:
    if _unit_kind(module, findings) is not None:
        return None
    units = {name: kind for name, child in module.named_modules() if (kind := _unit_kind(child, findings))}
    ghosts = [name for name, kind in units.items() if kind is GHOST]
    if len(ghosts) != 2:
        return None
    for name, child in module.named_modules():
        inside = any(f"{name}.".startswith(f"{unit}.") for unit in units)
        if not (inside or child._modules or type(child) in (nn.Conv2d, *NORMS) or _is_activation(child)):
            return None
    try:
        probe = Probe(module, _inputs(module.get_submodule(ghosts[0]), findings), units)
        theirs, calls = probe.observe()
    except Refused:
        return None  # a stem and two Ghost modules, say: the Ghost modules are fused on their own
    at = [i for i, call in enumerate(calls) if call.path in ghosts]
    if len(at) != 2:
        return None
    first, last = at
    between = calls[first + 1 : last]
    se = between.pop() if between and units.get(between[-1].path) is SQUEEZE_EXCITE else None
    around = calls[:first] + calls[last + 1 :]
    if any(call.path in units for call in (*between, *around)):
        return None

    def chain(x: torch.Tensor, *steps: Call | None) -> torch.Tensor:
        for step in steps:
            x = x if step is None else step.module(x)
        return x

    def compose(x: torch.Tensor) -> torch.Tensor:
        return chain(x, calls[first], *between, se, calls[last]) + chain(x, *around)

    wrong = "it does not compute a Ghost bottleneck; what is inside is fused on its own"
    probe.confirm(compose, wrong, BOTTLENECK)
    inside = [(path, findings.get(module.get_submodule(path))) for path in units]
    reads = [(f"{path}.{name}" if name else path, attribute) for path, f in inside if f for name, attribute in f.reads]
    parts = BottleneckParts(
        calls[first].path,
        calls[last].path,
        tuple(call.path for call in between),
        None if se is None else se.path,
        tuple(call.path for call in around),
    )
    return parts, tuple(dict.fromkeys((*probe.reads, *reads)))


def _is_activation(module: nn.Module) -> bool:
    return _is_nothing(module) or code_of(module) is not None


# Once more, where an attribute that a fused module's forward reads has changed


def _again(find: Callable[[nn.Module], tuple[Parts, Reads] | None], kind: str) -> Callable:
    def recognise(module: nn.Module) -> tuple[Parts, Reads]:
        try:
            found = find(module)
        except Refused as reason:
            raise Unfusable(str(reason)) from None
        if found is None:
            raise Unfusable(f"it does not look like a {kind} any more")
        return found

    return staticmethod(recognise)


GhostModuleRunner.recogniser = _again(_ghost, GHOST)
SqueezeExciteRunner.recogniser = _again(_squeeze_excite, SQUEEZE_EXCITE)
BottleneckRunner.recogniser = _again(lambda module: _bottleneck(module, {}), BOTTLENECK)
