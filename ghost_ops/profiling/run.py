"""``profile``: a net plain, fused and frozen, module by module, in turns in one process."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import nn

from .. import surgery
from ..bench import machine, roofline
from ..bench.results import TOLERANCES
from ..bench.timing import Timing, torch_threads
from ..dispatch import PLAIN_PYTORCH
from ..fused.frozen_net import Frozen
from ..surgery.freeze.compare import Arguments, drawn
from .parts import Part
from .ready import Ready
from .report import Left, ModuleProfile, Profile, Way
from .session import FROZEN, FUSED, PLAIN, WATCHED, Session
from .session import STEPS as SESSION_STEPS

STEPS = ("limits of this machine", *SESSION_STEPS)
LIMIT_SECONDS = 0.1  # for each limit of the machine
SIDE = 224  # pixels of an image that is drawn
PROGRAMS = "a program of its own"


def profile(
    net: nn.Module,
    x: object = None,
    *,
    dtype: torch.dtype | None = None,
    threads: int | None = None,
    rounds: int = 7,
    on_step: Callable[[str], None] = lambda what: None,
) -> Profile:
    """Time a net in inference plain, fused and frozen, module by module, beside what this machine could do.

    The three run in turns, one after another, so that a disturbance of the machine affects all alike; times are
    medians. What is timed is compared with float64 before: what is wrong has no time. ``net`` itself is not changed:
    copies of it run, in eval mode.

    In a plain and in a fused net a module's time is taken by hooks. A frozen net is one program, whose steps cannot be
    told apart: beside its whole time, each module is frozen on its own and runs on the input that it gets in the net.

    Args:
        net: any module on the CPU; of one that is fused or frozen the plain net is taken.
        x: its input: a tensor, a tuple or list of arguments, or a mapping of keyword arguments; None draws an image of
            224 x 224.
        dtype: torch.float32 or torch.bfloat16, in which all three run; None keeps that of the parameters.
        threads: PyTorch's threads; None keeps their number.
        rounds: samples that a median is of.
        on_step: called with what begins, each of ``STEPS`` once.

    Raises:
        TypeError: net is not a ``torch.nn.Module``.
        ValueError: net is on another device; threads or rounds below 1; another dtype; no input can be drawn.
        whatever ``net`` raises on this input.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"profile: net: expected a torch.nn.Module, got {type(net).__name__}")
    for name, value in (("threads", threads), ("rounds", rounds)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"profile: {name}: expected at least 1, got {value!r}")
    tensors = (*net.parameters(), *net.buffers())
    elsewhere = sorted({str(t.device) for t in tensors if not t.is_cpu})
    if elsewhere:
        raise ValueError(f"profile: net: expected a net on the CPU, got one on {', '.join(elsewhere)}")
    dtype = dtype or next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
    if _name(dtype) not in TOLERANCES:
        raise ValueError(f"profile: dtype: expected torch.float32 or torch.bfloat16, got {dtype}")
    threads = torch.get_num_threads() if threads is None else threads
    call = drawn(net, 1, (SIDE, SIDE)) if x is None else Arguments.of(x)
    if call is None:
        raise ValueError("profile: x: expected an input, since the net does not say how many channels an image has")
    with torch_threads(threads), torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.no_grad():
        on_step(STEPS[0])
        limits = roofline.measure(threads, LIMIT_SECONDS, bfloat16=dtype is torch.bfloat16)
        session = Session(_plain(net), call, dtype, on_step)
        on_step(STEPS[-1])
        session.measure(threads, rounds)
        return _Assembly(session, limits, _name(dtype)).profile(rounds)


def _plain(net: nn.Module) -> nn.Module:
    """A plain copy in eval mode."""
    is_frozen = any(isinstance(module, Frozen) for module in net.modules())
    return surgery.revert(surgery.thaw(net) if is_frozen else copy.deepcopy(net)).eval()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class _Assembly:
    """Makes the report of what a session has found."""

    def __init__(self, session: Session, limits: roofline.Limits, dtype: str) -> None:
        self._session, self._limits, self._dtype = session, limits, dtype
        self._runs = {row.name: row for row in session.explained[FUSED].rows}

    def profile(self, rounds: int) -> Profile:
        session = self._session
        net, tally = self._net(), session.explained[FUSED].tally
        return Profile(
            model=net.kind,
            input=net.input,
            dtype=self._dtype,
            threads=self._limits.threads,
            rounds=rounds,
            modules=tuple(self._module(*found) for found in zip(session.parts, session.alone, session.alone_timings)),
            between=self._between(),
            net=net,
            left=tuple(self._left()),
            tally="" if tally is None else str(tally),
            machine=machine.describe(),
            limits=self._limits.as_dict(),
        )

    def _module(self, part: Part, alone: Ready, timing: Timing | None) -> ModuleProfile:
        session, found = self._session, self._runs.get(part.paths[0])
        work = sum(session.flops[path] for path in part.paths)
        roof = self._limits.roof(work, part.moved + part.parameters, self._dtype)
        runs = {PLAIN: (PLAIN_PYTORCH, ""), FUSED: (PLAIN_PYTORCH, "") if found is None else (found.runs, found.why)}
        ways = {
            way: _way(*runs[way], session.timing(way, part.paths), self._bytes(way, part.paths), roof)
            for way in WATCHED
        }
        ways[FROZEN] = _way(PROGRAMS if alone.call else "", alone.why, timing, alone.bytes, roof, alone.error)
        given = "" if part.arguments is None else str(part.arguments)[1:-1]
        least = part.moved + part.parameters
        return ModuleProfile(part.name, part.kind, part.calls, given, work // 2, least, roof, **ways)

    def _net(self) -> ModuleProfile:
        session = self._session
        work, least = session.flops[""], session.least_bytes
        roof = self._limits.roof(work, least, self._dtype)
        ways = {
            way: _way("", ready.why, session.timings.get(way), ready.bytes, roof, ready.error)
            for way, ready in session.nets.items()
        }
        kind = type(session.nets[PLAIN].module).__name__
        return ModuleProfile("", kind, 1, str(session.given)[1:-1], work // 2, least, roof, **ways)

    def _between(self) -> ModuleProfile:
        session = self._session
        inside = {path for part in session.parts for path in part.paths}
        outside = lambda spent: spent[""] - sum(spent[path] for path in inside)
        ways = {way: _way("", "", session.timing_between(way), outside(session.bytes[way]), None) for way in WATCHED}
        ways[FROZEN] = Way("", "a program has nothing between its modules")
        work = outside(session.flops)
        return ModuleProfile("", "", 1, "", work // 2, 0, self._limits.roof(work, 0, self._dtype), **ways)

    def _bytes(self, way: str, paths: list[str]) -> int:
        return sum(self._session.bytes[way][path] for path in paths)

    def _left(self) -> Iterator[Left]:
        """What runs as plain PyTorch though it looks like a block, fused, and what of a frozen net does."""
        for by, way in (("fuse", FUSED), ("freeze", FROZEN)):
            explained = self._session.explained.get(way)
            for row in () if explained is None else explained.rows:
                if row.runs == PLAIN_PYTORCH and row.why:  # a BatchNorm goes with its convolution
                    yield Left(by, row.name, row.module, row.why)


def _way(
    runs: str, why: str, timing: Timing | None, size: int | None, roof: float | None, error: float | None = None
) -> Way:
    if timing is None:
        return Way(runs, why, bytes=size, error=error)
    share = None if roof is None else roof / timing.median
    return Way(runs, why, timing.median, timing.spread, size, share, error)
