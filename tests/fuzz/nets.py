"""Drawn nets: graphs of other people's blocks and of plain layers, described by numbers, so that a file can hold one.

A net is a list of nodes ``[kind, source, choices]``. ``source`` says which of the maps before is read, ``choices`` is
the seed of everything else about the node; both mean something whatever number they are.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ghost_ops.nn import GhostBottleneck, GhostConv2d, GhostModule, GhostModuleV2, RepGhostModule

from .. import zoo
from ..fused.inverted import Block
from ..surgery.ways import Functional

ACTS = nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.LeakyReLU, nn.PReLU
FUNCTIONS = F.relu, F.silu, F.hardswish, F.relu6, F.gelu
CHANNELS = 2, 4, 5, 6, 8, 12, 16


def _stride(rng: random.Random, kernel: int) -> int:
    """Of a k x k convolution; 1 of a 1x1 one: PyTorch 2.13's backward of a 1x1 convolution of stride 2 writes past its
    memory on small maps (free(): invalid pointer), with no code of ours in the process."""
    return rng.choice([1, 1, 2]) if kernel > 1 else 1


@dataclass
class Map:
    """What a node makes: its channels, and how many times its sides were halved."""

    channels: int
    level: int = 0


def _article(rng, c):
    out = rng.choice(CHANNELS)
    ratio = rng.choice([2, 2, 2, 3, 4])
    kernel = rng.choice([1, 1, 3])
    stride = _stride(rng, kernel)
    made = zoo.ArticleGhostModule(
        c, out, kernel, ratio, rng.choice([3, 3, 1, 5]), stride, rng.random() < 0.7, rng.choice(ACTS)
    )
    return made, out, stride


def _huawei(rng, c):
    out, stride = rng.choice([c, rng.choice(CHANNELS)]), rng.choice([1, 1, 2])
    out += out % 2
    attention = rng.random() < 0.2
    act = rng.choice(ACTS[:4])
    made = zoo.HuaweiBottleneck(
        c, 2 * rng.choice([4, 6, 9]), out, rng.choice([3, 5]), stride, rng.random() < 0.4, act, attention
    )
    return made, out, stride


def _article_bottleneck(rng, c):
    out, stride = 2 * rng.choice([2, 3, 6]), rng.choice([1, 1, 2])
    return zoo.ArticleBottleneck(c, 2 * rng.choice([4, 6]), out, 3, stride, rng.random() < 0.4), out, stride


def _yolo(rng, c):
    out, kernel = 2 * rng.choice([2, 3, 5]), rng.choice([1, 3])
    stride = _stride(rng, kernel)
    return zoo.YoloGhostConv(c, out, kernel, stride, rng.random() < 0.7), out, stride


def _yolo_bottleneck(rng, c):
    stride = 2 if c % 4 else rng.choice([1, 2])
    out = 4 * rng.choice([1, 2, 3]) if stride == 2 else c
    return zoo.YoloGhostBottleneck(c, out, 3, stride), out, stride


def _ours(rng, c):
    out, stride = rng.choice(CHANNELS), rng.choice([1, 1, 2])
    kinds = [
        lambda: (GhostModule(c, out, 1, rng.choice([1, 2, 3]), 3, 1, rng.random() < 0.7), out, 1),
        lambda: (GhostModule(c, out, 3, rng.choice([1, 2, 3]), 3, stride, rng.random() < 0.7), out, stride),
        lambda: (GhostBottleneck(c, 12, out, 3, stride, rng.choice([0.0, 0.25])), out, stride),
        lambda: (GhostModuleV2(c, out), out, 1),
        lambda: (RepGhostModule(c, out, rng.choice([1, 3])), out, 1),
        lambda: (GhostConv2d(c, out, 3, stride=stride), out, stride),
    ]
    return rng.choice(kinds)()


def _written(rng, c):
    """A Ghost module whose activations are functions, of six channels in and sixteen out."""
    inner = Functional(rng.choice(FUNCTIONS), rng.choice(FUNCTIONS))
    return (inner, 16, 1) if c == 6 else (nn.Sequential(nn.Conv2d(c, 6, 1), inner), 16, 1)


def _inverted(rng, c):
    out, stride = rng.choice([c, rng.choice(CHANNELS)]), rng.choice([1, 1, 2])
    return Block(c, 2 * c + 1, out, rng.choice([3, 5]), stride, rng.choice(ACTS), rng.random() < 0.3), out, stride


def _excitation(rng, c):
    if rng.random() < 0.5:
        return zoo.HuaweiSqueezeExcite(c, max(1, c // 2), rng.choice([zoo.hard_sigmoid, torch.sigmoid])), c, 1
    return zoo.ArticleSELayer(c, 1 if c < 4 else 4, rng.choice([None, nn.Sigmoid()])), c, 1


def _conv(rng, c):
    out, kernel = rng.choice(CHANNELS), rng.choice([1, 3, 3])
    stride = _stride(rng, kernel)
    act = rng.choice([None, nn.ReLU(inplace=True), nn.SiLU(), nn.Hardtanh()])
    return zoo.conv_bn(c, out, kernel, stride, act=act), out, stride


def _layer(rng, c):
    kinds = nn.ReLU(), nn.Hardswish(), nn.BatchNorm2d(c), nn.PReLU(c), nn.Softplus(), nn.Identity(), nn.Dropout(0.0)
    return rng.choice(kinds), c, 1


def _other(rng, c):
    """Ghost modules without what is usual: a BatchNorm, the same activation twice; and look-alikes."""
    out = 2 * rng.choice([2, 3, 6])
    kinds = [
        zoo.PicoGhostModule, zoo.DeployedV3GhostModule, lambda i, o: zoo.ResNetGhostModule(i, o, 1),
        zoo.ScaledGhostModule, zoo.SwappedGhostModule, zoo.LayerScaleGhostModule,
    ]  # fmt: skip
    return rng.choice(kinds)(c, out), out, 1


MODULES: dict[str, Callable] = {
    "article": _article, "huawei": _huawei, "article bottleneck": _article_bottleneck, "yolo": _yolo,
    "yolo bottleneck": _yolo_bottleneck, "ours": _ours, "written": _written, "inverted": _inverted,
    "excitation": _excitation, "conv": _conv, "layer": _layer, "other": _other,
}  # fmt: skip
JOINS = "add", "add in place", "mul", "cat", "slice", "relu in place", "again", "list"
KINDS = (*MODULES, *JOINS)


class DrawnNet(nn.Module):
    """The net of a description: a convolution of three channels, the nodes, and a linear layer."""

    def __init__(self, nodes: list[list], channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, 1, 1)
        maps, self.plan, self.parts = [Map(channels)], [], nn.ModuleList()
        for kind, source, choices in nodes:
            rng = random.Random(f"{kind} {choices}")
            at = len(maps) - 1 - source % min(len(maps), 3)
            a = maps[at]
            if kind in MODULES:
                module, out, stride = MODULES[kind](rng, a.channels)
                self.parts.append(module)
                self.plan.append((kind, at, len(self.parts) - 1, 0))
                maps.append(Map(out, a.level + (stride == 2)))
                continue
            alike = [
                i for i, b in enumerate(maps) if b.level == a.level and (kind == "cat" or b.channels == a.channels)
            ]
            other = rng.choice(alike)
            count = rng.randint(1, max(1, a.channels - 1))
            called = [i for i, (k, s, m, _) in enumerate(self.plan) if k in MODULES and maps[s].channels == a.channels]
            if kind == "again" and called:  # a module that is called a second time
                again = rng.choice(called)
                self.plan.append(("again", at, self.plan[again][2], 0))
                halved = maps[again + 1].level - maps[self.plan[again][1]].level
                maps.append(Map(maps[again + 1].channels, a.level + halved))
                continue
            kind = "add" if kind == "again" else kind
            channels = a.channels + maps[other].channels if kind == "cat" else count if kind == "slice" else a.channels
            self.plan.append((kind, at, other, count))
            maps.append(Map(channels, a.level))
        self.head = nn.Linear(maps[-1].channels, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = [self.stem(x)]
        for kind, at, other, count in self.plan:
            a = values[at]
            if kind in MODULES or (kind == "again"):
                values.append(self.parts[other](a))
            elif kind == "add":
                values.append(a + values[other])
            elif kind == "add in place":
                y = a * 0.5
                y += values[other]
                values.append(y)
            elif kind == "mul":
                values.append(a * torch.sigmoid(values[other]))
            elif kind == "cat":
                values.append(torch.cat([a, values[other]], 1))
            elif kind == "slice":
                values.append(a[:, :count])
            elif kind == "relu in place":
                values.append(F.relu(a + 0.0, inplace=True))
            else:
                values.append(sum([a, values[other], a]))
        return self.head(values[-1].mean((2, 3)))
