"""Typical use, which mypy must accept; an ignored error in ``refused`` that is none is an error: ``make types``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

import ghost_ops
from ghost_ops import functional as F

if TYPE_CHECKING:
    from typing_extensions import assert_type


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ghost = ghost_ops.FusedGhostModule(16, 48, kernel_size=1, ratio=2, dw_size=3, relu=True)
        self.gate = ghost_ops.SELayer(48, reduction=4)
        self.block = ghost_ops.GhostBottleneck(48, 96, 48, dw_kernel_size=3, stride=1, se_ratio=0.25)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(self.gate(self.ghost(x)))


def infer(x: torch.Tensor) -> torch.Tensor:
    net = ghost_ops.models.ghostnet_100(num_classes=10).eval()
    assert_type(ghost_ops.fuse(net), ghost_ops.models.GhostNet)
    assert_type(ghost_ops.revert(net), ghost_ops.models.GhostNet)
    frozen = ghost_ops.freeze(net, torch.bfloat16, example=x)
    plain: nn.Module = ghost_ops.thaw(frozen, fold=True)
    print(ghost_ops.explain(plain, x), ghost_ops.profile(net, x, threads=1).modules[0].name)
    exported = torch.export.export(frozen, (x,)).run_decompositions(ghost_ops.decompositions())
    with ghost_ops.use_backend("reference"):
        return exported.module()(x)


def train(net: Net, x: torch.Tensor) -> None:
    fused = ghost_ops.fuse(net, memory="low", cuda_graph=False)
    ghost_ops.warm_up(fused, x, jobs=2)
    optimizer = torch.optim.SGD(fused.parameters(), lr=0.1)
    fused.block.ghost1(x).sum().backward()
    optimizer.step()
    ghost_ops.empty_cache()


def functions(x: torch.Tensor, weight: torch.Tensor, cheap: torch.Tensor) -> None:
    mean: torch.Tensor = F.ghost_module(x, weight, None, cheap, None, act="relu").mean()
    print(mean)
    out, squeeze = F.ghost_module(x, weight, None, cheap, None, return_squeeze=True)
    assert_type(F.depthwise(out * squeeze, cheap, None, stride=2), torch.Tensor)


def files(path: Path) -> None:
    state: dict[str, torch.Tensor] = ghost_ops.models.load_checkpoint(path)
    state = ghost_ops.models.convert_state_dict(state, "ghostnet_100")
    ghost_ops.models.save_checkpoint(state, path.with_suffix(".safetensors"))
    small = ghost_ops.ghostify(ghost_ops.models.ghost_resnet50(), ratio=2)
    print(ghost_ops.models.compare_costs(small, small, torch.randn(1, 3, 224, 224)))


@ghost_ops.register_block
class Block(ghost_ops.LayerBlock):
    kind = "my block"

    @dataclass(frozen=True)
    class Parts:
        conv: str

    @classmethod
    def find(cls, module: nn.Module) -> Block.Parts | None:
        return None

    def read(self, structure: object, parts: Block.Parts) -> tuple[str]:
        return (parts.conv,)


def refused(net: nn.Module, x: torch.Tensor) -> None:
    ghost_ops.fuse("net")  # type: ignore[type-var]
    ghost_ops.fuse(net, memory=3)  # type: ignore[arg-type]
    ghost_ops.fuze(net)  # type: ignore[attr-defined]
    ghost_ops.explain(net)  # type: ignore[call-arg]
    F.ghost_modul(x)  # type: ignore[attr-defined]
    F.ghost_module(x, x, None, x, None, activation="relu")  # type: ignore[call-arg]
