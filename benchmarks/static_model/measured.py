"""Kernels that were measured on an H200: their times, and what their machine code shows (``measured.json``)."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from .model import Facts

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Measured:
    """A launch of batch 256 that was measured.

    Attributes:
        case, launch: as ``launches.case`` and ``launches.labels`` name them.
        us: its time in microseconds.
        facts: of the kernel as it was then.
        unexplained: the model is known to be wrong about it; the cause is not known.
    """

    case: str
    launch: str
    us: float
    facts: Facts
    unexplained: bool


@functools.lru_cache(maxsize=1)
def measured() -> tuple[Measured, ...]:
    """All launches that ``measured.json`` has, with their times of ``benchmarks/results/h200-runs.json``."""
    known = json.loads((HERE / "measured.json").read_text())
    runs = json.loads((HERE.parent / "results" / "h200-runs.json").read_text())["launches"]["profiles"]
    found = []
    for row in known["launches"]:
        number, *name, us = next(
            line for line in map(str.split, runs[row["profile"]]["launches"]) if int(line[0]) == row["number"]
        )
        kernel = " ".join(name)
        if kernel != row["kernel"]:
            raise ValueError(f"measured.json: launch {number} is {row['kernel']}, in h200-runs.json {kernel}")
        unexplained = [row["case"], row["launch"]] in known["unexplained"]
        found.append(Measured(row["case"], row["launch"], float(us), Facts.of(row["facts"]), unexplained))
    return tuple(found)


def time_of(case: str, launch: str) -> float | None:
    """The measured time of a launch, as its kernel was then; None where it was not measured."""
    return next((one.us for one in measured() if (one.case, one.launch) == (case, launch)), None)
