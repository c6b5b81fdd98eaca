"""The environment variables of the library (docs/environment.md), read and checked when the package is imported.

This is the only place that reads them. ``GHOST_OPS_TILES``, a file that may be changed while a program runs, is read by
``backends/triton/tiles.py``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

ISAS = ("amx", "avx512bf16", "avx512", "avx2", "baseline")  # that csrc/cpu/isa.cpp may have kernels for
MOST_MB = (2**63 - 1) >> 20  # the number of bytes must fit in 64 bits


@dataclass(frozen=True)
class Environment:
    """Values of the variables; None where a variable is not set, or empty."""

    backend: str | None = None
    gpu: str | None = None
    isa: str | None = None
    launches: str | None = None
    keep_mb: int | None = None


def wrong(variable: str, expected: str, got: str) -> ValueError:
    """The error of a value that is not allowed."""
    return ValueError(f"{variable}: expected {expected}, got {got!r}")


def one_of(names: Sequence[str]) -> str:
    """Names as a text: 'a', 'b' or 'c'."""
    *first, last = map(repr, names)
    return f"{', '.join(first)} or {last}" if first else last


def _choice(variable: str, names: Sequence[str]) -> str | None:
    value = os.environ.get(variable) or None
    if value is not None and value not in names:
        raise wrong(variable, one_of(names), value)
    return value


def _megabytes(variable: str) -> int | None:
    value = os.environ.get(variable) or None
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 20 and int(value) <= MOST_MB):
        raise wrong(variable, f"a number of MiB from 0 to {MOST_MB}, in digits", value)
    return int(value)


def read() -> Environment:
    """The variables as they are now.

    Raises:
        ValueError: a variable has a value that is not allowed. Whether this machine runs the instruction set is checked
            where the library is loaded (``native.py``).
    """
    return Environment(
        backend=_choice("GHOST_OPS_BACKEND", ("native", "reference")),
        gpu=_choice("GHOST_OPS_GPU", ("cuda", "triton")),
        isa=_choice("GHOST_OPS_ISA", ISAS),
        launches=_choice("GHOST_OPS_LAUNCHES", ("python",)),
        keep_mb=_megabytes("GHOST_OPS_KEEP_MB"),
    )
