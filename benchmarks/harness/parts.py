"""Times a frozen net's parts: stem, every bottleneck and tail, each as a program on the map that reaches it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ghost_ops import surgery
from ghost_ops.backends import native
from ghost_ops.fused import FrozenProgram
from ghost_ops.fused.builder import Builder
from ghost_ops.fused.layers import LinearAct, activation_code, conv_bn_act
from ghost_ops.nn import GhostBottleneck

from .cases import NetCase
from .results import MISSING, NET, OK, TOLERANCES, WRONG, PartResult, error_of
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


def _stem(stem: nn.Sequential, dtype: torch.dtype) -> FrozenProgram:
    builder = Builder()
    builder.store(builder.dense_conv(conv_bn_act(*stem)))
    return FrozenProgram.of(builder.finish(), (STEM,), dtype)


def _tail(tail: nn.Sequential, dtype: torch.dtype) -> FrozenProgram:
    """As ``freeze`` builds it; on its own ``freeze`` makes no program of a run without a Ghost module."""
    stage, _, head, act, _, classifier = tail
    builder, last = Builder(), stage[0]
    half = conv_bn_act(last.conv, last.bn1, last.act1)
    builder.chain([half], builder.load(last.conv.in_channels), squeeze=True)
    builder.pool(last.conv.out_channels)
    builder.linear(LinearAct(head, None, act, activation_code(act)))
    builder.linear(LinearAct(classifier, None, None, activation_code(None)))
    return FrozenProgram.of(builder.finish(), (TAIL,), dtype)


def frozen_part(name: str, part: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The part as a program of its own."""
    make = {STEM: _stem, TAIL: _tail}.get(name, surgery.freeze)
    return make(copy.deepcopy(part), dtype)


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
            row.flops = counter.get_total_flops()
            reference = copy.deepcopy(part).double()(entry.double())
            program, entry = frozen_part(name, part, kind), entry.to(kind)
            call: Callable[[], torch.Tensor] = lambda program=program, entry=entry: program(entry)
            programs = (m for m in program.modules() if isinstance(m, FrozenProgram))
            packed = sum(p.packed.numel() * p.packed.element_size() for p in programs)
            row.bytes = (entry.numel() + reference.numel()) * entry.element_size() + packed
            row.roof = limits.roof(row.flops, row.bytes, dtype)
            if _compare(call, reference, row):
                running[name] = row, call, reference
        timings = in_turn(
            {name: call for name, (_, call, _) in running.items()},
            rounds=rounds, threads=threads, min_seconds=10 * min_seconds,
        )  # fmt: skip
        for name, (row, call, reference) in running.items():
            if _compare(call, reference, row):
                row.take(timings[name])
                row.peak_share = row.flops / row.seconds / limits.peak(dtype)
    return rows


def _compare(call: Callable[[], torch.Tensor], reference: torch.Tensor, row: PartResult) -> bool:
    row.error = max(row.error or 0.0, error_of(call().float(), reference))
    if row.error > TOLERANCES[row.dtype]:
        row.status = WRONG
        row.reason = f"its result differs from float64 by {row.error:.1e} of the largest element"
    return row.status == OK
