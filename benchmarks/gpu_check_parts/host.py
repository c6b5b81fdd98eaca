"""What a launch, an allocation, an operator and a bottleneck cost the host. Nothing waits for the device meanwhile."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import torch

import ghost_ops
from ghost_ops.bench.gpu import LAST, Device
from ghost_ops.nn import GhostBottleneck

from .runner import Report

CALLS, ROUNDS = 100, 7
ARGUMENTS = 60  # as many as our kernels have, those that are constants counted


def host(settings: dict, report: Report) -> dict:
    """Microseconds of the host, medians."""
    device, found = Device(settings["dry"]), {}
    for name, call in calls(device, torch.bfloat16 if device.dry else torch.float16).items():
        found[name] = cost(device, call)
    report(found)
    return found if device.dry else found | bare_launches(device)


def calls(device: Device, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """What is timed: maps so small that the device is never what is waited for."""
    x = torch.randn(1, 16, 8, 8, device=device.name, dtype=dtype).to(memory_format=LAST)
    weight = torch.randn(16, 1, 3, 3, device=device.name, dtype=dtype)

    def depthwise() -> torch.Tensor:
        with torch.no_grad():
            return ghost_ops.functional.depthwise(x, weight, None)

    found = {
        "torch.empty": lambda: torch.empty_like(x),
        "an elementwise operator of PyTorch": lambda: x + x,
        "ghost_ops.functional.depthwise": depthwise,
    }
    plain = GhostBottleneck(16, 48, 16).to(device.name).to(memory_format=LAST).train()
    blocks = {
        "fused": ghost_ops.fuse(copy.deepcopy(plain)),
        "fused, cuda_graph=True": ghost_ops.fuse(copy.deepcopy(plain), cuda_graph=True),
        "eager": plain,
    }
    for name, block in blocks.items():

        def forward(block=block):
            with torch.autocast(device.name, dtype):
                return block(x)

        found[f"a bottleneck, {name}, forward"] = forward
        found[f"a bottleneck, {name}, forward and backward"] = lambda forward=forward: forward().sum().backward()
    return found


def cost(device: Device, call: Callable[[], object]) -> float:
    """Microseconds of the host for a call, the device's queue empty before each round."""
    times, rounds = (1, 1) if device.dry else (CALLS, ROUNDS)
    for _ in range(1 if device.dry else 5):  # graphs are captured within them
        call()
    samples = []
    for _ in range(rounds):
        device.synchronize()
        start = time.perf_counter()
        for _ in range(times):
            call()
        samples.append((time.perf_counter() - start) / times)
    device.synchronize()
    return 1e6 * statistics.median(samples)


def bare_launches(device: Device) -> dict[str, float]:
    """A kernel that does nothing: through Triton as users start kernels, through its launcher, and through ours."""
    from ghost_ops.backends.triton import launch
    from ghost_ops.backends.triton.launch_cache import cached_launches

    from .empty_kernel import empty_kernel

    x = torch.empty(1024, device=device.name)
    sizes = {f"size_{i}": 1000 + i for i in range(ARGUMENTS - 1)}

    def replayed(times: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def launches(x: torch.Tensor) -> torch.Tensor:
            out = launch.empty((1024,), x.dtype, x.device)
            for _ in range(times):
                launch.start_kernel(empty_kernel, (1,), {"x": out, **sizes}, 4, 1)
            return out

        return cached_launches(launches)

    compiled = empty_kernel[(1,)](x, **sizes)
    one, eleven = replayed(1), replayed(11)
    found = {
        f"Triton, kernel[grid], {ARGUMENTS} arguments": cost(device, lambda: empty_kernel[(1,)](x, **sizes)),
        f"Triton, compiled[grid], {ARGUMENTS} arguments": cost(device, lambda: compiled[(1, 1, 1)](x, *sizes.values())),
        "a replay of 1 launch and its output": cost(device, lambda: one(x)),
        "a replay of 11 launches and their output": cost(device, lambda: eleven(x)),
    }
    *_, short, long = found.values()
    return found | {"a launch within a replay": (long - short) / 10}
