"""Nets that people run instead of a GhostNet: torchvision's, under the names that timm has for them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from types import ModuleType

import torch
from torch import nn

from .cases import NETS
from .machine import Unavailable

_NAMES = {
    "mobilenetv3_large_100": "mobilenet_v3_large",
    "mobilenetv2_100": "mobilenet_v2",
    "resnet18": "resnet18",
}


@cache
def torchvision_models() -> tuple[ModuleType, torch.library.Library | None]:
    """``torchvision.models``, and a library that must live as long.

    Its compiled operators need not load with this torch: no net here calls them, and their schemas suffice.
    """
    if importlib.util.find_spec("torchvision") is None:
        raise Unavailable("torchvision is not installed: pip install --no-deps torchvision")
    try:
        import torchvision

        return torchvision.models, None
    except RuntimeError:  # operator torchvision::nms does not exist
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    try:
        import torchvision
    except Exception as error:
        raise Unavailable(f"torchvision does not load: {error}") from error
    return torchvision.models, library


def _builder(name: str) -> Callable[[], nn.Module]:
    return lambda: getattr(torchvision_models()[0], name)()


OTHER_MODELS = {name: _builder(theirs) for name, theirs in _NAMES.items()}
NETS.update(OTHER_MODELS)
