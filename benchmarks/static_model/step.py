"""All launches of a whole net's training step, or of a call of its frozen form, recorded without a device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import ghost_ops
from ghost_ops import dispatch
from ghost_ops.backends import triton
from ghost_ops.fused import frozen_net, parameters
from tests.triton import aot

from . import build, model, work
from .launches import BATCH, Recorded, recording

SIDE = 224


class _TritonOperators(TorchDispatchMode):
    """Runs the launching code of Triton's operators in the place of the operators of the tensors' device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        space, _, name = func._schema.name.partition("::")
        implementation = triton.load(name) if space == "ghost_ops" else None
        return (implementation or func)(*args, **(kwargs or {}))


@contextmanager
def on_triton(found: list[Recorded], architecture: str = "sm_90") -> Iterator[None]:
    """Within the block operators on fake tensors of the CPU run as Triton's, whose launches are added to ``found``."""
    backend = replace(triton.BACKEND, is_candidate=lambda device, forced: True, refuse_device=lambda device: None)
    backends = {"triton": backend, "reference": dispatch.BACKENDS["reference"]}
    plain = dispatch.PLAIN_TENSORS | {FakeTensor}
    dispatch._select.cache_clear()
    try:
        with (
            mock.patch.dict(dispatch.BACKENDS, backends, clear=True),
            mock.patch.object(dispatch, "PLAIN_TENSORS", plain),
            mock.patch.object(parameters, "PLAIN_TENSORS", plain),
            mock.patch.object(frozen_net, "PLAIN_TENSORS", plain),
            recording(found, architecture),
            _TritonOperators(),
        ):
            yield
    finally:
        dispatch._select.cache_clear()


def _fake(net: torch.nn.Module, mode: FakeTensorMode) -> None:
    """Replaces the tensors of a net by fake ones."""
    for module in net.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: None if t is None else mode.from_tensor(t) for name, t in tensors.items()})


def training_step(net: torch.nn.Module, batch: int = BATCH, side: int = SIDE) -> list[Recorded]:
    """The launches of forward and backward of a net, under autocast in float16, in their order. Its tensors go."""
    found: list[Recorded] = []
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        _fake(net, mode)
        x = torch.empty((batch, 3, side, side), memory_format=torch.channels_last)
        with on_triton(found):
            with torch.autocast("cpu", torch.float16):
                out = net(x)
            out.sum().backward()
    return found


def frozen_call(net: torch.nn.Module, batch: int = BATCH, side: int = SIDE) -> list[Recorded]:
    """The launches of a call of a frozen net in float16, in their order. Its tensors go."""
    found: list[Recorded] = []
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        _fake(net, mode)
        x = torch.empty((batch, 3, side, side), dtype=torch.float16, memory_format=torch.channels_last)
        with on_triton(found), torch.no_grad():
            net(x)
    return found


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
