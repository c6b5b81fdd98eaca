"""Checks of constructor arguments: each error says the argument, what was expected and what came."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real


def positive(owner: str, **values: object) -> None:
    """Every value an int of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{owner}: {name}: expected a positive int, got {value!r}")
        if value < 1:
            raise ValueError(f"{owner}: {name}: expected a positive int, got {value}")


def odd(owner: str, **values: object) -> None:
    """Every value an odd int of at least 1: an even kernel would change the size of the map."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{owner}: {name}: expected an odd positive int, got {value!r}")
        if value < 1 or value % 2 == 0:
            raise ValueError(f"{owner}: {name}: expected an odd positive int, got {value}")


def number(owner: str, expected: str, allows: Callable[[float], bool], **values: object) -> None:
    """Every value a finite number that is allowed; ``expected`` says in words which ones are."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{owner}: {name}: expected {expected}, got {value!r}")
        if not math.isfinite(value) or not allows(value):
            raise ValueError(f"{owner}: {name}: expected {expected}, got {value!r}")
