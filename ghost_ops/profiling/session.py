"""A net in the three ways, its parts, and what is counted and timed of them."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .. import surgery
from ..bench.timing import Timing, in_turn
from ..fused.frozen_net import Frozen
from ..surgery.freeze.compare import Arguments
from .count import Traffic, Watch
from .parts import Part, is_block, parts_of, size_of
from .ready import Ready, frozen, frozen_block
from .report import WAYS

STEPS = ("fusing", "freezing", "freezing its modules", "counting", "timing")
ROUND_SECONDS = 0.2  # about the least that a round takes
PLAIN, FUSED, FROZEN = WAYS
WATCHED = (PLAIN, FUSED)  # what hooks see the modules of


class Session:
    """Makes the three nets and counts what they do; ``measure`` times them.

    Args:
        source: a plain net in eval mode; it is not changed.
        call: its arguments.
        dtype: in which the three run.
        on_step: called with what begins, all of ``STEPS`` but the last.

    Attributes:
        given: the arguments in ``dtype``.
        nets: the three, by way.
        parts: of the plain net.
        alone: each of these, frozen on its own.
        explained: what ``explain`` says of the fused and of the frozen net, by way; none of a net that was not frozen.
        flops: of the plain net's modules, by path, "" for the net.
        bytes: what operators read and write, by way and path.
        timings: by way; those of a part that is frozen on its own are ``alone_timings``.
        samples: of a plain and a fused net the seconds of the modules, by path, one mapping a pass.
    """

    def __init__(self, source: nn.Module, call: Arguments, dtype: torch.dtype, on_step: Callable[[str], None]) -> None:
        self.given = call.copied(dtype)
        plain = copy.deepcopy(source).to(dtype)
        self._call(plain)  # raises what the net raises
        on_step(STEPS[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # explain says it, module by module
            made = surgery.fuse(copy.deepcopy(source))
        fused = copy.deepcopy(made).to(dtype)
        on_step(STEPS[1])
        eager = Ready.of(plain, source, call, dtype, float("inf"))
        self.nets = {
            PLAIN: eager,
            FUSED: Ready.of(fused, source, call, dtype, eager.error),
            FROZEN: frozen(made, source, call, dtype, eager.error),
        }
        on_step(STEPS[2])
        self.parts = parts_of(plain, fused, self.given)
        self.alone = [self._alone(part, source, dtype) for part in self.parts]
        on_step(STEPS[3])
        self.least_bytes = size_of((*self.given, self._call(plain), list(plain.parameters())))
        self._count()
        example = self.given.kwargs or self.given.args
        self.explained = {FUSED: surgery.explain(fused, example)}
        if isinstance(self.nets[FROZEN].module, Frozen):
            self.explained[FROZEN] = surgery.explain(self.nets[FROZEN].module, example)
        self.timings: dict[str, Timing] = {}
        self.alone_timings: list[Timing | None] = [None] * len(self.parts)
        self.samples: dict[str, list[dict[str, float]]] = {}

    def _alone(self, part: Part, source: nn.Module, dtype: torch.dtype) -> Ready:
        """A part of the net frozen on its own."""
        if part.arguments is None:
            return Ready(why=f"it is called {part.calls} times")
        own = next((t.dtype for t in source.parameters() if t.is_floating_point()), dtype)
        module, fused = part.copied(source), self.nets[FUSED].module.get_submodule(part.paths[0])
        call = part.arguments.copied(own)
        return frozen_block(fused, module, call, dtype) if is_block(fused) else frozen(module, module, call, dtype)

    def _call(self, net: nn.Module) -> object:
        return net(*self.given.args, **self.given.kwargs)

    @property
    def paths(self) -> list[str]:
        """Those of the modules that are in parts, and "" for the net."""
        return list(dict.fromkeys(["", *(path for part in self.parts for path in part.paths)]))

    def _count(self) -> None:
        plain = self.nets[PLAIN].module
        with FlopCounterMode(display=False) as counter, Watch(plain, self.paths, counter.get_total_flops) as watch:
            self._call(plain)
        self.flops, self.bytes = watch.spent, {}
        for way in WATCHED:
            net = self.nets[way].module
            with Traffic() as traffic, Watch(net, self.paths, lambda traffic=traffic: traffic.total) as watch:
                self._call(net)
            self.bytes[way] = watch.spent

    def measure(self, threads: int, rounds: int) -> None:
        """Time everything in turns: the nets, those that hooks watch once more without hooks, and the frozen parts."""
        calls = {}
        for way, ready in self.nets.items():
            if ready.call is not None:
                calls[way] = ready.call
                if way in WATCHED:
                    calls[f"{way}, watched"] = self._watched(way)
        calls.update({str(index): ready.call for index, ready in enumerate(self.alone) if ready.call is not None})
        with torch.inference_mode():
            timings = in_turn(calls, rounds=rounds, threads=threads, min_seconds=ROUND_SECONDS)
        self.timings = {way: timings[way] for way in WAYS if way in timings}
        self.alone_timings = [timings.get(str(index)) for index in range(len(self.parts))]

    def _watched(self, way: str) -> Callable[[], None]:
        net, paths = self.nets[way].module, self.paths
        samples = self.samples[way] = []

        def call() -> None:
            with Watch(net, paths, time.perf_counter) as watch:
                self._call(net)
            samples.append(watch.spent)

        return call

    def timing(self, way: str, paths: Iterable[str]) -> Timing | None:
        """How long the modules at these paths take together."""
        paths = list(paths)
        samples = self.samples.get(way)
        return Timing(tuple(sum(one[path] for path in paths) for one in samples), 1) if samples else None

    def timing_between(self, way: str) -> Timing | None:
        """How long the net takes outside of its parts."""
        samples, inside = self.samples.get(way), {path for part in self.parts for path in part.paths}
        if not samples:
            return None
        return Timing(tuple(one[""] - sum(one[path] for path in inside) for one in samples), 1)
