"""Nets for other tools, fused and frozen, and what their results are held against."""

from __future__ import annotations

import copy
import importlib
import os
import warnings
from collections import OrderedDict
from types import ModuleType

import pytest
import torch
from torch import nn

from ghost_ops import freeze, fuse, thaw

from .. import zoo
from ..fused.dfc_modules import HuaweiModule
from ..helpers import make_map, randomise
from ..surgery.test_freeze import Classifier

TOLERANCE = 1e-5  # of the largest value
SHAPE = (2, 3, 33, 31)


def _parted() -> nn.Module:
    """Two programs with something else between them."""
    parts = {
        "stem": zoo.conv_bn(3, 8, 3, 2, act=nn.ReLU()),
        "block": zoo.HuaweiBottleneck(8, 16, 8, se=True),
        "between": nn.Softplus(),
        "conv": zoo.YoloGhostConv(8, 12),
        "pool": nn.AdaptiveAvgPool2d(1),
    }
    return nn.Sequential(OrderedDict(parts))  # names, of which pnnx makes attributes


NETS = {
    "one program": lambda: Classifier(
        zoo.ArticleBottleneck(8, 16, 8, 3, 1, True), zoo.ArticleBottleneck(8, 18, 12, 5, 2, False)
    ),
    "parted": _parted,
    "yolo": lambda: Classifier(zoo.YoloGhostBottleneck(8, 8), zoo.YoloGhostBottleneck(8, 12, 3, 2)),
    "attention": lambda: Classifier(HuaweiModule(8, 12)),
}
WAYS = {
    "fused": fuse,
    "frozen": freeze,
    "thawed and folded": lambda net: thaw(freeze(net), fold=True),
}
every_net = pytest.mark.parametrize("name", NETS)
every_way = pytest.mark.parametrize("way", WAYS)


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
        if os.environ.get("GHOST_OPS_EVERY_TOOLCHAIN") == "1" or error.name != name.partition(".")[0]:
            raise
        pytest.skip(f"{error.name} is not installed", allow_module_level=True)


def ours(graph: torch.fx.Graph) -> list[str]:
    """The operators of ghost_ops in a graph."""
    return [str(node.target) for node in graph.nodes if "ghost_ops" in str(node.target)]
