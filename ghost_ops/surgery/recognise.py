"""Which modules of a net are blocks that can run fused.

They are recognised by what they are and do, never by name. Each registered kind of block
(:func:`ghost_ops.register_block`) says what such a module looks like. A copy is then run (``_probe``), the calls of its
children say which piece is which, and the results and gradients must be those of the block, in training and in eval, on
ordinary and on hard inputs; the forward must do nothing besides; and the program that the block writes must compute the
same. So the article's modules, Huawei's, timm's, YOLO's ``GhostConv``, Ghost-ResNet's and whatever else computes a
Ghost module are one case. Those that only look alike stay as they are, with the reason.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ..fused.behaviour import Fused, block_of
from ..fused.block import Block, Reads
from ..fused.errors import Unfusable
from ..fused.frozen_net import Frozen
from ..fused.ghost_module import GhostModuleBlock
from ..fused.registry import registered_blocks
from ._copy import refuse_compiled
from ._inputs import one_thread
from ._lookalike import resemblance
from ._lowering import refuse_lowering
from ._probe import Probe

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # of these the forward is known: never one of ours


@dataclass(frozen=True, eq=False)
class Finding:
    """A module that looks like a block.

    Attributes:
        name: its first path in the net.
        module: itself.
        block: the kind of block.
        parts: where its pieces are; None if it stays as it is.
        reason: why it stays as it is, in a sentence; None if it does not.
        reads: every plain attribute of an object or of its class that the computation may depend on: the path of the
            module inside ``module`` ("" for itself) and the attribute's name. Attributes that fused code reads live
            (children, parameters, buffers, hooks, ``training``, what convolutions, linear layers, BatchNorms and known
            activations have) are left out. An attribute that was asked for and does not exist is among them.
        is_fault: whether the block is at fault: its program computes something else than the module.
    """

    name: str
    module: nn.Module
    block: type[Block]
    parts: object | None = None
    reason: str | None = None
    reads: Reads = ()
    is_fault: bool = False

    @property
    def kind(self) -> str:
        """What such a module is called."""
        return self.block.kind


class Candidate:
    """A module that may be a block.

    Attributes:
        module: it stays as it is, and is not run.
        blocks: paths of the blocks inside, the outermost, each with its kind.
    """

    def __init__(self, module: nn.Module, findings: dict[nn.Module, Finding] | None = None) -> None:
        self.module = module
        self._findings = findings or {}
        self.blocks = {} if findings is None else self._blocks_inside()

    def _blocks_inside(self) -> dict[str, type[Block]]:
        found: dict[str, type[Block]] = {}
        for path, child in self.module.named_modules():
            block = self._block_of(child)
            if not path or block is None or block.is_layer:
                continue
            if not any(path.startswith(f"{outer}.") for outer in found):
                found[path] = block
        return found

    def _block_of(self, child: nn.Module) -> type[Block] | None:
        """The kind of a child that was fused before, or is recognised now."""
        found = self._block_and_parts(child)
        return None if found is None else found[0]

    def _block_and_parts(self, child: nn.Module) -> tuple[type[Block], object] | None:
        block, finding = block_of(child), self._findings.get(child)
        if block is not None:
            return type(block), block.parts_of(child)
        return None if finding is None or finding.parts is None else (finding.block, finding.parts)

    def is_block(self) -> bool:
        """Whether the module itself was recognised or fused before."""
        return self._block_of(self.module) is not None

    def piece(self, path: str, name: str) -> nn.Module:
        """A piece of the block at ``path``, by its name in the parts."""
        child = self.module.get_submodule(path)
        return child.get_submodule(getattr(self.inner()[path][1], name))

    def inner(self) -> dict[str, tuple[type[Block], object]]:
        """The kinds and the parts of ``blocks``."""
        return {path: self._block_and_parts(self.module.get_submodule(path)) for path in self.blocks}

    def probe(self, channels: int) -> Probe:
        """A copy to be run on inputs of so many channels; what the blocks inside do is known. Raises ``Unfusable``."""
        return Probe(self.module, channels, self.blocks)

    def refuse_compiled(self) -> None:
        """Raise ``Unfusable`` where the module was compiled or scripted."""
        refuse_compiled(self.module)

    def resemblance(self) -> str | None:
        """Why it is not fused though it computes a Ghost module in another structure; None where it does not."""
        return resemblance(self.module, self._findings)

    def reads(self, probe: Probe) -> Reads:
        """The plain attributes that the forward reads, and those of the blocks inside."""
        inside = [(path, self._findings.get(self.module.get_submodule(path))) for path in self.blocks]
        more = [
            (f"{path}.{owner}" if owner else path, attribute)
            for path, finding in inside
            if finding is not None
            for owner, attribute in finding.reads
        ]
        return tuple(dict.fromkeys((*probe.reads, *more)))


@one_thread()
def survey(net: nn.Module) -> list[Finding]:
    """Every module of ``net`` that is, or looks like, a block and is not fused yet; ``net`` itself included.

    The net is not changed, its forward is not run, and the state of PyTorch's random generators stays as it is.

    Raises:
        TypeError: net is not a ``torch.nn.Module``.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"survey: net: expected a torch.nn.Module, got {type(net).__name__}")
    findings: dict[nn.Module, Finding] = {}
    kinds = registered_blocks(holds_blocks=False, is_layer=False, is_open=False)
    for name, module in _outermost(net, lambda m: isinstance(m, Fused)):
        finding = next(filter(None, (_examine(name, Candidate(module), kind) for kind in kinds)), None)
        if finding is not None:
            findings[module] = finding
    larger: dict[nn.Module, Finding] = {}
    kinds = registered_blocks(holds_blocks=True, is_open=False)
    for name, module in reversed(list(_outermost(net, _holds_blocks))):  # the innermost first
        if any(_holds_blocks(m) or (m in larger and larger[m].parts is not None) for m in module.modules()):
            continue
        candidate = Candidate(module, findings)
        if candidate.is_block() or not candidate.blocks:
            continue
        finding = next(filter(None, (_examine(name, candidate, kind) for kind in kinds)), None)
        if finding is not None:
            larger[module] = finding
    others = _lookalikes(net, {*findings, *larger})
    return [*findings.values(), *others, *reversed(larger.values())]


