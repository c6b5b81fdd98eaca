"""``fuse`` and ``revert``: fused modules in the places of somebody's modules, and these back in their places."""

from __future__ import annotations

import warnings

from torch import nn

from ..nn import FusedGhostBottleneck, FusedGhostModule, FusedSELayer
from ..nn._wrapper import Wrapper
from ..nn.fused_bottleneck import MEMORY
from .recognise import BOTTLENECK, GHOST, SQUEEZE_EXCITE, survey

_FUSED = {GHOST: FusedGhostModule, SQUEEZE_EXCITE: FusedSELayer, BOTTLENECK: FusedGhostBottleneck}


def fuse(net: nn.Module, *, memory: str | None = None) -> nn.Module:
    """Put fused modules in the places of the Ghost modules, squeeze-and-excite layers and Ghost bottlenecks of a net.

    They are recognised by structure and checked by running copies of them (:mod:`ghost_ops.surgery.recognise`): the
    article's, Huawei's, timm's, YOLO's and others. Look-alikes are left alone; :func:`explain` says why.

    The net is changed in place: the fused modules have the very children, parameters, buffers and hooks of those that
    they replace, so that paths, state_dict and optimizers made before stay valid, and ``net`` trains on. A module that
    occurs twice is replaced by one. What is fused already stays; what is shared with another net is replaced in this
    one alone. References to a replaced module that are kept outside of the tree of modules still work, plainly.

    Args:
        net: any module, in any mode, on any device.
        memory: what bottlenecks keep for the backward: ``"balanced"``, as at first, what their fused parts need;
            ``"low"`` their input alone, and what lies inside is computed once more. None leaves those that are fused
            already as they are.

    Returns:
        ``net``; if it is itself one of those modules, the fused module in its stead.

    Raises:
        TypeError: net is no ``torch.nn.Module``.
        ValueError: an unknown ``memory``.

    Warns:
        UserWarning: nothing was found to fuse.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"fuse: net: expected a torch.nn.Module, got {type(net).__name__}")
    if memory not in (None, *MEMORY):
        raise ValueError(f"fuse: memory: expected None or one of {', '.join(MEMORY)}, got {memory!r}")
    findings = survey(net)
    owners = list(net.modules())
    fused = {f.module: _FUSED[f.kind].wrap(f.module, f.parts) for f in findings if f.parts is not None}
    if not fused and not any(isinstance(module, Wrapper) for module in owners):
        seen = "".join(f"; {f.name or 'it'} looks like a {f.kind}, but {f.reason}" for f in findings[:3])
        warnings.warn(f"fuse: no Ghost module was found in this {type(net).__name__}{seen}", UserWarning, stacklevel=2)
    net = _replace(net, owners, fused)
    for module in net.modules() if memory is not None else ():
        if isinstance(module, FusedGhostBottleneck):
            module.memory = memory
    return net


def revert(net: nn.Module) -> nn.Module:
    """Undo :func:`fuse`: the modules that it replaced are put back, with the state that they have by now.

    Fused modules that replaced nothing (built as such) give way to plain ones of the same children.

    Args:
        net: any module; changed in place.

    Returns:
        ``net``; if it is itself a fused module, the plain one.

    Raises:
        TypeError: net is no ``torch.nn.Module``.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"revert: net: expected a torch.nn.Module, got {type(net).__name__}")
    owners = list(net.modules())
    return _replace(net, owners, {m: m.unwrap() for m in owners if isinstance(m, Wrapper)})


def _replace(net: nn.Module, owners: list[nn.Module], by: dict[nn.Module, nn.Module]) -> nn.Module:
    """Swap children in place; a wrapper and its source share one dictionary of children, so both see it."""
    for owner in owners:
        for name, child in owner._modules.items():
            if child in by:
                owner._modules[name] = by[child]
    return by.get(net, net)
