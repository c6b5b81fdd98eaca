"""The maps of a layer for one image, and how alike they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .layers import Ghosts, default_layer, ghosts_of, shapes_of

MEASURE = "absolute cosine of two maps less their means"
ALIKE = 0.9  # from here on two maps are counted as alike
_CONSTANT = 1e-6  # a map that varies by less than this share of its norm is constant: that is rounding


@dataclass(frozen=True)
class Pair:
    """Two maps by their channels, the lower one first, and their similarity from 0 to 1."""

    first: int
    second: int
    similarity: float


@dataclass(frozen=True, eq=False)
class FeatureMaps:
    """The maps of a layer for one image.

    Attributes:
        layer: name of the layer in the net.
        kind: name of its class.
        maps: what it returns for the image, C x H x W, float64, on the CPU.
        similarity: C x C, float64, as :func:`similarities` returns it.
        ghosts: which maps the cheap operation makes; None where the layer is not a Ghost module that concatenates.
        note: why a layer that looks like a Ghost module is not taken for one; empty otherwise.
    """

    layer: str
    kind: str
    maps: torch.Tensor
    similarity: torch.Tensor
    ghosts: Ghosts | None = None
    note: str = ""

    @property
    def count(self) -> int:
        """Number of maps."""
        return len(self.maps)

    @property
    def constant(self) -> list[int]:
        """Channels of the maps that have the same value everywhere: they are like no map."""
        return (self.similarity.diagonal() == 0).nonzero().flatten().tolist()

    @property
    def alike(self) -> int:
        """Number of maps to which another is similar by at least 0.9."""
        others = self.similarity - torch.eye(self.count, dtype=torch.float64)
        return int((others.amax(1) >= ALIKE).sum()) if self.count else 0

    def links(self) -> list[Pair]:
        """What the cheap operation makes: from the map ``first`` the map ``second``; empty without a Ghost module."""
        if self.ghosts is None:
            return []
        pairs = ((self.ghosts.source(made), made) for made in self.ghosts.made())
        return [Pair(source, made, float(self.similarity[source, made])) for source, made in pairs]

    def pairs(self, count: int) -> list[Pair]:
        """The most similar pairs, the most similar first. A map is in one pair only; links are left out.

        Args:
            count: at most so many.
        """
        left = self.similarity.triu(1)
        for link in self.links():
            left[link.first, link.second] = 0
        found: list[Pair] = []
        while len(found) < count and left.numel() and float(left.max()) > 0:
            first, second = divmod(int(left.argmax()), self.count)
            found.append(Pair(first, second, float(left[first, second])))
            left[[first, second], :] = 0
            left[:, [first, second]] = 0
        return found

    def as_dict(self, pairs: int) -> dict[str, object]:
        """Everything but the maps themselves, ready for JSON.

        Args:
            pairs: at most so many of the most similar pairs.
        """
        return {
            "layer": self.layer,
            "kind": self.kind,
            "shape": list(self.maps.shape),
            "measure": MEASURE,
            "pairs": [{"maps": [p.first, p.second], "similarity": p.similarity} for p in self.pairs(pairs)],
            "alike": {"at_least": ALIKE, "maps": self.alike},
            "constant": self.constant,
            "cheap": None if self.ghosts is None else [
                {"map": link.second, "made_from": link.first, "similarity": link.similarity} for link in self.links()
            ],
            "note": self.note,
        }  # fmt: skip


def feature_maps(net: nn.Module, x: torch.Tensor, layer: str | None = None) -> FeatureMaps:
    """What a layer of a net returns for one image, and how alike its maps are.

    Source of the figure: Han et al. 2020 (GhostNet, arXiv 1911.11907), figure 1, of ResNet-50.

    Args:
        net: is run on ``x`` without gradients, in the mode in which it is; nothing of it changes in eval mode.
        x: one image, 1 x C x H x W, in the dtype of the net.
        layer: name of a module in ``net.named_modules()``; by default the first Ghost module that concatenates, and
            where there is none the first convolution.

    Raises:
        TypeError: net is not a ``torch.nn.Module``, or x not a tensor.
        ValueError: x is not one image; or the net has no such layer, or it returns no map for this image, or one of a
            single channel; or no layer is given and there is neither a Ghost module nor a convolution.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"feature_maps: net: expected a torch.nn.Module, got {type(net).__name__}")
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"feature_maps: x: expected a tensor, got {type(x).__name__}")
    if x.dim() != 4 or len(x) != 1:
        raise ValueError(f"feature_maps: x: expected one image, 1 x C x H x W, got {' x '.join(map(str, x.shape))}")
    shapes = shapes_of(net, x)
    layer = default_layer(net, shapes) if layer is None else layer
    if layer is None:
        raise ValueError("feature_maps: net: expected a convolution or a Ghost module in it, found none")
    modules = dict(net.named_modules())
    if layer not in modules:
        raise ValueError(f"feature_maps: layer: expected the name of a module of the net, got {layer!r}")
    if layer not in shapes:
        raise ValueError(f"feature_maps: layer: {layer!r} returns no map N x C x H x W for this image")
    if shapes[layer][1] < 2:
        raise ValueError(f"feature_maps: layer: {layer!r} returns a single map: nothing is there to compare it with")
    maps = _result_of(net, modules[layer], x)
    ghosts, note = ghosts_of(modules[layer])
    return FeatureMaps(layer, type(modules[layer]).__name__, maps, similarities(maps), ghosts, note)


def similarities(maps: torch.Tensor) -> torch.Tensor:
    """The absolute cosine of each two maps less their means, which is the absolute correlation of their elements.

    So neither a BatchNorm behind a convolution nor a change of sign changes it. A map that is constant has 0 with
    each, itself included.

    Args:
        maps: C x H x W, of any floating-point dtype; values that are not finite count as 0.

    Returns:
        C x C, float64, symmetric, from 0 to 1.

    Raises:
        ValueError: maps has another number of dimensions.
    """
    if maps.dim() != 3:
        raise ValueError(f"similarities: maps: expected C x H x W, got {tuple(maps.shape)}")
    flat = maps.detach().cpu().double().flatten(1).nan_to_num(0, 0, 0)
    centred = flat - flat.mean(1, keepdim=True)
    norms = centred.norm(dim=1, keepdim=True)
    varies = norms > _CONSTANT * flat.norm(dim=1, keepdim=True)
    unit = torch.where(varies, centred / torch.where(varies, norms, 1), 0)
    found = (unit @ unit.T).abs().clamp(max=1)
    found = (found + found.T) / 2
    return found.diagonal_scatter(varies.flatten().double())


class _Seen(Exception):
    """Ends a forward when the layer is done."""


def _result_of(net: nn.Module, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What the module returns when it is called first, C x H x W, in float64 on the CPU."""
    seen: list[torch.Tensor] = []

    def hook(module: nn.Module, args: tuple, result: object) -> None:
        if isinstance(result, torch.Tensor) and result.dim() == 4:
            seen.append(result[0].detach().cpu().double())
            raise _Seen

    handle = module.register_forward_hook(hook)
    try:
        with torch.no_grad():
            net(x)
    except _Seen:
        pass
    finally:
        handle.remove()
    return seen[0]
