"""The place that decides what runs a call: which operator on which backend, and why nothing faster does.

``select`` decides for one operator, ``refuse_call`` says whether any operator may see an input at the moment.
Operators, fused modules and ``explain`` read the same :class:`Decision`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import nn

from .backends import cuda, native, triton

CHEAP_KERNELS = (1, 3, 5, 7)  # sizes of depthwise convolutions that have kernels
PLAIN_TENSORS = frozenset((torch.Tensor, nn.Parameter))
PLAIN_PYTORCH = "plain PyTorch"
_forced: str | None = None


@dataclass(frozen=True)
class Decision:
    """What runs a call, and why nothing faster does.

    Attributes:
        runs: what runs, as a phrase, such as ``"ghost_module on native"``.
        backend: ``native``, ``triton``, ``cuda`` or ``reference`` (plain PyTorch).
        operator: name of the operator that runs, or None where a module runs through its children.
        reasons: why nothing faster runs, one sentence each.
    """

    runs: str
    backend: str
    operator: str | None = None
    reasons: tuple[str, ...] = ()

    @property
    def is_reference(self) -> bool:
        """Whether plain PyTorch runs it."""
        return self.backend == "reference"

    @property
    def why(self) -> str:
        """The reasons as one text; empty where nothing faster is known."""
        return "; ".join(self.reasons)

    def __str__(self) -> str:
        return f"{self.runs}: {self.why}" if self.reasons else self.runs


def plain(*reasons: str) -> Decision:
    """The decision that a module runs as plain PyTorch, through its children."""
    return Decision(PLAIN_PYTORCH, "reference", None, reasons)


def _refuse_native(operator: str, device: torch.device, dtype: torch.dtype, kernel: int | None) -> str | None:
    if device.type != "cpu":
        return f"its kernels run on the CPU, the input is on {device.type}"
    if not native.available():
        return native.reason()
    if dtype not in (torch.float32, torch.bfloat16):
        return f"its kernels take float32 and bfloat16, the input is {str(dtype).removeprefix('torch.')}"
    if kernel is not None and kernel not in CHEAP_KERNELS:
        what = "depthwise convolution" if operator.startswith("depthwise") else "cheap operation"
        return f"its kernels take a {what} of size 1, 3, 5 or 7, this one is {kernel}"
    return None


def _refuse_on_cuda(kernels: ModuleType) -> Callable[..., str | None]:
    """Why a package of kernels for CUDA devices does not take a configuration."""

    def refuse(operator: str, device: torch.device, dtype: torch.dtype, kernel: int | None) -> str | None:
        why = kernels.refuse_device(device)
        if why is not None:
            return why
        if operator not in kernels.OPERATORS:
            return f"it has no {operator}"
        if dtype not in kernels.DTYPES:
            return f"its kernels take float32, float16 and bfloat16, the input is {str(dtype).removeprefix('torch.')}"
        if kernel is not None and kernel not in CHEAP_KERNELS:
            what = "depthwise convolution" if operator.startswith("depthwise") else "cheap operation"
            return f"its kernels take a {what} of size 1, 3, 5 or 7, this one is {kernel}"
        return None

    return refuse


_REFUSALS = {"native": _refuse_native, "cuda": _refuse_on_cuda(cuda), "triton": _refuse_on_cuda(triton)}
BACKENDS = (*_REFUSALS, "reference")


@functools.lru_cache(maxsize=1024)
def _select(
    operator: str, device: torch.device, dtype: torch.dtype, kernel: int | None, forced: str | None
) -> Decision:
    names = ["triton"] if device.type == "cuda" else ["native"]
    if cuda.is_wanted(device, forced):
        names.insert(0, "cuda")
    refusals: tuple[str, ...] = ()
    for name in names:
        asked = forced == "reference"
        why = "the reference backend was asked for" if asked else _REFUSALS[name](operator, device, dtype, kernel)
        if why is None:
            return Decision(f"{operator} on {name}", name, operator, refusals)
        refusals = (*refusals, f"not {name}, since {why}")
    return Decision(f"{operator} on reference", "reference", operator, refusals)


def select(operator: str, x: torch.Tensor, kernel: int | None = None) -> Decision:
    """The backend that runs an operator.

    Args:
        operator: name of the operator, such as ``"ghost_module"``.
        x: its input, or a tensor of the same dtype and device.
        kernel: size of its depthwise convolution, or None where it has none.
    """
    run = _select.__wrapped__ if torch.compiler.is_compiling() else _select  # Dynamo warns of caches
    return run(operator, x.device, x.dtype, kernel, _forced)


def fuses_epilogues(decision: Decision) -> bool:
    """Whether a backend gains by squeeze, excitation and shortcut in the passes of its Ghost modules."""
    return decision.backend in ("cuda", "triton")


def forced() -> str | None:
    """The backend that ``use_backend`` asks for at the moment."""
    return _forced


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Ask for a backend within a ``with`` block, in all threads.

    Args:
        name: ``"reference"`` runs everything in plain PyTorch, frozen nets and compiled ones too; ``"cuda"`` and
            ``"triton"`` come first where they take an input on a CUDA device; None chooses as usual.

    Raises:
        ValueError: another name.
    """
    global _forced
    if name not in (None, "reference", "cuda", "triton"):
        raise ValueError(f"ghost_ops.use_backend: name: expected 'reference', 'cuda', 'triton' or None, got {name!r}")
    previous = _forced
    _force(name)
    try:
        yield
    finally:
        _force(previous)


def _force(name: str | None) -> None:
    global _forced
    _forced = name
    native.use_reference(name == "reference")  # for calls that do not ask ``select``: of the operators themselves


def refuse_call(x: object) -> str | None:
    """Why no operator may see x at the moment, since something that PyTorch does would be lost; None: it may.

    The compiler guards what it traces, so that under it only global hooks count.
    """
    if nn.modules.module._has_any_global_hook():
        return "a global module hook is registered"
    if torch.compiler.is_compiling():
        return None
    if type(x) not in PLAIN_TENSORS:
        return f"its input is a {type(x).__name__}, not a plain tensor"
    if x.layout is not torch.strided or x.dim() != 4:
        return "its input is not a dense N x C x H x W tensor"
    if x.is_meta:
        return "its input is on meta, where nothing is computed"
    if torch._C._are_functorch_transforms_active():
        return "a function transform (vmap, grad, jvp) is active"
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace is recording"
    if torch.autograd.forward_ad._current_level >= 0:
        return "forward-mode differentiation is active"
    return None


def refuse_autocast(x: torch.Tensor) -> str | None:
    """Why a whole block may not see x under autocast, which casts what some parts read and not what others do."""
    if not torch._C._is_any_autocast_enabled():
        return None
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.get_autocast_dtype(device):
        return "autocast makes of its parts and of its shortcut different dtypes"
    return None
