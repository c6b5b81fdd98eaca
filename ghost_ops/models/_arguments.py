"""Checks of the arguments that all nets have."""

from __future__ import annotations


def check_sizes(owner: str, num_classes: int, in_chans: int) -> None:
    if num_classes < 0:
        raise ValueError(f"{owner}: num_classes: expected at least 0, got {num_classes!r}")
    if in_chans < 1:
        raise ValueError(f"{owner}: in_chans: expected at least 1, got {in_chans!r}")
