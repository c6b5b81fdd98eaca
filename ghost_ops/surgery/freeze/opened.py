"""Modules of other classes that compute what PyTorch's own do: BatchNorms that apply an activation too (timm's
``BatchNormAct2d``), linear layers under another name, frozen BatchNorms (torchvision's and detectron2's)."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import nn

from ...activations import code_of
from ...fused.layers import NORMS
from ...fused.structure import is_hooked
from .read import NOTHING

_OF_NORM = ("weight", "bias", "running_mean", "running_var")
_USUAL_EPS = (1e-5, 1e-3, 0.0)  # of a frozen BatchNorm that has it in its forward


def opened(net: nn.Module) -> dict[nn.Module, tuple[nn.Module, ...]]:
    """Such modules of a net, each with PyTorch's own that compute the same; only where running both shows it."""
    found: dict[nn.Module, tuple[nn.Module, ...]] = {}
    for module in net.modules():
        if is_hooked(module) or "parametrizations" in module._modules:
            continue
        parts = next((parts for parts, shape in _candidates(module) if _same(module, nn.Sequential(*parts), shape)), ())
        if parts:
            found[module] = parts
    return found


def _candidates(module: nn.Module) -> Iterator[tuple[tuple[nn.Module, ...], tuple[int, ...]]]:
    """Modules of PyTorch's that may compute the same one after the other, with the shape of an input."""
    if isinstance(module, nn.BatchNorm2d) and type(module) not in NORMS and module.running_mean is not None:
        inner = [m for m in module.children() if type(m) not in NOTHING]
        if len(inner) < 2 and all(code_of(m) is not None for m in inner):
            yield (_as(nn.BatchNorm2d, module), *inner), (2, module.num_features, 3, 2)
    elif isinstance(module, nn.Linear) and type(module) is not nn.Linear and not module._modules:
        yield (_as(nn.Linear, module),), (3, module.in_features)
    elif _is_frozen_norm(module):
        for eps in dict.fromkeys((getattr(module, "eps", None), *_USUAL_EPS)):
            if isinstance(eps, float):
                yield (_norm_of(module, eps),), (2, len(module.weight), 3, 2)


def _is_frozen_norm(module: nn.Module) -> bool:
    """Whether it has the tensors of a BatchNorm and nothing else, and is of another class."""
    tensors = {**module._parameters, **module._buffers}
    if module._modules or isinstance(module, nn.modules.batchnorm._NormBase):
        return False
    found = [tensors.pop(name, None) for name in _OF_NORM]
    tensors.pop("num_batches_tracked", None)
    plain = all(type(t) in (torch.Tensor, nn.Parameter) and t.dim() == 1 and t.is_floating_point() for t in found)
    return not tensors and plain and len({t.shape for t in found}) == 1


def _norm_of(module: nn.Module, eps: float) -> nn.BatchNorm2d:
    """A BatchNorm over the tensors of a frozen one."""
    norm = nn.BatchNorm2d(len(module.weight), eps, device="meta").eval()
    for name in _OF_NORM:
        t = getattr(module, name).detach()
        entries = norm._parameters if name in norm._parameters else norm._buffers
        entries[name] = nn.Parameter(t, requires_grad=False) if entries is norm._parameters else t
    norm._buffers["num_batches_tracked"] = None
    return norm


def _as(kind: type, module: nn.Module) -> nn.Module:
    """The module as one of a class that it derives from, with the same parameters, without children."""
    plain = kind.__new__(kind)
    plain.__dict__.update(module.__dict__, _modules={})
    return plain


def _same(a: nn.Module, b: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether two modules in eval make the same of an input, in float64, with these tensors and with drawn ones."""
    generator = torch.Generator().manual_seed(0)
    a, b = copy.deepcopy((a, b))  # at once: tensors that they share stay shared
    a, b = a.cpu().double(), b.cpu().double()
    x = 3 * torch.randn(shape, dtype=torch.float64, device="cpu", generator=generator)
    try:
        with torch.no_grad():
            if not torch.allclose(a(x.clone()), b(x.clone()), rtol=1e-12, atol=1e-12):
                return False
            for t, other in _pairs(a, b[0]):
                drawn = 0.5 + torch.rand(t.shape, dtype=t.dtype, device="cpu", generator=generator)
                t.copy_(drawn), other.copy_(drawn)
            return torch.allclose(a(x.clone()), b(x.clone()), rtol=1e-12, atol=1e-12)
    except Exception:  # it is made for other inputs
        return False


def _pairs(a: nn.Module, b: nn.Module) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The floating-point tensors of two modules, by their names."""
    for name, t in (*b._parameters.items(), *b._buffers.items()):
        if t is not None and t.is_floating_point():
            yield getattr(a, name), t
