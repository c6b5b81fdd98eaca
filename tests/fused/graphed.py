"""Nets and modules with emulated graphs beside twins without, which they must follow to the bit."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from ghost_ops import explain, fuse
from ghost_ops.fused.behaviour import block_of, is_fused
from ghost_ops.fused.graphed_block import WARM_UPS, BlockGraphs

from .. import zoo
from ..helpers import make_map, randomise
from .emulated_graph import EmulatedGraphs


def make_net() -> nn.Module:
    """Stem, three fused blocks (with squeeze-and-excite, with stride, a Ghost module), head."""
    blocks = zoo.HuaweiBottleneck(8, 16, 8, se=True), zoo.ArticleBottleneck(8, 16, 12, 3, 2, True)
    return randomise(zoo.Net(*blocks, zoo.YoloGhostConv(12, 12)))


def make_block() -> nn.Module:
    return randomise(zoo.HuaweiBottleneck(8, 16, 12, 3, 2, se=True))


def pair(make=make_block) -> tuple[nn.Module, nn.Module]:
    """The same module with graphs and without."""
    module = make()
    return fuse(copy.deepcopy(module), cuda_graph=True), fuse(module)


def graphs_of(module: nn.Module) -> list[BlockGraphs]:
    """The graphs of every block that has them."""
    return [block_of(m).graphs for m in module.modules() if is_fused(m) and block_of(m).graphs is not None]


def images(seed: int = 0, batch: int = 3, channels: int = 8, grad: bool = False) -> torch.Tensor:
    return make_map((batch, channels, 7, 9), seed=seed, requires_grad=grad)


def step(module: nn.Module, x: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """A forward, and a backward with a drawn gradient; returns the output."""
    out = module(x)
    out.backward(torch.empty_like(out).copy_(make_map(tuple(out.shape), seed=seed + 50)))  # in the layout of out
    return out


def warm(module: nn.Module, *others: nn.Module, calls: int = WARM_UPS + 1, **options: int) -> None:
    """So many steps that graphs are there afterwards, of others too; gradients are gone."""
    for seed in range(calls):
        for m in (module, *others):
            step(m, images(seed, grad=True, **options), seed)
    for m in (module, *others):
        m.zero_grad()


def assert_equal(ours: nn.Module, twin: nn.Module) -> None:
    """Parameters, gradients and buffers are the same to the bit."""
    for (name, t), other in zip(ours.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(t, other), name
        assert (t.grad is None) == (other.grad is None), name
        assert t.grad is None or torch.equal(t.grad, other.grad), f"gradient of {name}"
    for (name, t), other in zip(ours.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(t, other), name


def why(module: nn.Module, x: torch.Tensor, name: str = "") -> str:
    """What ``explain`` says of the module, in its mode."""
    row = next(row for row in explain(module, x).rows if row.name == name)
    return f"{row.runs}: {row.why}"


def replays(device: EmulatedGraphs, call: Callable[[], object]) -> int:
    """How many graphs are replayed in a call."""
    before = len(device.replays)
    call()
    return len(device.replays) - before
