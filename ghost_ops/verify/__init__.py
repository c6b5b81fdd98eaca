"""Compare every operator and every block, and eager PyTorch in the same dtype, with float64, on this machine."""

from __future__ import annotations

from collections.abc import Callable

from .blocks import count_blocks, verify_blocks
from .compare import FACTOR, Outcome, compare
from .operators import Drawn, count_operators, draws, evaluate, verify_operators

__all__ = [
    "FACTOR",
    "Drawn",
    "Outcome",
    "compare",
    "count_outcomes",
    "draws",
    "evaluate",
    "verify",
    "verify_blocks",
    "verify_operators",
]


def count_outcomes() -> int:
    """The number of outcomes of ``verify``."""
    return count_operators() + count_blocks()


def verify(count: int = 12, on_step: Callable[[str], None] = lambda what: None) -> list[Outcome]:
    """Every operator and block in every dtype, layout and direction.

    Args:
        count: number of drawn calls of each operator; a block, whose calls take longer, gets a third as many.
        on_step: called with what comes next, ``count_outcomes()`` times.
    """
    return verify_operators(count, on_step) + verify_blocks(max(1, count // 3), on_step)
