"""Interleaved timing in one process: A B C A B C, so that a disturbance of the machine affects all alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.utils.benchmark import Timer

_Name = TypeVar("_Name", bound=Hashable)
SETTLE = 0.002  # seconds before each sample: the thread pool of the one before stops spinning


@dataclass(frozen=True)
class Timing:
    """Seconds a call, one sample a round.

    Attributes:
        samples: in the order of the rounds.
        number: calls a sample is the mean of.
    """

    samples: tuple[float, ...]
    number: int

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """The interquartile range; 0 for a single sample."""
        if len(self.samples) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return high - low


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """PyTorch uses this many threads inside operators within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def interleave(
    calls: Mapping[_Name, Callable[[], object]],
    *,
    rounds: int,
    threads: int = 1,
    min_seconds: float = 0.02,
    on_sample: Callable[[_Name], None] = lambda name: None,
) -> dict[_Name, Timing]:
    """Time every callable once a round, in the same order each round.

    Args:
        calls: by name. PyTorch's threads are set here; the caller sets those of other engines.
        rounds: number of samples of each.
        threads: PyTorch's threads within operators.
        min_seconds: about the least that a sample takes; short calls are repeated to fill it.
        on_sample: called with the name after each sample.

    Raises:
        ValueError: no rounds, or no threads.
    """
    if rounds < 1 or threads < 1:
        raise ValueError(f"interleave: rounds and threads: expected at least 1, got {rounds} and {threads}")
    timers = {name: _timer(call, threads) for name, call in calls.items()}
    with torch_threads(threads):
        numbers = {name: _repeats(timer, min_seconds) for name, timer in timers.items()}
        samples: dict[_Name, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, timer in timers.items():
                time.sleep(SETTLE)
                samples[name].append(timer.timeit(numbers[name]).mean)
                on_sample(name)
    return {name: Timing(tuple(values), numbers[name]) for name, values in samples.items()}


def in_turn(
    calls: Mapping[str, Callable[[], object]], *, rounds: int, threads: int = 1, min_seconds: float = 0.2
) -> dict[str, Timing]:
    """Time calls one after another, pass after pass: each finds in the caches what those before it left there.

    Args:
        calls: by name, in the order of a pass.
        rounds: number of samples of each, each the median of several passes, since a call may be much shorter than what
            disturbs the machine.
        threads: PyTorch's threads within operators.
        min_seconds: about the least that a round takes.
    """
    spent: dict[str, list[float]] = {}

    def one_pass() -> None:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            spent[name].append(time.perf_counter() - start)

    samples: dict[str, list[float]] = {name: [] for name in calls}
    spent.update((name, []) for name in calls)
    with torch_threads(threads):
        passes = _repeats(_timer(one_pass, threads), min_seconds) if calls else 0
        for _ in range(rounds):
            time.sleep(SETTLE)
            one_pass()
            spent.update((name, []) for name in calls)
            for _ in range(passes):
                one_pass()
            for name, seconds in spent.items():
                samples[name].append(statistics.median(seconds))
    return {name: Timing(tuple(values), passes) for name, values in samples.items()}


def _timer(call: Callable[[], object], threads: int) -> Timer:
    """Timer, where there is a GPU, waits for it before it reads the clock."""
    return Timer("call()", globals={"call": call}, num_threads=threads)


def _repeats(timer: Timer, min_seconds: float) -> int:
    """How many calls fill ``min_seconds``; warms up on the way."""
    number = 1
    timer.timeit(number)
    while True:
        seconds = number * timer.timeit(number).mean
        if seconds >= min_seconds / 4:
            return max(1, math.ceil(number * min_seconds / seconds))
        number *= 4


def ratio(slower: Timing, faster: Timing) -> float:
    """How many times longer the first takes: the quotient of the medians."""
    return slower.median / faster.median


def geometric_mean(values: list[float], weights: list[float] | None = None) -> float:
    """The weighted geometric mean; NaN where there are no values."""
    weights = [1.0] * len(values) if weights is None else weights
    total = sum(weights)
    return math.exp(sum(w * math.log(v) for v, w in zip(values, weights, strict=True)) / total) if total else math.nan
