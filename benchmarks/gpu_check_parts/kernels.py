"""The Triton kernels that the other parts need, compiled in as many processes as there are processors."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace

import torch
import torch.nn.functional as F

import ghost_ops
from ghost_ops.ahead.dry_run import dry_run
from ghost_ops.ahead.kernels import Specialisation, architecture_of, compile_all, specialisations
from ghost_ops.bench.gpu import LAST, Device
from ghost_ops.ops.program_train import MEMORY

from . import gradients, host, launches
from .cases import net_case, train_case
from .gradients import full_float32
from .runner import Report, Skipped

IN_A_DRY_RUN = "sm_90"


def kernels(settings: dict, report: Report) -> dict:
    """Compiles what is not in Triton's cache; skipped where a cache was brought along."""
    if importlib.util.find_spec("triton") is None:
        raise Skipped("Triton is not installed")
    if settings.get("cache"):
        raise Skipped("a cache was given")
    device = Device(settings["dry"])
    found = needed(device, IN_A_DRY_RUN if device.dry else None)
    figures = {"kernels": len(found), "compiled": 0, "errors": {}}
    report(figures)
    if device.dry:
        return figures

    def done(kernel: Specialisation) -> None:
        figures["compiled"] += 1
        if figures["compiled"] % 20 == 0:
            report(figures)

    figures["errors"] = compile_all(found, architecture_of(0), len(os.sched_getaffinity(0)), done)
    return figures


def needed(device: Device, architecture: str | None) -> list[Specialisation]:
    """The kernels that the parts start, the nets' first.

    Args:
        architecture: as of ``dry_run``; None is that of the device.
    """
    found: dict[Specialisation, None] = {}
    for run in runs(device):
        with full_float32():
            with dry_run(architecture) as launched:
                run()
            found |= dict.fromkeys(specialisations(launched.kernels, architecture))
    return list(found)


def runs(device: Device) -> Iterator[Callable[[], object]]:
    """Calls of the parts, prepared, at the batch sizes of the parts: tiles depend on how much work there is."""
    for dtype in gradients.DTYPES[:1] if device.dry else gradients.DTYPES:
        for memory in MEMORY:
            for batch in (2,) if device.dry else (gradients.BATCH, launches.BATCH):
                if batch == gradients.BATCH or dtype == torch.float16 or device.dry:
                    yield _step(device, dtype, memory, batch)
    for batch in (1, 2) if device.dry else (1, launches.BATCH):
        case = net_case(device)
        net, x = case.build().to(device.name), case.input(batch).to(device.name).half()
        frozen = ghost_ops.freeze(net).half()
        fused = ghost_ops.fuse(net.half().to(memory_format=LAST))
        yield _without_gradients(frozen, x)
        yield _without_gradients(fused, x)
    yield from host.calls(device, torch.float16).values()
    yield from _operators(device)


def _step(device: Device, dtype: torch.dtype, memory: str, batch: int) -> Callable[[], object]:
    case = train_case(device)
    images, labels = (t.to(device.name) for t in case.batch(batch))
    net = ghost_ops.fuse(case.build().to(device.name).to(memory_format=LAST), memory=memory)

    def step() -> None:
        with nullcontext() if dtype == torch.float32 else torch.autocast(device.name, dtype):
            loss = F.cross_entropy(net(images), labels)
        loss.backward()

    return step


def _without_gradients(net: torch.nn.Module, x: torch.Tensor) -> Callable[[], object]:
    def call() -> torch.Tensor:
        with torch.no_grad():
            return net(x)

    return call


def _operators(device: Device) -> Iterator[Callable[[], object]]:
    from tests.gpu import test_operators as tests

    for seed in range(1 if device.dry else gradients.SEEDS):
        for kind in tests.KINDS:
            for dtype in gradients.DTYPES:
                case = tests.moved(tests.drawn(kind, seed), dtype, device.name)
                count = 2 if case.options.get("return_squeeze") else 1
                yield lambda kind=kind, case=case, count=count: tests.results(kind, case, False, count)


def compile_ahead(
    architecture: str, jobs: int, started: Callable[[int], None], done: Callable[[Specialisation], None]
) -> dict[str, str]:
    """For a device that is not there. Returns the error of each kernel that did not compile, by its name.

    Args:
        started: called with the number of kernels.
        done: called with each that is ready, or has failed.
    """
    not_there = SimpleNamespace(name="cpu", dry=False, synchronize=lambda: None)
    found = needed(not_there, architecture)
    started(len(found))
    return compile_all(found, architecture, jobs, done)
