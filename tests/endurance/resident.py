"""Resident memory of this process over a long run, and whether it grows."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import statistics
from dataclasses import dataclass, field
from pathlib import Path

MIB = 2.0**20
BOUND = 8.0  # MiB that a run may grow by after the warm-up: of 10 000 steps, 800 bytes a step
UNTRIMMED_BOUND = 64.0  # MiB of memory that the allocator keeps for later: it depends on the sizes of the last steps


def resident() -> float:
    """Resident memory in MiB. Raises OSError where the system has no /proc."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


def trim() -> None:
    """Collect garbage, and let the allocator return what is free, so that only what is held stays resident."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


@dataclass
class Samples:
    """Resident memory from time to time, in MiB: as it is, and after ``trim``."""

    times: list[float] = field(default_factory=list)
    untrimmed: list[float] = field(default_factory=list)
    trimmed: list[float] = field(default_factory=list)

    def take(self, seconds: float) -> None:
        self.times.append(seconds)
        self.untrimmed.append(resident())
        trim()
        self.trimmed.append(resident())

    def growth(self) -> list[str]:
        """Say what has grown by more than its bound. Raises ValueError where there are less than eight samples."""
        found = []
        for name, values, bound in (
            ("held", self.trimmed, BOUND),
            ("resident", self.untrimmed, UNTRIMMED_BOUND),
        ):
            by_slope, by_quarters = trends(self.times, values)
            if min(by_slope, by_quarters) > bound:
                found.append(f"memory {name} grows by {by_slope:.1f} MiB (slope) and {by_quarters:.1f} MiB (quarters), "
                             f"allowed {bound:.0f}")  # fmt: skip
        return found


def trends(times: list[float], values: list[float]) -> tuple[float, float]:
    """How much values have grown, in two ways.

    Returns:
        The slope of the least-squares line times the time, and the median of the last quarter minus that of the second.
        A leak raises both, the second by half of what it adds, so that it is doubled; a single step early or late, or
        noise, seldom raises both.
    """
    if len(values) < 8:
        raise ValueError(f"a trend needs at least 8 samples, got {len(values)}")
    slope = statistics.linear_regression(times, values).slope
    quarter = len(values) // 4
    second, last = statistics.median(values[quarter : 2 * quarter]), statistics.median(values[-quarter:])
    return slope * (times[-1] - times[0]), 2 * (last - second)
