"""Which backend runs a configuration, and in a sentence why a faster one does not.

One predicate per backend: None where it takes the configuration, else its refusal.
"""

from __future__ import annotations

import functools
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from . import native

CHEAP_KERNELS = (1, 3, 5, 7)
_forced: str | None = None


@dataclass(frozen=True)
class Choice:
    """The backend that runs, and the refusals of the faster ones by name."""

    backend: str
    refusals: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return "; ".join([self.backend, *(f"not {name}: {why}" for name, why in self.refusals)])


def _refuse_native(op: str, device: str, dtype: torch.dtype, cheap_kernel: int | None) -> str | None:
    if device != "cpu":
        return f"its kernels run on the CPU, the input is on {device}"
    if not native.available():
        return native.reason()
    if dtype not in (torch.float32, torch.bfloat16):
        return f"its kernels take float32 and bfloat16, the input is {str(dtype).removeprefix('torch.')}"
    if cheap_kernel is not None and cheap_kernel not in CHEAP_KERNELS:
        return f"its kernels take a cheap operation of size 1, 3, 5 or 7, this one is {cheap_kernel}"
    return None


_REFUSALS = {"native": _refuse_native}  # fastest first
BACKENDS = (*_REFUSALS, "reference")


@functools.lru_cache(maxsize=1024)
def _choose(op: str, device: str, dtype: torch.dtype, cheap_kernel: int | None, forced: str | None) -> Choice:
    if forced == "reference":
        return Choice("reference", (("native", "the reference backend was asked for"),))
    refusals = []
    for name, refuse in _REFUSALS.items():
        why = refuse(op, device, dtype, cheap_kernel)
        if why is None:
            return Choice(name, tuple(refusals))
        refusals.append((name, why))
    return Choice("reference", tuple(refusals))


def choose(op: str, x: torch.Tensor, cheap_kernel: int | None = None) -> Choice:
    """The backend for ``op`` on an input such as x, with a cheap operation of ``cheap_kernel`` pixels a side."""
    run = _choose.__wrapped__ if torch.compiler.is_compiling() else _choose  # Dynamo warns of caches
    return run(op, x.device.type, x.dtype, cheap_kernel, _forced)


@contextmanager
def use_backend(name: str | None):
    """Within the block, ``"reference"`` runs everything in plain PyTorch; None chooses as usual. Not per thread."""
    global _forced
    if name not in (None, "reference"):
        raise ValueError(f"ghost_ops.use_backend: name: expected 'reference' or None, got {name!r}")
    previous, _forced = _forced, name
    try:
        yield
    finally:
        _forced = previous
