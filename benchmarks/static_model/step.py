"""All launches of a whole net's training step, or of a call of its frozen form, recorded without a device."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

import ghost_ops
from ghost_ops.ahead.dry_run import Launches, TensorArgument, dry_run
from tests.triton import aot

from . import build, model, work
from .launches import BATCH, Recorded

SIDE = 224
ARCHITECTURE = "sm_90"


def _recorded(found: Launches) -> list[Recorded]:
    def tensor(value: object) -> object:
        if not isinstance(value, TensorArgument):
            return value
        return torch.empty_strided(value.shape, value.strides, dtype=value.dtype, device="meta")

    return [
        Recorded(one.kernel, one.grid, {name: tensor(v) for name, v in one.arguments.items()}, one.warps, one.stages)
        for one in found.kernels
    ]


def training_step(net: torch.nn.Module, batch: int = BATCH, side: int = SIDE) -> list[Recorded]:
    """The launches of forward and backward of a net, under autocast in float16, in their order."""
    x = torch.empty((batch, 3, side, side), memory_format=torch.channels_last)
    with dry_run(ARCHITECTURE) as found:
        with torch.autocast("cpu", torch.float16):
            out = net(x)
        torch.autograd.grad(out, [*net.parameters()], torch.empty_like(out))
    return _recorded(found)


def frozen_call(net: torch.nn.Module, batch: int = BATCH, side: int = SIDE) -> list[Recorded]:
    """The launches of a call of a frozen net in float16, in their order."""
    x = torch.empty((batch, 3, side, side), dtype=torch.float16, memory_format=torch.channels_last)
    with dry_run(ARCHITECTURE) as found, torch.no_grad():
        net(x)
    return _recorded(found)


def ghostnet(what: str, batch: int = BATCH) -> list[Recorded]:
    """Launches of GhostNet-100: of a ``train`` step of the fused net (channels_last), or of a ``frozen`` net's call."""
    net = ghost_ops.models.ghostnet_100(dropout=0.0)
    if what == "train":
        return training_step(ghost_ops.fuse(net.train().to(memory_format=torch.channels_last)), batch)
    return frozen_call(ghost_ops.freeze(net.eval()).half(), batch)


SHAPE = ("C", "M", "CHANNELS", "ROWS", "H", "W", "D", "STRIDE", "groups")


def summary(found: list[Recorded], progress: Callable[[list], Iterable] = iter) -> dict:
    """The predicted time of launches together: ``us``, ``by_kernel``, and ``launches``, each that is different once.

    Every different kernel is compiled, which takes a second or two each.
    """
    alike: dict[tuple, list[Recorded]] = {}
    for one in found:
        spec = aot.launch_of(one.kernel, one.arguments, one.warps, one.stages)
        alike.setdefault((spec, one.grid, work.work_of(one.name, one.arguments)), []).append(one)
    rows = []
    for same in progress(list(alike.values())):
        seen = build.see(same[0])
        us, shape = model.predict(seen.facts).time, {k: same[0].arguments.get(k) for k in SHAPE}
        rows.append(
            {
                "kernel": same[0].name, "launches": len(same), "us": round(us, 2),
                "shape": {k: v for k, v in shape.items() if isinstance(v, int)}, "registers": seen.facts.registers,
                "resident_warps": seen.facts.resident() * seen.facts.warps, "spilled": seen.spilled,
                "per_result": round(seen.per_result, 2), "bytes": seen.facts.read + seen.facts.written,
            }
        )  # fmt: skip
    kernels: dict[str, dict] = {}
    for row in rows:
        of = kernels.setdefault(row["kernel"], {"launches": 0, "different": 0, "us": 0.0, "bytes": 0})
        of["launches"] += row["launches"]
        of["different"] += 1
        for key in ("us", "bytes"):
            of[key] = round(of[key] + row["launches"] * row[key], 2)
    return {
        "us": round(sum(of["us"] for of in kernels.values()), 1), "launches_of_ours": len(found),
        "kernels_compiled": len({spec for spec, *_ in alike}),
        "by_kernel": dict(sorted(kernels.items(), key=lambda item: -item[1]["us"])),
        "launches": sorted(rows, key=lambda row: -row["us"] * row["launches"]),
    }  # fmt: skip
