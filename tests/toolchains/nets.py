"""Nets for other tools, fused and frozen, and what their results are held against."""

from __future__ import annotations

import copy
import importlib
import os
import warnings
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ghost_ops import freeze, fuse, thaw

from .. import zoo
from ..fused.dfc_modules import HuaweiModule
from ..helpers import make_map, randomise
from ..surgery.test_freeze import Classifier

TOLERANCE = 1e-5  # of the largest value
SHAPE = (2, 3, 33, 31)


class Parted(nn.Module):
    """Two programs with something else between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = zoo.conv_bn(3, 8, 3, 2, act=nn.ReLU())
        self.block = zoo.HuaweiBottleneck(8, 16, 8, se=True)
        self.conv = zoo.YoloGhostConv(8, 12)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(self.conv(F.softplus(self.block(self.stem(x)))))


NETS = {
    "one program": lambda: Classifier(
        zoo.ArticleBottleneck(8, 16, 8, 3, 1, True), zoo.ArticleBottleneck(8, 18, 12, 5, 2, False)
    ),
    "parted": Parted,
    "yolo": lambda: Classifier(zoo.YoloGhostBottleneck(8, 8), zoo.YoloGhostBottleneck(8, 12, 3, 2)),
    "attention": lambda: Classifier(HuaweiModule(8, 12)),
}
WAYS = {
    "fused": fuse,
    "frozen": freeze,
    "thawed and folded": lambda net: thaw(freeze(net), fold=True),
}
EVERY = os.environ.get("GHOST_OPS_EVERY_TOOLCHAIN") == "1"  # `make toolchains`
PAIRS = [(name, way) for name in NETS for way in WAYS]
FEW = [("one program", "fused"), ("parted", "frozen"), ("yolo", "thawed and folded"), ("attention", "frozen")]
every_pair = pytest.mark.parametrize(("name", "way"), PAIRS)
few_pairs = pytest.mark.parametrize(("name", "way"), PAIRS if EVERY else FEW)  # of what takes seconds
few_nets = pytest.mark.parametrize("name", NETS if EVERY else ["one program", "parted"])
every_net = pytest.mark.parametrize("name", NETS)


def make(name: str) -> nn.Module:
    return randomise(NETS[name]()).eval().requires_grad_(False)


def made(name: str, way: str) -> tuple[nn.Module, nn.Module]:
    """A net as the tool is given it, and the plain one."""
    plain = make(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # how much of it is fused
        return WAYS[way](copy.deepcopy(plain)), plain


def image(seed: int = 0, batch: int = SHAPE[0]) -> torch.Tensor:
    return make_map((batch, *SHAPE[1:]), seed=seed)


def assert_same(found: object, wanted: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    """Within a share of the largest value."""
    found = torch.as_tensor(found)
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    error, largest = float((found - wanted).abs().max()), float(wanted.abs().max())
    assert error <= tolerance * largest, f"off by {error:.3g}, where the largest value is {largest:.3g}"


def need(name: str) -> ModuleType:
    """A module of a tool. A file whose tool is not installed is skipped; `make toolchains` must have all of them."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if EVERY or error.name != name.partition(".")[0]:
            raise
        pytest.skip(f"{error.name} is not installed", allow_module_level=True)


def ours(graph: torch.fx.Graph) -> list[str]:
    """The operators of ghost_ops in a graph."""
    return [str(node.target) for node in graph.nodes if "ghost_ops" in str(node.target)]
