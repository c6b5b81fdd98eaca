"""Ghost modules with DFC attention, as of GhostNetV2, in the ways that people write them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from ghost_ops.fused.behaviour import block_of
from ghost_ops.surgery import fuse

from ..helpers import make_map, randomise

KIND = "Ghost module with DFC attention"


class HuaweiModule(nn.Module):
    """As in Huawei's ghostnetv2_torch: a mode, and empty containers in the place of activations."""

    def __init__(self, inp, oup, ratio=2, dw_size=3, relu=True, bias=False, gate=nn.Sigmoid, act=nn.ReLU) -> None:
        super().__init__()
        self.mode, self.oup, self.gate_fn = "attn", oup, gate()
        init, norm = (
            math.ceil(oup / ratio),
            (lambda channels: []) if bias else (lambda channels: [nn.BatchNorm2d(channels)]),
        )
        new = init * (ratio - 1)
        last = lambda: [act() if relu else nn.Sequential()]
        self.primary_conv = nn.Sequential(nn.Conv2d(inp, init, 1, bias=bias), *norm(init), *last())
        cheap = nn.Conv2d(init, new, dw_size, 1, dw_size // 2, groups=init, bias=bias)
        self.cheap_operation = nn.Sequential(cheap, *norm(new), *last())
        along = [
            nn.Conv2d(oup, oup, k, padding=(k[0] // 2, k[1] // 2), groups=oup, bias=bias) for k in ((1, 5), (5, 1))
        ]
        self.short_conv = nn.Sequential(
            nn.Conv2d(inp, oup, 1, bias=bias), *norm(oup), along[0], *norm(oup), along[1], *norm(oup)
        )

    def attention(self, x):
        return self.short_conv(F.avg_pool2d(x, kernel_size=2, stride=2))

    def forward(self, x):
        if self.mode in ["attn"]:
            res = self.attention(x)
            x1 = self.primary_conv(x)
            x2 = self.cheap_operation(x1)
            out = torch.cat([x1, x2], dim=1)
            up = F.interpolate(self.gate_fn(res), size=(out.shape[-2], out.shape[-1]), mode="nearest")
            return out[:, : self.oup, :, :] * up


class GateLast(HuaweiModule):
    """The Ghost module first, pooling by a module, and the gate by a function, after the upsampling."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.pool = nn.AvgPool2d(2)
        del self.gate_fn

    def forward(self, x):
        y = self.primary_conv(x)
        out = torch.cat([y, self.cheap_operation(y)], 1)[:, : self.oup]
        return torch.sigmoid(F.interpolate(self.short_conv(self.pool(x)), size=out.shape[2:])) * out


class TwoForms(HuaweiModule):
    """As a reparametrised module: a scale, and an interpolation by a name that is an attribute."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.scale, self.inter_mode = 1.0, "nearest"

    def forward(self, x):
        res = self.attention(x)
        y = self.primary_conv(x)
        out = torch.cat([y, self.cheap_operation(y)], 1)
        up = F.interpolate(self.gate_fn(res / self.scale), size=out.shape[-2:], mode=self.inter_mode)
        return out[:, : self.oup] * up


class OwnReLU(nn.Module):
    def forward(self, x):
        return torch.maximum(x, torch.zeros_like(x))


class OwnHardSigmoid(nn.Module):
    shift = 3

    def forward(self, x):
        return F.relu6(x + self.shift) / 6


class OwnConv(nn.Conv2d):
    """A subclass that changes nothing."""


class Functional(HuaweiModule):
    """Activations by functions, one of them with a slope of its own, convolutions of a subclass, a gate of a class."""

    def __init__(self, *args, acts=(F.silu, lambda x: F.leaky_relu(x, 0.2)), **kwargs) -> None:
        super().__init__(*args, relu=False, gate=OwnHardSigmoid, **kwargs)
        self.acts = acts
        for conv in (m for m in self.modules() if type(m) is nn.Conv2d):
            conv.__class__ = OwnConv

    def forward(self, x):
        y = self.acts[0](self.primary_conv(x))
        out = torch.cat([y, self.acts[1](self.cheap_operation(y))], 1)[:, : self.oup]
        return out * F.interpolate(self.gate_fn(self.attention(x)), size=out.shape[-2:])


FORMS = {
    "Huawei's": lambda: HuaweiModule(6, 20),
    "without activations": lambda: HuaweiModule(6, 20, relu=False),
    "channels that are dropped": lambda: HuaweiModule(7, 19, ratio=3, dw_size=5),
    "PReLU": lambda: HuaweiModule(6, 20, act=lambda: nn.PReLU(10)),
    "SiLU, another gate": lambda: HuaweiModule(6, 20, act=nn.SiLU, gate=nn.Hardsigmoid),
    "the gate last": lambda: GateLast(6, 20),
    "a scale of 1": lambda: TwoForms(6, 20),
    "functions": lambda: Functional(7, 19),
    "classes of its own": lambda: HuaweiModule(6, 20, act=OwnReLU, gate=OwnHardSigmoid),
}


def module(form="Huawei's", training=True):
    return fuse(randomise(FORMS[form]()).train(training))


def map_of(fused, side=(9, 11), **options):
    return make_map((3, block_of(fused).channels(fused), *side), **options)
