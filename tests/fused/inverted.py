"""Inverted residuals as people write them, and drawn ones."""

from __future__ import annotations

import random

import pytest
from torch import nn

from ghost_ops.nn import SqueezeExcite

ACTS = nn.ReLU6, nn.Hardswish, nn.SiLU, nn.ReLU, nn.PReLU, nn.Identity


def layer(channels, filters, kernel=1, stride=1, groups=1, act=None, norm=True, dilation=1, bias=False):
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(channels, filters, kernel, stride, padding, dilation, groups, bias=bias or not norm)
    return nn.Sequential(conv, *[nn.BatchNorm2d(filters)] * norm, *([] if act is None else [act()]))


class Block(nn.Module):
    """Three convolutions, of which the first may be missing, an excitation, and the input added.

    Args:
        scaled: what the result is multiplied by, as of a layer scale; 1 is nothing.
    """

    def __init__(
        self, channels, hidden, filters, kernel=3, stride=1, act=nn.ReLU6, se=False, adds=True, norm=True, dilation=1
    ) -> None:  # fmt: skip
        super().__init__()
        options = {"act": act, "norm": norm}
        self.expand = layer(channels, hidden, **options) if hidden != channels else nn.Identity()
        self.depthwise = layer(hidden, hidden, kernel, stride, hidden, dilation=dilation, **options)
        self.se = SqueezeExcite(hidden, 0.25) if se else None
        self.project = layer(hidden, filters, norm=norm)
        self.adds, self.factor = adds and stride == 1 and channels == filters, 1.0

    def forward(self, x):
        out = self.depthwise(self.expand(x))
        if self.se is not None:
            out = self.se(out)
        out = self.project(out)
        if self.adds:
            out = out + x
        return out if self.factor == 1.0 else self.factor * out


def drawn(seed: int) -> nn.Module:
    rng = random.Random(seed)
    channels = rng.choice([1, 3, 8, 13, 24])
    hidden = channels if rng.random() < 0.3 and channels > 1 else channels * rng.choice([2, 3, 6]) + 1
    return Block(
        channels, hidden, rng.choice([channels, channels, 5, 17]), rng.choice([1, 3, 3, 5, 7]), rng.choice([1, 1, 2]),
        rng.choice(ACTS), rng.random() < 0.4, rng.random() < 0.8, rng.random() < 0.8, rng.choice([1, 1, 2]),
    )  # fmt: skip


def mobilenet_v1(channels=6, filters=14, stride=2):
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
        nn.Conv2d(channels, filters, 1, bias=False), nn.BatchNorm2d(filters), nn.ReLU(),
    )  # fmt: skip


def _timm(name, *args, **options):
    blocks = pytest.importorskip("timm.models._efficientnet_blocks")
    return getattr(blocks, name)(*args, **options)


def _timm_se(channels, **_options):
    return _timm("SqueezeExcite", channels, 0.25, gate_layer=nn.Hardsigmoid, act_layer=nn.ReLU)


def _v3(**options):
    v3 = pytest.importorskip("torchvision.models.mobilenetv3")
    numbers = {"kernel": 5, "stride": 1, "dilation": 1, "use_se": True, "activation": "HS", "width_mult": 1.0} | options
    config = v3.InvertedResidualConfig(8, expanded_channels=24, out_channels=8, **numbers)
    return v3.InvertedResidual(config, nn.BatchNorm2d)


def _v2(*args):
    return pytest.importorskip("torchvision.models.mobilenetv2").InvertedResidual(*args)


_UNIVERSAL = {"exp_ratio": 3, "layer_scale_init_value": None}
MODULES = {
    "plain": lambda: Block(8, 24, 8),
    "stride 2, excited": lambda: Block(8, 24, 12, stride=2, act=nn.Hardswish, se=True),
    "separable": lambda: Block(8, 8, 8, 5),
    "a Sequential": mobilenet_v1,
    "timm's": lambda: _timm("InvertedResidual", 8, 8, 5, exp_ratio=3.0, act_layer=nn.Hardswish),
    "timm's, excited, stride 2": lambda: _timm("InvertedResidual", 8, 12, stride=2, exp_ratio=3, se_layer=_timm_se),
    "timm's, separable": lambda: _timm("DepthwiseSeparableConv", 8, 8, act_layer=nn.SiLU, se_layer=_timm_se),
    "timm's, separable, act at the end": lambda: _timm("DepthwiseSeparableConv", 8, 12, stride=2, pw_act=True),
    "timm's universal": lambda: _timm("UniversalInvertedResidual", 8, 8, 5, 3, 3, **_UNIVERSAL),
    "torchvision's V2": lambda: _v2(8, 8, 1, 3),
    "torchvision's V2, first": lambda: _v2(8, 5, 1, 1),
    "torchvision's V3": _v3,
    "torchvision's V3, stride 2": lambda: _v3(stride=2, use_se=False, activation="RE"),
}  # fmt: skip


def input_channels(module: nn.Module) -> int:
    return next(m for m in module.modules() if isinstance(m, nn.Conv2d)).in_channels


def large_from(monkeypatch, values=1):
    """Let BatchNorm and activation of maps of so many values be one operator in training."""
    from ghost_ops.fused import convolutions

    monkeypatch.setattr(convolutions, "LEAST_NORMALISED", values)
