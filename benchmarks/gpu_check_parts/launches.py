"""Every launch of one training step and of one call of the frozen net, with its time."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

import ghost_ops
from ghost_ops.bench.gpu import LAST, Device, Training, training_baselines

from .cases import net_case, train_case
from .runner import Report

BATCH = 256
WARM_UPS = 5  # graphs are captured within them
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")  # categories of a trace


def launches(settings: dict, report: Report) -> dict:
    """Kernels by name, then every launch in its order: kernel, grid, block, microseconds, start in microseconds."""
    device, found = Device(settings["dry"]), {}
    dtype = torch.bfloat16 if device.dry else torch.float16
    contest = Training(device, train_case(device), 2 if device.dry else BATCH, dtype)
    ways = training_baselines(device, ())
    for name in ("ghost_ops.fuse", "ghost_ops.fuse, cuda_graph=True", "eager, channels_last"):
        _, step, _ = contest.step(ways[name])
        found[f"a training step, {name}"] = trace(device, step)
        report(found)
    del contest, step
    device.forget()
    case = net_case(device)
    net, x = case.build().to(device.name, dtype), case.input(2 if device.dry else BATCH).to(device.name, dtype)
    x, frozen = x.contiguous(memory_format=LAST), ghost_ops.freeze(net)
    with torch.no_grad():
        found["a call, ghost_ops.freeze"] = trace(device, lambda: frozen(x))
    return found


def trace(device: Device, call: Callable[[], object]) -> dict:
    """One call's launches after a few unwatched ones; in a dry run PyTorch's operators instead."""
    for _ in range(1 if device.dry else WARM_UPS):
        call()
    device.synchronize()
    activities = [ProfilerActivity.CPU] if device.dry else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities) as watched:
        call()
        device.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        watched.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return compact(events, ("cpu_op",) if device.dry else ON_DEVICE)


def compact(events: list[dict], kinds: tuple[str, ...]) -> dict:
    """What a trace's events of these kinds are, in the order of their start. Times are in microseconds."""
    rows = sorted((e for e in events if e.get("cat") in kinds), key=lambda e: e["ts"])
    names: dict[str, int] = {}
    launched = []
    for event in rows:
        more = event.get("args", {})
        kernel = names.setdefault(event["name"][:160], len(names))
        size = [more.get("grid", []), more.get("block", [])]
        launched.append([kernel, *size, round(event["dur"], 2), round(event["ts"] - rows[0]["ts"], 1)])
    return {"kernels_us": sum(row[3] for row in launched), "launches": launched, "names": list(names)}
