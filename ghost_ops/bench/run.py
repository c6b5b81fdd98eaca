"""A benchmark run: every case with every baseline, compared with float64, then timed side by side."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from . import machine
from .baselines import Baseline, Built
from .cases import ModuleCase, NetCase, draw_images
from .machine import Unavailable
from .outputs import as_one
from .results import FAILED, MISSING, TOLERANCES, WRONG, PartResult, Result, error_of, relate
from .roofline import Limits
from .summary import Summary, summarise
from .timing import interleave, torch_threads

AGREED = 256  # images over which the first choice of a bfloat16 net is compared with that of float32
SCHEMA = 2


@dataclass
class Report:
    """The results of a run, the parts of its frozen nets, and what they were measured on."""

    machine: dict[str, object]
    settings: dict[str, object]
    limits: list[dict[str, object]]
    results: list[Result]
    parts: list[PartResult] = field(default_factory=list)

    def summary(self) -> list[Summary]:
        return summarise(self.results)

    def as_dict(self) -> dict[str, object]:
        """Everything as dictionaries and lists, ready for JSON."""
        return {
            "schema": SCHEMA,
            "machine": self.machine,
            "settings": self.settings,
            "limits": self.limits,
            "results": [asdict(result) for result in self.results],
            "parts": [asdict(part) for part in self.parts],
            "summary": [asdict(line) for line in self.summary()],
        }


def run_case(
    case: ModuleCase | NetCase, batch: int, threads: int, baselines: Sequence[Baseline], **options: object
) -> list[Result]:
    """Runs one case: see ``run_together``."""
    return run_together([(case, baselines)], batch, threads, **options)


def run_together(
    work: Sequence[tuple[ModuleCase | NetCase, Sequence[Baseline]]],
    batch: int,
    threads: int,
    *,
    rounds: int,
    limits: Limits | None = None,
    min_seconds: float = 0.02,
    on_step: Callable[[str], None] = lambda what: None,
) -> list[Result]:
    """Build every baseline of every case, compare its result with float64, time those that agree, and compare again.

    Args:
        work: cases, each with its baselines, all timed in turn; at most one case has targets, and the results of all
            cases are compared with these.
        limits: those of the machine, for the roofline; None leaves the roofline out.
        on_step: called with what is being done.
    """
    rows: list[Result] = []
    running: list[_Running] = []
    with torch_threads(threads):
        for case, baselines in work:
            new = [
                Result(case.kind, case.name, batch, threads, case.count, b.name, b.label, b.group) for b in baselines
            ]
            rows += new
            running += _prepare(case, baselines, new, limits, on_step)
    timings = interleave(
        {index: one.ready.call for index, one in enumerate(running)},
        rounds=rounds, threads=threads, min_seconds=min_seconds,
        on_sample=lambda index: on_step(running[index].row.label),
    )  # fmt: skip
    with torch_threads(threads):
        for index, one in enumerate(running):
            one.row.take(timings[index])
            _compare(one.ready, one.reference, one.row)
    running.clear()
    gc.collect()
    return relate(rows)


class _Running(NamedTuple):
    row: Result
    ready: Built
    reference: torch.Tensor


def _prepare(
    case: ModuleCase | NetCase,
    baselines: Sequence[Baseline],
    rows: list[Result],
    limits: Limits | None,
    on_step: Callable[[str], None],
) -> Iterator[_Running]:
    """What there is to time: every baseline whose result is right, with its row."""
    batch, threads = rows[0].batch, rows[0].threads
    try:
        module, x = case.build(), case.input(batch)
    except Unavailable as why:
        for row in rows:
            row.refuse(MISSING, str(why))
        return
    with torch.no_grad():
        reference = as_one(copy.deepcopy(module).double()(x.double()))
    size = case.flops(batch), case.bytes(batch)
    for baseline, row in zip(baselines, rows, strict=True):
        on_step(f"{baseline.label}: building")
        row.flops, row.bytes, row.dtype = *size, baseline.dtype
        row.roof = None if limits is None else limits.roof(*size, baseline.dtype)
        ready = _build(baseline, module, x, threads, row)
        row.note = "" if ready is None else ready.note
        if ready is not None and _compare(ready, reference, row):
            if row.dtype != "float32" and reference.dim() == 2:
                on_step(f"{baseline.label}: {AGREED} images")
                row.agreement = agreement(ready, module)
            yield _Running(row, ready, reference)


def agreement(ready: Built, module: nn.Module, images: int = AGREED) -> float | None:
    """The share of generated images, at least ``images``, whose largest logit is where ``module`` has it in eager."""
    if ready.input is None:
        return None
    kept, same = ready.input.clone(), []
    with torch.no_grad():
        for seed in range(-(-images // len(kept))):
            drawn = draw_images(len(kept), kept.shape[-1], seed)
            ready.input.copy_(drawn)
            same.append(ready.result(ready.call()).argmax(1) == module(drawn).argmax(1))
    ready.input.copy_(kept)
    return float(torch.cat(same).double().mean())


def _build(baseline: Baseline, module: nn.Module, x: torch.Tensor, threads: int, row: Result) -> Built | None:
    try:
        return baseline.build(module, x, threads)
    except Unavailable as why:
        row.refuse(MISSING, str(why))
    except Exception as error:  # an engine's failure is a result of that engine, not the end of the run
        row.refuse(FAILED, f"{type(error).__name__}: {error}"[:300])
    return None


def _compare(ready: Built, reference: torch.Tensor, row: Result) -> bool:
    """Whether a fresh result agrees with the reference; notes the error, and takes back a speed if not."""
    try:
        error = error_of(as_one(ready.result(ready.call())), reference)
        ready.check()
    except Exception as failure:
        row.refuse(FAILED, f"{type(failure).__name__}: {failure}"[:300])
        return False
    row.error = error if row.error is None else max(row.error, error)
    if row.error > TOLERANCES[row.dtype]:
        row.refuse(WRONG, f"its result differs from float64 by {row.error:.1e} of the largest element")
        return False
    return True


def new_report(settings: dict[str, object], limits: Sequence[Limits]) -> Report:
    return Report(machine.describe(), settings, [limit.as_dict() for limit in limits], [])
