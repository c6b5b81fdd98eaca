"""Checks of the arguments that all nets have."""

from __future__ import annotations

from numbers import Integral


def check_sizes(owner: str, num_classes: int, in_chans: int) -> None:
    for name, value, least in (("num_classes", num_classes, 0), ("in_chans", in_chans, 1)):
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{owner}: {name}: expected an int of at least {least}, got {value!r}")
        if value < least:
            raise ValueError(f"{owner}: {name}: expected at least {least}, got {value!r}")
