"""Subclasses that compute what PyTorch's own modules do: BatchNorms that apply an activation too (timm's
``BatchNormAct2d``), linear layers under another name."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ...activations import code_of
from ...fused.layers import NORMS
from ...fused.structure import is_hooked
from .read import NOTHING


def opened(net: nn.Module) -> dict[nn.Module, tuple[nn.Module, ...]]:
    """Such modules of a net, each with PyTorch's own that compute the same; only where running both shows it."""
    found: dict[nn.Module, tuple[nn.Module, ...]] = {}
    for module in net.modules():
        if is_hooked(module) or "parametrizations" in module._modules:
            continue
        if isinstance(module, nn.BatchNorm2d) and type(module) not in NORMS and module.running_mean is not None:
            inner = [m for m in module.children() if type(m) not in NOTHING]
            known = len(inner) < 2 and all(code_of(m) is not None for m in inner)
            shape = (2, module.num_features, 3, 2)
            parts = _as(nn.BatchNorm2d, module), *inner
        elif isinstance(module, nn.Linear) and type(module) is not nn.Linear and not module._modules:
            known, shape, parts = True, (3, module.in_features), (_as(nn.Linear, module),)
        else:
            continue
        if known and _same(module, nn.Sequential(*parts), shape):
            found[module] = parts
    return found


def _as(kind: type, module: nn.Module) -> nn.Module:
    """The module as one of a class that it derives from, with the same parameters, without children."""
    plain = kind.__new__(kind)
    plain.__dict__.update(module.__dict__, _modules={})
    return plain


def _same(a: nn.Module, b: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether two modules in eval make the same of an input, in float64."""
    a, b = copy.deepcopy(a).cpu().double(), copy.deepcopy(b).cpu().double()
    x = 3 * torch.randn(shape, dtype=torch.float64, device="cpu", generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.allclose(a(x.clone()), b(x.clone()), rtol=1e-12, atol=1e-12)
