"""Which layers of a net have feature maps, which one is looked at, and which maps of it a cheap operation made."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..surgery.recognise import survey


@dataclass(frozen=True)
class Ghosts:
    """How a Ghost module makes its maps.

    Attributes:
        primary: number of maps that its primary convolution makes; they come first.
        each: number of maps that its cheap operation makes of each of them.
        kept: number of maps of both that it returns.
    """

    primary: int
    each: int
    kept: int

    def source(self, made: int) -> int:
        """The map from which the cheap operation makes map ``made``, which is not below ``primary``."""
        return (made - self.primary) // self.each

    def made(self) -> range:
        """The maps that the cheap operation makes."""
        return range(self.primary, self.kept)


def shapes_of(net: nn.Module, x: torch.Tensor) -> dict[str, torch.Size]:
    """Shapes of what each module returns in one forward, in the order in which the modules are done.

    Args:
        net: is run once on ``x``, without gradients.
        x: what the net takes.

    Returns:
        The shape N x C x H x W of the first result of each module that returns one map, by its name; ``""`` is the net.
    """
    found: dict[str, torch.Size] = {}

    def note(name: str) -> object:
        def hook(module: nn.Module, args: tuple, result: object) -> None:
            if isinstance(result, torch.Tensor) and result.dim() == 4:
                found.setdefault(name, result.shape)

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in net.named_modules()]
    try:
        with torch.no_grad():
            net(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def default_layer(net: nn.Module, shapes: dict[str, torch.Size]) -> str | None:
    """The first Ghost module that concatenates; where there is none, the first convolution; None where neither is.

    Args:
        shapes: as :func:`shapes_of` returns them.
    """
    modules = dict(net.named_modules())
    for name in shapes:
        if name and _may_be_ghost(modules[name], shapes[name][1]) and ghosts_of(modules[name])[0] is not None:
            return name
    return next((name for name in shapes if isinstance(modules[name], nn.Conv2d)), None)


def _may_be_ghost(module: nn.Module, channels: int) -> bool:
    """Whether there is a depthwise convolution of what another makes, and more maps come out than it reads."""
    convs = [inner for inner in module.modules() if isinstance(inner, nn.Conv2d)]
    made = {conv.out_channels for conv in convs if conv.groups == 1}
    return any(
        conv.groups == conv.in_channels and conv.in_channels in made and conv.in_channels < channels
        for conv in convs
    ) and not isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))  # fmt: skip


def ghosts_of(module: nn.Module) -> tuple[Ghosts | None, str]:
    """How a module makes its maps, where it is a Ghost module that concatenates, and otherwise None.

    Beside it stands why a module that looks like a Ghost module is not taken for one; empty for others.
    """
    finding = next((one for one in survey(module) if one.module is module), None)
    if finding is None:
        return None, ""
    if finding.parts is None:
        return None, finding.reason or ""
    path = getattr(finding.parts, "cheap_conv", None) or next(iter(getattr(finding.parts, "cheap_convs", ())), None)
    if path is None:
        return None, ""
    cheap = module.get_submodule(path)
    made = cheap.in_channels + cheap.out_channels
    kept = getattr(finding.parts, "out_channels", None) or made
    if kept <= cheap.in_channels:  # RepGhost's: the halves are added
        return None, ""
    return Ghosts(cheap.in_channels, cheap.out_channels // cheap.in_channels, min(kept, made)), ""
