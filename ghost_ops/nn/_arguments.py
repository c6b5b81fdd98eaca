"""Checks of constructor arguments: each error says the argument, what was expected and what came."""

from __future__ import annotations


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
