"""A whole benchmark: what was selected, run for every thread count and batch size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import roofline
from .baselines import Baseline
from .cases import ModuleCase, NetCase
from .run import Report, new_report, run_case
from .training import FUSED_LOW, TrainCase, TrainModuleCase, run_training

LIMIT_SECONDS, QUICK_LIMIT_SECONDS = 0.3, 0.05  # for each limit of the machine that is measured


@dataclass(kw_only=True)
class Selection:
    """What to run.

    Attributes:
        cases, baselines: modules and nets, and what runs them.
        trained, steps: modules to train, and the names of the training steps.
        to_freeze, dtype: nets to freeze, and their dtype.
        zoo: other people's nets.
        zoo_train_batch, zoo_train_threads: how these are trained; 0 for not at all.
        train, train_batch: the net to train, or None, and its batch size.
        wanted: says by its name whether a baseline runs.
        parts: the names of the chosen parts, for the report.
        batches, thread_counts: every pair of these is run.
        rounds, min_seconds, quick: how many samples, how long each, and whether to hurry with the machine's limits.
        in_checkout: whether the harness of a checkout is there.
    """

    cases: Sequence[ModuleCase | NetCase]
    baselines: Sequence[Baseline]
    trained: Sequence[TrainModuleCase]
    steps: set[str]
    to_freeze: Sequence[NetCase]
    zoo: Sequence[NetCase]
    zoo_train_batch: int
    zoo_train_threads: int
    dtype: str
    train: TrainCase | None
    train_batch: int
    wanted: Callable[[str], bool]
    parts: Sequence[str]
    batches: Sequence[int]
    thread_counts: Sequence[int]
    rounds: int
    min_seconds: float
    quick: bool
    in_checkout: bool

    def __len__(self) -> int:
        """The number of steps that a progress bar counts."""
        of_a_batch = len(self.cases) + len(self.trained) + bool(self.to_freeze) + len(self.zoo)
        of_threads = 1 + of_a_batch * len(self.batches) + (self.train is not None)
        return len(self.thread_counts) * of_threads + (len(self.zoo) if self.zoo_train_batch else 0)

    def settings(self) -> dict[str, object]:
        names = "rounds", "min_seconds", "quick", "parts", "dtype"
        return {name: getattr(self, name) for name in names}


def run_benchmark(selection: Selection, on_step: Callable[[str], None], on_done: Callable[[], None]) -> Report:
    """Run everything that was selected.

    Args:
        on_step: called with what is being done.
        on_done: called after each of the ``len(selection)`` steps.
    """
    report = new_report(selection.settings(), [])
    for threads in selection.thread_counts:
        on_step(f"limits of this machine: {threads} threads")
        seconds = QUICK_LIMIT_SECONDS if selection.quick else LIMIT_SECONDS
        limits = roofline.measure(threads, seconds, bfloat16=selection.dtype == "bfloat16")
        report.limits.append(limits.as_dict())
        on_done()
        for batch in selection.batches:
            _run_batch(selection, report, batch, threads, limits, on_step, on_done)
        if selection.train is not None:
            told = lambda what: on_step(f"training: {what}")
            results = run_training(
                selection.train, selection.train_batch, threads, selection.steps, rounds=selection.rounds, on_step=told
            )
            if selection.in_checkout:
                from .resident import add_resident

                add_resident(results, selection.train, told)
            report.results += results
            on_done()
    for case in selection.zoo if selection.zoo_train_batch else ():
        from .zoo import run_zoo_training

        batch, threads = selection.zoo_train_batch, selection.zoo_train_threads
        told = lambda what, name=case.name: on_step(f"{name}, training: {what}")
        report.results += run_zoo_training(
            case, batch, threads, selection.wanted, rounds=selection.rounds, on_step=told
        )
        on_done()
    return report


def _run_batch(
    selection: Selection,
    report: Report,
    batch: int,
    threads: int,
    limits: roofline.Limits,
    on_step: Callable[[str], None],
    on_done: Callable[[], None],
) -> None:
    options = {"rounds": selection.rounds, "min_seconds": selection.min_seconds}
    for case in selection.cases:
        told = lambda what, name=case.name: on_step(f"{name}, batch {batch}: {what}")
        report.results += run_case(case, batch, threads, selection.baselines, limits=limits, on_step=told, **options)
        on_done()
    for case in selection.trained:
        told = lambda what, name=case.name: on_step(f"{name}, batch {batch}: {what}")
        steps = selection.steps - {FUSED_LOW}
        report.results += run_training(case, batch, threads, steps, rounds=selection.rounds, on_step=told)
        on_done()
    for case in selection.zoo:
        from .zoo import run_zoo_case, zoo_baselines

        told = lambda what, name=case.name: on_step(f"{name}, batch {batch}: {what}")
        baselines = zoo_baselines(selection.wanted, selection.quick)
        report.results += run_zoo_case(case, batch, threads, baselines, limits=limits, on_step=told, **options)
        on_done()
    if selection.to_freeze:
        from .frozen import run_frozen

        told = lambda what: on_step(f"frozen: {what}")
        results, parts = run_frozen(
            selection.to_freeze, batch, threads, selection.dtype, selection.wanted, limits, on_step=told, **options
        )
        report.results += results
        report.parts += parts
        on_done()
