"""Host time of fused training on a CUDA device, measured without one.

The operators of Triton's kernels run on CPU tensors, over a driver that starts nothing (tests/triton/stub_driver). What
remains is Python, PyTorch's allocations and dispatch, and Triton's launcher or that in C++: what keeps a device waiting
where kernels are short. A real driver adds a few microseconds a launch. Times are thread CPU time a call: the median of
rounds in which the columns take turns.

    python benchmarks/host_time.py
    python benchmarks/host_time.py --json host.json
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for tests.triton

import ghost_ops  # noqa: E402
from ghost_ops import dispatch, functional  # noqa: E402
from ghost_ops.backends import native, triton  # noqa: E402
from ghost_ops.backends.registry import SCHEMAS  # noqa: E402
from ghost_ops.ops import _library  # noqa: E402

COLUMNS = ("python", "c++")  # what replays the launches
LAST = torch.channels_last
Lines = dict[str, Callable[[], object]]


@contextmanager
def triton_on_the_cpu() -> Iterator[object]:
    """Within the block Triton's kernels take CPU tensors, and start on a driver that notes nothing.

    The operators stay registered afterwards, so this is for processes that end.
    """
    from ghost_ops.backends.triton import launch_cache
    from tests.triton import stub_driver

    driver = stub_driver.load()
    driver.open()
    for name in filter(triton.has, SCHEMAS):
        _library._library.impl(name, _library._by_decision(name), "CPU", allow_override=True)
    dispatch.BACKENDS["native"] = replace(native.BACKEND, is_candidate=lambda device, forced: False)
    dispatch.BACKENDS["triton"] = replace(
        triton.BACKEND, is_candidate=lambda device, forced: True, refuse_device=lambda device: None
    )
    dispatch._select.cache_clear()
    with stub_driver.under_triton(driver), mock.patch.object(launch_cache, "on_device", lambda t: True):
        yield driver


@contextmanager
def replayed_by(column: str) -> Iterator[None]:
    """Within the block launches are replayed in Python or in C++, from recordings that are made anew."""
    from ghost_ops.backends.triton import launch_cache, launch_native

    why = {"python": "the benchmark asks for it", "c++": None}[column]
    launches, state = {}, mock.patch.object(launch_native, "_state", lambda: why)
    with mock.patch.multiple(launch_cache, _launches=launches, _kinds={}), state:
        yield
    assert all(isinstance(found, launch_native.Native) == (why is None) for found in launches.values() if found)


def of_module() -> Lines:
    """A Ghost module with 16 input and 48 output channels, in training."""
    from ghost_ops.backends.triton import launch_key
    from ghost_ops.backends.triton.ghost_module_train import ghost_module_train

    module = ghost_ops.FusedGhostModule(16, 48).train()
    x, grad = map_of(16), map_of(48)
    needs_grad = x.clone().requires_grad_()
    parameters = [*module.parameters()]
    detached = [p.detach() for p in parameters]
    of_layers = lambda p: (p[0], None, p[1], p[2], p[3], None, p[4], p[5])
    args = (x, *of_layers(detached), None, None, 48, 1, 1, 0.01, 0.01, 1e-5, 1e-5, False)
    operator = torch.ops.ghost_ops.ghost_module_train.default

    def without_gradients():
        with torch.no_grad():
            return functional.ghost_module_train(x, *of_layers(detached))

    return {
        "module: key": lambda: launch_key.kind_of(ghost_module_train, args, []),
        "module: replay": lambda: ghost_module_train(*args),
        "module: operator": lambda: operator(*args),
        "module: function, no gradients": without_gradients,
        "module: function": lambda: functional.ghost_module_train(needs_grad, *of_layers(parameters)),
        "module: forward": lambda: module(needs_grad),
        "module: forward and backward": forward_and_backward(module, needs_grad, grad),
    }


def of_bottleneck(name: str, *arguments: int, side: int = 8) -> Lines:
    net = ghost_ops.fuse(ghost_ops.GhostBottleneck(*arguments)).train()
    x = map_of(arguments[0], side).requires_grad_()
    out = net(x)
    return {
        f"{name}: forward": lambda: net(x),
        f"{name}: forward and backward": forward_and_backward(net, x, torch.ones_like(out)),
    }


def of_one_recording(channels: int = 24, expanded: int = 72, unused: int = 60) -> Lines:
    """The two Ghost modules of a bottleneck in training as one recorded function, with ``unused`` more tensors, as many
    as a block's gradients, statistics and shortcut have."""
    from ghost_ops.backends.triton.ghost_module_train import ghost_module_train
    from ghost_ops.backends.triton.launch_cache import cached_launches

    @cached_launches
    def block(x, first, second, more, numbers):
        out, *statistics, _ = ghost_module_train(x, *first, *numbers[0])
        return *ghost_module_train(out, *second, *numbers[1])[:5], out, *statistics

    def tensors(c: int, m: int) -> list[torch.Tensor | None]:
        vectors = [torch.ones(m) for _ in range(4)]
        shapes = (m, c, 1, 1), (m, 1, 3, 3)
        first, cheap = (torch.ones(shape) for shape in shapes)
        return [first, None, *vectors[:2], cheap, None, *vectors[2:], None, None]

    x, more = map_of(channels), [torch.ones(4) for _ in range(unused)]
    first, second = tensors(channels, expanded // 2), tensors(expanded, channels // 2)
    numbers = tuple((kept, act, act, 0.01, 0.01, 1e-5, 1e-5, False) for kept, act in ((expanded, 1), (channels, 0)))
    return {"two modules in one recording, 73 tensors": lambda: block(x, first, second, more, numbers)}


def for_scale() -> Lines:
    norm, x = nn.BatchNorm2d(24).train(), map_of(24)
    return {
        "PyTorch: BatchNorm2d forward": lambda: norm(x),
        "PyTorch: x + x": lambda: x + x,
        "PyTorch: torch.empty": lambda: torch.empty((2, 24, 8, 8)),
    }


def map_of(channels: int, side: int = 8) -> torch.Tensor:
    return torch.randn(2, channels, side, side).contiguous(memory_format=LAST)


def forward_and_backward(net: nn.Module, x: torch.Tensor, grad: torch.Tensor) -> Callable[[], None]:
    parameters = [x, *net.parameters()]

    def step() -> None:
        net(x).backward(grad)
        for p in parameters:
            p.grad = None

    return step


def microseconds(call: Callable[[], object], calls: int) -> float:
    """Thread CPU time of a call."""
    start = time.thread_time()
    for _ in range(calls):
        call()
    return (time.thread_time() - start) / calls * 1e6


def measure(driver: object, lines: Lines, calls: int, rounds: int) -> dict[str, dict[str, float]]:
    """Microseconds of every line by column, and ``launches``, those of one call."""
    found = {}
    for name, call in lines.items():
        times: dict[str, list[float]] = {column: [] for column in COLUMNS}
        for _ in range(rounds):
            for column in COLUMNS:
                with replayed_by(column):
                    for _ in range(5):
                        call()
                    driver.library.stub_reset()
                    call()
                    started = len(driver.launches())
                    driver.library.stub_notes(0)
                    times[column].append(microseconds(call, calls))
        found[name] = {"launches": started, **{c: round(statistics.median(t), 1) for c, t in times.items()}}
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--calls", type=click.IntRange(1), default=200, show_default=True, help="Calls of a round.")
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True)
@click.option("--json", "to", type=click.Path(path_type=Path), help="Writes the figures there.")
def main(calls: int, rounds: int, to: Path | None) -> None:
    """Host time of training's parts, its launches replayed in Python and in C++."""
    torch.set_num_threads(1)
    torch.autograd.set_multithreading_enabled(False)  # so that the backward counts as this thread's time
    with triton_on_the_cpu() as driver:
        lines = of_module()
        lines |= of_bottleneck("bottleneck 24-72-24", 24, 72, 24)
        lines |= of_bottleneck("bottleneck 16-48-24, stride 2", 16, 48, 24, 3, 2)
        lines |= of_bottleneck("bottleneck 40-120-40, excitation", 40, 120, 40, 5, 1, 0.25)
        found = measure(driver, lines | of_one_recording() | for_scale(), calls, rounds)
    table = Table("thread CPU time, us a call", "launches", *COLUMNS)
    for name, row in found.items():
        table.add_row(name, str(row["launches"]), *(f"{row[column]:.1f}" for column in COLUMNS))
    Console().print(table)
    if to is not None:
        versions = {"torch": torch.__version__, "python": sys.version.split()[0], "cpus": os.cpu_count()}
        to.write_text(json.dumps({"versions": versions, "microseconds": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
