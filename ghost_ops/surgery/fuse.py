"""``fuse`` and ``revert``: Ghost modules, squeeze-and-excite layers and Ghost bottlenecks fused in place, and back."""

from __future__ import annotations

import warnings
from typing import TypeVar

from torch import nn

from ..fused import behaviour
from ..fused.bottleneck import MEMORY, check_memory
from ..fused.graph import GraphPool
from ..fused.graphed_block import BlockGraphs
from ..fused.sibling_layer import fuse_siblings
from .recognise import Finding, is_closed, survey, survey_layers, survey_open
from .tally import Tally

__all__ = ["MEMORY", "fuse", "revert"]

Net = TypeVar("Net", bound=nn.Module)


def fuse(net: Net, *, memory: str | None = None, cuda_graph: bool | None = None) -> Net:
    """Make the Ghost modules, squeeze-and-excite layers and Ghost bottlenecks of a net run fused.

    They are recognised by structure and checked by running copies of them (:mod:`ghost_ops.surgery.recognise`): the
    article's, Huawei's, timm's, YOLO's and others. Look-alikes stay as they are; :func:`explain` says why.

    The net is changed in place, and its modules stay the objects that they are: each recognised module gets a class
    that derives from its own and runs fused. ``isinstance``, methods, properties, an overridden ``train()``, extra
    state, attributes, hooks, the signature of ``forward``, paths, state_dict, and references and optimizers made before
    stay as they were, and ``net`` trains on. When an attribute that a forward reads changes, such as a drop-path rate,
    the module is recognised again. What is fused already stays so.

    Args:
        net: any module, in any mode, on any device.
        memory: what bottlenecks keep for the backward: ``"balanced"``, as at first, what their fused parts need;
            ``"low"`` their input only, and they recompute the rest in the backward; ``"fast"``, on a GPU, also the
            results of primary convolutions, which take memory and time. None leaves those that are fused already as
            they are.
        cuda_graph: whether the calls of a block on a CUDA device are replayed as CUDA graphs, one for the forward and
            one for the backward. A graph is captured after a few calls of a kind. Calls that no graph can hold run
            without one, and :func:`explain` says why. Outputs, gradients and running statistics are as without graphs.
            Graphs take memory (docs/training.md). None leaves those that are fused already as they are.

    Returns:
        ``net``.

    Raises:
        TypeError: net is not a ``torch.nn.Module``, or ``cuda_graph`` neither a bool nor None.
        ValueError: an unknown ``memory``.

    Warns:
        UserWarning: some of what looks like a block was left as it is, or nothing was found: how many of how many were
            fused, and the three reasons that leave most; a module's class cannot be derived from; or a registered block
            writes a program that computes something else than the module.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"fuse: net: expected a torch.nn.Module, got {type(net).__name__}")
    if memory is not None:
        check_memory("fuse", memory)
    if cuda_graph is not None and not isinstance(cuda_graph, bool):
        raise TypeError(f"fuse: cuda_graph: expected True, False or None, got {cuda_graph!r}")
    findings = fuse_blocks(net)
    _apply(survey_open(net, findings), 3)
    layers = survey_layers(net, findings)
    _apply(layers, 3)
    known = [module for module in net.modules() if is_closed(module)]
    outer = *known, *(found.module for found in (*findings, *layers))
    closed = {inner for module in outer for inner in module.modules()}
    for module in list(net.modules()):
        if module not in closed:
            fuse_siblings(module)
    counted = Tally(net, [found for found in findings if not found.block.holds_blocks])  # these may be no such block
    is_any = any(behaviour.is_fused(module) for module in net.modules())
    text = "" if is_any else f"no Ghost module was found in this {type(net).__name__} that can run fused; "
    if counted.left:
        text += f"{counted} run fused, the others stay plain PyTorch: {counted.why()}"
    if text:
        warnings.warn(f"fuse: {text.removesuffix('; ')}", UserWarning, stacklevel=2)
    for module in net.modules() if memory is not None else ():
        block = behaviour.block_of(module)
        if hasattr(block, "memory"):
            block.memory = memory
    if cuda_graph is not None:
        set_graphs(net, cuda_graph)
    return net


def fuse_blocks(net: nn.Module) -> list[Finding]:
    """The part of :func:`fuse` that fuses blocks. Layers outside of them and open blocks are plain afterwards, since
    what holds one may be a block by now."""
    for module in list(net.modules()):
        block = behaviour.block_of(module)
        if block is not None and (block.is_layer or block.is_open):
            behaviour.remove(module)
    findings = survey(net)
    _apply(findings, 4)
    return findings


def _apply(findings: list[Finding], level: int) -> None:
    for found in findings:
        if found.is_fault:
            warnings.warn(
                f"fuse: {found.name or 'it'} was left as it is: {found.reason}", UserWarning, stacklevel=level
            )
        if found.parts is None:
            continue
        try:
            behaviour.apply(found.module, found.block.behaviour, found.parts, found.reads)
        except TypeError as error:  # a metaclass or a layout that allows no subclass
            what = f"{found.name or 'it'}, a {type(found.module).__name__}"
            warnings.warn(f"fuse: {what}, was left as it is: {error}", UserWarning, stacklevel=level)


def set_graphs(net: nn.Module, wanted: bool) -> None:
    """Give the outermost fused modules graphs that share a pool, or take those of all away."""
    fused = [module for module in net.modules() if behaviour.is_fused(module) and is_closed(module)]
    inside = {inner for module in fused for inner in module.modules() if inner is not module}
    pool = GraphPool()
    for module in fused:
        block = behaviour.block_of(module)
        if not wanted or module in inside or block.is_layer:
            block.graphs = None
        elif block.graphs is None:
            block.graphs = BlockGraphs(pool)


def revert(net: Net) -> Net:
    """Undo :func:`fuse`: every fused module gets its own class back, with the state that it has by now.

    Modules that were built fused become plain ones of the same children. Modules of a class that derives from
    a fused one stay as they are.

    Args:
        net: any module; changed in place.

    Returns:
        ``net``.

    Raises:
        TypeError: net is not a ``torch.nn.Module``.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"revert: net: expected a torch.nn.Module, got {type(net).__name__}")
    for module in list(net.modules()):
        if behaviour.is_fused(module):
            behaviour.remove(module)
    return net
