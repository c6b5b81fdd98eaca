"""What is timed: every Ghost module of GhostNet-100, whole nets, a training step; their FLOPs and bytes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .. import models
from ..nn import GhostModule

SIDE = 224
NETS: dict[str, Callable[..., nn.Module]] = {  # by name; other models add themselves
    "ghostnet_100": models.ghostnet_100,
    "ghostnet_050": models.ghostnet_050,
    "ghostnet_130": models.ghostnet_130,
}
FLOAT = 4  # bytes


@dataclass(frozen=True)
class ModuleCase:
    """A Ghost module with a 1x1 primary convolution and ratio 2, on square maps.

    Attributes:
        inp, out: numbers of channels.
        side: height and width of the map.
        kernel: kernel size of the cheap operation.
        relu: whether both halves end in a ReLU.
        count: how many modules of the net are like this.
    """

    inp: int
    out: int
    side: int
    kernel: int = 3
    relu: bool = True
    count: int = 1
    kind = "module"

    @property
    def name(self) -> str:
        kernel = "" if self.kernel == 3 else f" d{self.kernel}"
        return f"{self.inp}-{self.out}@{self.side}{kernel}{'' if self.relu else ' linear'}"

    @property
    def primary(self) -> int:
        return math.ceil(self.out / 2)

    def build(self) -> nn.Module:
        """The plain module, in eval, with drawn parameters and statistics."""
        module = GhostModule(self.inp, self.out, dw_size=self.kernel, relu=self.relu)
        return randomise(module).eval().requires_grad_(False)

    def input(self, batch: int) -> torch.Tensor:
        """A drawn map, batch x inp x side x side, channels_last."""
        return draw_map(batch, self.inp, self.side)

    def flops(self, batch: int) -> int:
        """Two for each multiply-add that the output needs; BatchNorms folded, activations free."""
        cheap = self.out - self.primary
        return 2 * batch * self.side**2 * (self.inp * self.primary + self.kernel**2 * cheap)

    def bytes(self, batch: int) -> int:
        """x and the folded weights read once, the output written once, in float32."""
        cheap = self.out - self.primary
        weights = (self.inp + 1) * self.primary + (self.kernel**2 + 1) * cheap
        return FLOAT * (batch * self.side**2 * (self.inp + self.out) + weights)


@dataclass(frozen=True)
class NetCase:
    """A whole net in eval on batch x 3 x side x side.

    Attributes:
        net: a name of ``NETS``.
        side: height and width of the images.
        kind: net; with ``--frozen``: frozen, frozen_bfloat16, or other_model for a net beside the frozen one.
    """

    net: str
    side: int = SIDE
    count: int = 1
    kind: str = "net"

    @property
    def name(self) -> str:
        return self.net if self.side == SIDE else f"{self.net}@{self.side}"

    def build(self) -> nn.Module:
        """Raises ``Unavailable`` where the package that has the net is missing."""
        return randomise(NETS[self.net]()).eval().requires_grad_(False)

    def input(self, batch: int) -> torch.Tensor:
        return draw_map(batch, 3, self.side)

    def flops(self, batch: int) -> int:
        """Two for each multiply-add of its convolutions and linear layers."""
        return batch * _net_work(self.net, self.side)[0]

    def bytes(self, batch: int) -> int:
        """The least that must move: images and parameters read once, logits written once."""
        _, parameters, logits = _net_work(self.net, self.side)
        return FLOAT * (batch * (3 * self.side**2 + logits) + parameters)


@cache
def _net_work(name: str, side: int) -> tuple[int, int, int]:
    """FLOPs for one image, number of parameters, number of logits."""
    with torch.device("meta"):
        net = NETS[name]().eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        logits = net(torch.empty(1, 3, side, side, device="meta"))
    return counter.get_total_flops(), sum(p.numel() for p in net.parameters()), logits.shape[1]


@cache
def module_cases(net: str = "ghostnet_100", side: int = SIDE) -> tuple[ModuleCase, ...]:
    """The Ghost modules that ``net`` runs on a side x side image, equal ones counted, in the order of the net."""
    built, found = NETS[net](device="meta").eval(), []

    def note(module: GhostModule, args: tuple[torch.Tensor], out: torch.Tensor) -> None:
        relu, cheap = isinstance(module.primary_conv[2], nn.ReLU), module.cheap_operation[0]
        found.append((args[0].shape[1], out.shape[1], out.shape[2], cheap.kernel_size[0], relu))

    for module in built.modules():
        if isinstance(module, GhostModule):
            module.register_forward_hook(note)
    with torch.no_grad():
        built(torch.empty(1, 3, side, side, device="meta"))
    return tuple(ModuleCase(*shape, count=count) for shape, count in Counter(found).items())


def net_cases() -> tuple[NetCase, ...]:
    return (NetCase("ghostnet_100"),)


def draw_map(batch: int, channels: int, side: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, side, side, generator=generator)
    return x.contiguous(memory_format=torch.channels_last)


def draw_images(batch: int, side: int, seed: int) -> torch.Tensor:
    """Blots of colour under noise, each image with a contrast of its own, so that a net classifies them differently."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(batch, *shape, generator=generator)
    contrast = 0.5 + 2 * torch.rand(batch, 1, 1, 1, generator=generator)
    blots = F.interpolate(contrast * normal(3, 7, 7), (side, side), mode="bicubic") + normal(3, 1, 1)
    images = blots + 0.3 * normal(3, side, side)
    return images.contiguous(memory_format=torch.channels_last)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """BatchNorm's parameters and statistics as after some training, so that folding changes the weights.

    The other weights are normal, with the deviation that keeps magnitudes.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(t: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return torch.rand(t.shape, generator=generator) * (high - low) + low

    with torch.no_grad():
        for child in module.modules():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                child.weight.copy_(uniform(child.weight, 0.7, 1.3))
                child.bias.copy_(uniform(child.bias, -0.3, 0.3))
                child.running_mean.copy_(uniform(child.running_mean, -0.3, 0.3))
                child.running_var.copy_(uniform(child.running_var, 0.6, 1.4))
            elif isinstance(child, (nn.Conv2d, nn.Linear)) and child.weight is not None:
                deviation = child.weight[0].numel() ** -0.5
                child.weight.copy_(torch.randn(child.weight.shape, generator=generator) * deviation)
                if child.bias is not None:
                    child.bias.copy_(uniform(child.bias, -0.3, 0.3))
    return module
