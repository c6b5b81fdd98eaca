"""Which backend runs a configuration, and in a sentence why a faster one does not.

One predicate per backend: None where it takes the configuration, else its refusal.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import torch

from . import cuda, native, triton

CHEAP_KERNELS = (1, 3, 5, 7)
_forced: str | None = None


@dataclass(frozen=True)
class Choice:
    """The backend that runs, and, by name, why those before it do not."""

    backend: str
    refusals: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return "; ".join([self.backend, *(f"not {name}: {why}" for name, why in self.refusals)])


def _refuse_native(op: str, device: torch.device, dtype: torch.dtype, cheap_kernel: int | None) -> str | None:
    if device.type != "cpu":
        return f"its kernels run on the CPU, the input is on {device.type}"
    if not native.available():
        return native.reason()
    if dtype not in (torch.float32, torch.bfloat16):
        return f"its kernels take float32 and bfloat16, the input is {str(dtype).removeprefix('torch.')}"
    if cheap_kernel is not None and cheap_kernel not in CHEAP_KERNELS:
        what = "depthwise convolution" if op == "depthwise" else "cheap operation"
        return f"its kernels take a {what} of size 1, 3, 5 or 7, this one is {cheap_kernel}"
    return None


def _refuse_on_cuda(kernels: ModuleType) -> Callable[..., str | None]:
    """Why a package of kernels for CUDA devices does not take a configuration."""

    def refuse(op: str, device: torch.device, dtype: torch.dtype, cheap_kernel: int | None) -> str | None:
        why = kernels.refuse_device(device)
        if why is not None:
            return why
        if op not in kernels.OPERATORS:
            return f"it has no {op}"
        if dtype not in kernels.DTYPES:
            return f"its kernels take float32, float16 and bfloat16, the input is {str(dtype).removeprefix('torch.')}"
        if cheap_kernel is not None and cheap_kernel not in CHEAP_KERNELS:
            return f"its kernels take a cheap operation of size 1, 3, 5 or 7, this one is {cheap_kernel}"
        return None

    return refuse


_REFUSALS = {"native": _refuse_native, "cuda": _refuse_on_cuda(cuda), "triton": _refuse_on_cuda(triton)}
BACKENDS = (*_REFUSALS, "reference")


@functools.lru_cache(maxsize=1024)
def _choose(op: str, device: torch.device, dtype: torch.dtype, cheap_kernel: int | None, forced: str | None) -> Choice:
    names = ["triton"] if device.type == "cuda" else ["native"]
    if cuda.is_wanted(device, forced):
        names.insert(0, "cuda")
    refusals = []
    for name in names:
        asked = forced == "reference"
        why = "the reference backend was asked for" if asked else _REFUSALS[name](op, device, dtype, cheap_kernel)
        if why is None:
            return Choice(name, tuple(refusals))
        refusals.append((name, why))
    return Choice("reference", tuple(refusals))


def choose(op: str, x: torch.Tensor, cheap_kernel: int | None = None) -> Choice:
    """The backend for ``op`` on an input such as x, with a depthwise kernel of ``cheap_kernel`` pixels a side."""
    run = _choose.__wrapped__ if torch.compiler.is_compiling() else _choose  # Dynamo warns of caches
    return run(op, x.device, x.dtype, cheap_kernel, _forced)


@contextmanager
def use_backend(name: str | None):
    """Within the block, ``"reference"`` runs everything in plain PyTorch; ``"cuda"`` and ``"triton"`` come first where
    they take an input on a CUDA device; None chooses as usual. Not per thread."""
    global _forced
    if name not in (None, "reference", "cuda", "triton"):
        raise ValueError(f"ghost_ops.use_backend: name: expected 'reference', 'cuda', 'triton' or None, got {name!r}")
    previous, _forced = _forced, name
    native.use_reference(name == "reference")  # for calls that do not ask ``choose``: of the operators themselves
    try:
        yield
    finally:
        _forced = previous
        native.use_reference(previous == "reference")
