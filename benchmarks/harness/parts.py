"""Times a frozen net's parts: stem, every bottleneck and tail, each as a program on the map that reaches it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ghost_ops import surgery
from ghost_ops.backends import native
from ghost_ops.nn import GhostBottleneck
from ghost_ops.profiling.ready import Ready
from ghost_ops.surgery.freeze.compare import Arguments

from .cases import NetCase
from .results import MISSING, NET, OK, WRONG, PartResult
from .roofline import Limits
from .timing import in_turn, torch_threads

STEM, TAIL = "stem", "tail"


def plain_parts(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The parts of one of ``ghost_ops.models``, which one after the other compute what the net does."""
    yield STEM, nn.Sequential(net.conv_stem, net.bn1, net.act1)
    for path, block in net.named_modules():
        if isinstance(block, GhostBottleneck):
            yield path, block
    pooled = nn.AdaptiveAvgPool2d(1), net.conv_head, net.act2, nn.Flatten(), net.classifier
    yield TAIL, nn.Sequential(net.blocks[-1], *pooled)


def frozen_part(name: str, part: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The part as a program of its own."""
    return surgery.freeze(part.eval(), dtype)


def run_parts(
    case: NetCase,
    batch: int,
    threads: int,
    dtype: str,
    limits: Limits,
    *,
    rounds: int,
    min_seconds: float = 0.02,
) -> list[PartResult]:
    """Every part of the net and the whole of it, each compared with float64 on its input, before and after timing."""
    kind = getattr(torch, dtype)
    net, x = case.build(), case.input(batch)
    rows, running = [], {}
    with torch_threads(threads), torch.inference_mode():
        for name, part in [*plain_parts(net), (NET, net)]:
            row = PartResult(case.name, batch, threads, dtype, name)
            rows.append(row)
            if not native.available():
                row.status, row.reason = MISSING, f"no program runs here: {native.reason()}"
                continue
            entry = case.input(batch) if name == NET else x
            with FlopCounterMode(display=False) as counter:
                x = part(entry)
            ready = Ready.of(frozen_part(name, part, kind), part, Arguments((entry,), {}), kind)
            row.flops = counter.get_total_flops()
            if _is_right(ready, row):
                row.bytes = ready.bytes
                row.roof = limits.roof(row.flops, row.bytes, dtype)
                running[name] = row, ready
        timings = in_turn(
            {name: ready.call for name, (_, ready) in running.items()},
            rounds=rounds, threads=threads, min_seconds=10 * min_seconds,
        )  # fmt: skip
        for name, (row, ready) in running.items():
            ready.compare()
            if _is_right(ready, row):
                row.take(timings[name])
                row.peak_share = row.flops / row.seconds / limits.peak(dtype)
    return rows


def _is_right(ready: Ready, row: PartResult) -> bool:
    row.error = ready.error
    if ready.call is None:
        row.status, row.reason = WRONG, ready.why
    return row.status == OK
