"""Which blocks of other nets the CUDA C++ kernels compute, and what of them the next backend does: the table of the
documentation, found again."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from ghost_ops import freeze
from ghost_ops import nn as ghost_nn
from ghost_ops.backends.cuda.calls import Call, calls_of
from ghost_ops.fused import FrozenProgram
from ghost_ops.program import Load, Store
from tests import zoo

PAGE = Path(__file__).resolve().parents[2] / "docs" / "gpu-kernels.md"


class C3Ghost(nn.Module):
    """As ultralytics': half of the channels go through blocks, the other half beside them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.cv1, self.cv2, self.cv3 = (zoo.YoloConv(channels, c) for c in (half, half, channels))
        self.m = nn.Sequential(*(zoo.YoloGhostBottleneck(half, half) for _ in range(2)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


def _merged(*args) -> nn.Module:
    block = ghost_nn.GhostBottleneckV3(*args)
    block.reparameterize()
    return block


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "`GhostBottleneck`, stride 1": lambda: ghost_nn.GhostBottleneck(16, 24, 16),
    "`GhostBottleneck`, stride 2, with an excitation": lambda: ghost_nn.GhostBottleneck(16, 24, 24, 5, 2, 0.25),
    "`GhostBottleneckV2`, stride 1": lambda: ghost_nn.GhostBottleneckV2(16, 24, 16),
    "`GhostBottleneckV2`, stride 2": lambda: ghost_nn.GhostBottleneckV2(16, 24, 24, 3, 2),
    "`RepGhostBottleneck`, stride 1": lambda: ghost_nn.RepGhostBottleneck(16, 24, 16),
    "`RepGhostBottleneck`, stride 2, with an excitation": lambda: ghost_nn.RepGhostBottleneck(16, 24, 24, 3, 2, 0.25),
    "`GhostBottleneckV3`, merged, stride 1": lambda: _merged(16, 24, 16),
    "`GhostBottleneckV3`, merged, stride 2, with an excitation": lambda: _merged(16, 24, 24, 3, 2, 0.25),
    "`GhostBottleneckV3`, merged, with DFC attention": lambda: _merged(16, 24, 16, 3, 1, 0.0, True),
    "`GhostBottleneckV3`, not merged, stride 2": lambda: ghost_nn.GhostBottleneckV3(16, 24, 24, 3, 2),
    "`GhostConv` of YOLO (5 x 5, SiLU)": lambda: zoo.YoloGhostConv(16, 32),
    "`GhostConv` of YOLO, 3 x 3, stride 2": lambda: zoo.YoloGhostConv(16, 32, 3, 2),
    "`GhostBottleneck` of YOLO, stride 1": lambda: zoo.YoloGhostBottleneck(16, 16),
    "`GhostBottleneck` of YOLO, stride 2": lambda: zoo.YoloGhostBottleneck(16, 32, 3, 2),
    "`C3Ghost` of YOLO, two bottlenecks": lambda: C3Ghost(32),
}


def _kind(call: Call) -> str:
    block, first = call.block, call.steps[0]
    if block.primary:
        return "bottleneck" if block.first[0] >= 0 else "separable convolution"
    return "convolution" if block.window else "Ghost module" if first.cheap_channels else "1x1 convolution"


def row(name: str, block: nn.Module) -> str:
    """What computes the steps of a frozen block, as a row of the table."""
    ours, others = Counter(), Counter()
    for frozen in freeze(nn.Sequential(block).eval()).modules():
        if not isinstance(frozen, FrozenProgram):
            continue
        packed = frozen.packed
        calls = calls_of(packed, tuple(frozen.steps), packed.numel(), True, packed.device, frozenset())
        for call in (call for chain in calls.chains for call in chain):
            if call.block is not None:
                ours[_kind(call)] += 1
            elif not isinstance(call.steps[0], Load | Store):
                others[f"`{type(call.steps[0]).__name__}`"] += 1
    said = lambda counts: ", ".join(f"{kind} x {n}" if n > 1 else kind for kind, n in counts.items())
    return f"| {name} | {said(ours)} | {said(others)} |"


@pytest.mark.parametrize("name", BLOCKS)
def test_the_table_says_what_runs(name, one_thread):
    torch.manual_seed(0)
    assert row(name, BLOCKS[name]()) in PAGE.read_text().splitlines()


def test_the_table_has_no_other_rows():
    (table,) = re.findall(r"^\| block, frozen \|.*\n(?:\|.*\n)+", PAGE.read_text(), re.MULTILINE)
    assert [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()[2:]] == list(BLOCKS)
