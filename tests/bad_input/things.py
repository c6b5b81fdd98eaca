"""What the rows of bad input speak of: small tensors, modules and nets by name, and whether a call has changed them."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import ghost_ops
from ghost_ops import dispatch, functional, models
from ghost_ops.backends import environment
from ghost_ops.fused import FrozenProgram
from ghost_ops.fused import registry as fused_registry
from ghost_ops.nn import (
    GhostBottleneck,
    GhostBottleneckV3,
    GhostConv2d,
    GhostModule,
    GhostModuleV2,
    RepGhostModule,
    SELayer,
    SqueezeExcite,
    SyncBatchNorm,
)
from ghost_ops.program import Ghost, Load, Store, encode

from ..helpers import make_map, randomise


def small() -> nn.Module:
    layers = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), GhostModule(8, 16)
    return randomise(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))).eval()


def bottlenecks() -> nn.Module:
    return randomise(nn.Sequential(GhostBottleneck(8, 16, 8, se_ratio=0.25), GhostBottleneck(8, 16, 12, stride=2)))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return y if float(y.sum()) > 0 else 2 * y


MAKERS: dict[str, Callable[[], object]] = {
    "x": lambda: make_map((2, 6, 5, 7)),
    "image": lambda: make_map((2, 3, 33, 31)),
    "w1": lambda: torch.randn(4, 6, 1, 1),
    "w2": lambda: torch.randn(8, 1, 3, 3),
    "mean": lambda: torch.zeros(4),
    "means": lambda: torch.zeros(8),
    "rows": lambda: torch.ones(4, 1, 1, 5),
    "columns": lambda: torch.ones(4, 1, 5, 1),
    "net": small,
    "blocks": bottlenecks,
    "branching": lambda: Branching().eval(),
    "training": lambda: small().train(),
    "doubled": lambda: nn.Sequential(*[nn.Conv2d(4, 4, 3)] * 2),
    "fused": lambda: ghost_ops.fuse(small()),
    "fused_blocks": lambda: ghost_ops.fuse(bottlenecks()),
    "frozen": lambda: ghost_ops.freeze(small()),
    "module": lambda: GhostModule(6, 12).eval(),
    "state": lambda: models.ghostnet_050(num_classes=3).state_dict(),
}
MODULES = {
    "torch": torch, "nn": nn, "ghost_ops": ghost_ops, "F": functional, "models": models, "environment": environment,
    "registry": fused_registry, "GhostModule": GhostModule, "GhostModuleV2": GhostModuleV2, "GhostConv2d": GhostConv2d,
    "GhostBottleneck": GhostBottleneck, "GhostBottleneckV3": GhostBottleneckV3, "RepGhostModule": RepGhostModule,
    "SELayer": SELayer, "SqueezeExcite": SqueezeExcite, "SyncBatchNorm": SyncBatchNorm, "FrozenProgram": FrozenProgram,
    "Ghost": Ghost, "Load": Load, "Store": Store, "encode": encode, "inf": float("inf"), "nan": float("nan"),
}  # fmt: skip


def things_of(code: str) -> dict[str, object]:
    """The names that a piece of code reads, made anew."""
    names = set(compile(code, "a row", "exec").co_names)
    torch.manual_seed(0)
    return {name: make() for name, make in MAKERS.items() if name in names}


def fingerprint(thing: object) -> object:
    """What must be the same after a call that was refused: values, classes, modes, hooks, attributes."""
    if isinstance(thing, torch.Tensor):
        data = thing.detach().contiguous().cpu().view(-1)
        bits = hashlib.sha256(data.view(torch.uint8).numpy().tobytes()).hexdigest() if data.numel() else ""
        return str(thing.dtype), tuple(thing.shape), thing.stride(), thing.requires_grad, thing._version, bits
    if isinstance(thing, nn.Module):
        modules = [(name, type(m), m.training, len(m._forward_hooks), sorted(map(str, vars(m))))
                   for name, m in thing.named_modules()]  # fmt: skip
        tensors = [*thing.named_parameters(), *thing.named_buffers()]
        return modules, [(name, id(t), fingerprint(t), t.is_leaf) for name, t in tensors]
    if isinstance(thing, dict):
        return {key: fingerprint(value) for key, value in thing.items()}
    return pickle.dumps(thing)


def surroundings() -> object:
    """The process's own state, and the files of the current directory."""
    return (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        {name: value for name, value in os.environ.items() if name.startswith("GHOST_OPS_")},
        len(fused_registry.registered_blocks()),
        dispatch.forced(),
        {str(path): path.read_bytes() if path.is_file() else None for path in sorted(Path().rglob("*"))},
    )