def _lookalikes(net: nn.Module, known: set[nn.Module]) -> Iterator[Finding]:
    """Modules that compute a Ghost module in a structure that nothing nominates."""
    inside = {m for module in known for m in module.modules()}
    for name, module in _outermost(net, lambda m: isinstance(m, Fused)):
        if module in inside or type(module) in _CONTAINERS or isinstance(module, torch.jit.ScriptModule):
            continue
        reason = resemblance(module, known)
        if reason is not None:
            yield Finding(name, module, GhostModuleBlock, reason=reason)


@one_thread()
def survey_open(net: nn.Module, findings: Iterable[Finding]) -> list[Finding]:
    """As :func:`survey`, of the kinds that are blocks in eval only, so that what is inside is fused on its own too.

    Args:
        findings: what :func:`survey` has found; what is inside of these is not looked into.
    """
    known = {finding.module: finding for finding in findings}
    found: dict[nn.Module, Finding] = {}
    taken: set[nn.Module] = set()
    kinds = registered_blocks(is_open=True)
    for name, module in _outermost(net, lambda m: m in known or isinstance(m, (Fused, Frozen))):
        candidate = Candidate(module, known)
        if module in taken or candidate.is_block():
            continue
        finding = next(filter(None, (_examine(name, candidate, kind) for kind in kinds)), None)
        if finding is not None:
            found[module] = finding
            taken |= set() if finding.parts is None else set(module.modules())
    fused = [finding for finding in found.values() if finding.parts is not None]
    inside = {finding.module for finding in fused}
    holds = {m for m in found if any(inner in inside for inner in m.modules() if inner is not m)}
    return [finding for m, finding in found.items() if m not in holds]  # what holds a block is none


def is_closed(module: nn.Module) -> bool:
    """Whether nothing inside is fused on its own: of a fused block that is not open, and of what is frozen."""
    block = block_of(module)
    return isinstance(module, Frozen) or (block is not None and not block.is_open)


@one_thread()
def survey_layers(net: nn.Module, findings: Iterable[Finding]) -> list[Finding]:
    """As :func:`survey`, of the kinds that are only looked for outside of blocks.

    Args:
        findings: what :func:`survey` has found; what only looks like a block is not looked into either.
    """
    closed = {finding.module for finding in findings}
    taken: set[nn.Module] = set()
    found = []
    for kind in registered_blocks(is_layer=True):
        for name, module in _outermost(net, lambda m: m in closed or is_closed(m)):
            finding = None if module in taken else _examine(name, Candidate(module), kind)
            found += [] if finding is None else [finding]
            taken |= set() if finding is None or finding.parts is None else set(module.modules())
    return found


def _holds_blocks(module: nn.Module) -> bool:
    """Whether it is a fused block that is made of blocks."""
    block = block_of(module)
    return block is not None and block.holds_blocks


def _outermost(net: nn.Module, is_closed: Callable[[nn.Module], bool]) -> Iterator[tuple[str, nn.Module]]:
    """Every module once, parents first, those inside a closed one left out, and it too."""
    inside = {m for outer in net.modules() if is_closed(outer) for m in outer.modules()}
    # a frozen module stays as it is; what is inside of it may have been left plain
    return ((n, m) for n, m in net.named_modules() if m not in inside and not isinstance(m, Frozen))


def _examine(name: str, candidate: Candidate, kind: type[Block]) -> Finding | None:
    module = candidate.module
    is_known = type(module) in _CONTAINERS and not ((kind.is_layer or kind.is_open) and type(module) is nn.Sequential)
    if is_known or isinstance(module, torch.jit.ScriptModule):
        return None
    try:
        found = kind.match(candidate)
        if found is None:
            return None
        parts, reads = found
        fault = refuse_lowering(kind, module, parts, candidate.inner())
    except Unfusable as reason:
        return Finding(name, module, kind, reason=str(reason))
    if fault is not None:
        return Finding(name, module, kind, reason=fault, is_fault=True)
    return Finding(name, module, kind, parts, reads=reads)


@one_thread()
def _recognise_again(kind: type[Block], module: nn.Module) -> tuple[object, Reads]:
    """The parts of a fused module, where an attribute that its forward reads has changed; raises ``Unfusable``."""
    candidate = Candidate(module, {} if kind.holds_blocks else None)
    found = kind.match(candidate)
    if found is None:
        raise Unfusable(f"it does not look like a {kind.kind} any more")
    fault = refuse_lowering(kind, module, found[0], candidate.inner())
    if fault is not None:
        raise Unfusable(fault)
    return found


def _recognise_uncompiled(kind: type[Block], module: nn.Module) -> tuple[object, Reads]:
    """Recognise a module again where a compiled net may be the caller: the compiler must not look into it."""
    if "torch._dynamo" not in sys.modules:  # importing it takes seconds
        return _recognise_again(kind, module)
    return torch.compiler.disable(_recognise_again)(kind, module)


Block.recogniser = staticmethod(_recognise_uncompiled)
