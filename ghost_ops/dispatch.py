"""Decides what runs a call: which operator on which backend, and why nothing faster does.

``select`` decides for one operator, ``refuse_call`` says whether any operator may see an input at the moment.
Operators, fused modules and ``explain`` read the same :class:`Decision`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.utils._device import DeviceContext

from .backends import native
from .backends.registry import BACKENDS

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


@functools.lru_cache(maxsize=1024)
def _select(
    operator: str, device: torch.device, dtype: torch.dtype, kernel: int | None, forced: str | None
) -> Decision:
    refusals: tuple[str, ...] = ()
    for backend in BACKENDS.values():
        if not backend.is_candidate(device, forced):
            continue
        if forced == "reference" and backend.name != "reference":
            why = "the reference backend was asked for"
        else:
            why = backend.refuse(operator, device, dtype, kernel)
        if why is None:
            slowed = backend.slowed()
            slow = () if slowed is None else (f"slow on {backend.name}, since {slowed}",)
            return Decision(f"{operator} on {backend.name}", backend.name, operator, (*refusals, *slow))
        refusals = (*refusals, f"not {backend.name}, since {why}")
    raise AssertionError("the reference refuses nothing")


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
    """Whether the backend is faster with squeeze, excitation and shortcut fused into its Ghost module kernels."""
    return BACKENDS[decision.backend].fuses_epilogues


def describe_program(decision: Decision, x: torch.Tensor, packed: torch.Tensor, steps: list[int]) -> Decision:
    """The decision for a program, with what its backend says of how it runs this one."""
    describe = BACKENDS[decision.backend].describe_program
    if describe is None:
        return decision
    return replace(decision, runs=f"{decision.runs}, {describe(x, packed, steps)}")


def forced() -> str | None:
    """The backend that ``use_backend`` currently asks for, or None."""
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
    names = [backend.name for backend in BACKENDS.values() if backend.can_be_forced]
    if name is not None and name not in names:
        expected = ", ".join(map(repr, names))
        raise ValueError(f"ghost_ops.use_backend: name: expected {expected} or None, got {name!r}")
    previous = _forced
    _force(name)
    try:
        yield
    finally:
        _force(previous)


def _force(name: str | None) -> None:
    global _forced
    _forced = name
    native.use_reference(name == "reference")  # direct calls of operators do not ask ``select``


def recorder() -> str | None:
    """What records a call in PyTorch's own operators, for tools that know no others; None where nothing does.

    These are ``torch.onnx.export`` and ``torch.jit.trace``, and a mode that sees PyTorch's functions, as quantisers
    have it. (``torch.onnx.export`` is not seen where it falls back to a strict export: it then names our operator.)
    """
    if torch.compiler.is_compiling():
        recording = torch.compiler._is_exporting_flag and torch.onnx.is_in_onnx_export()
        return "torch.onnx.export is recording" if recording else None
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace is recording"
    return refuse_function_modes() if torch._C._len_torch_function_stack() else None  # a call each is not free


def refuse_function_modes() -> str | None:
    """Why a call must go through PyTorch's functions: a mode sees them, other than one that only sets the device."""
    modes = torch.overrides._get_current_function_mode_stack()
    if not all(isinstance(mode, DeviceContext) for mode in modes):
        return "a TorchFunctionMode is active"
    return None


def refuse_call(x: object) -> str | None:
    """Why no operator may take x now, since something that PyTorch does would be lost; None where one may.

    Under ``torch.compile`` only global hooks count: the compiler guards the rest. ``torch.export`` records for tools
    that do not know our operators, and for which parameters must be seen where they are used.
    """
    if nn.modules.module._has_any_global_hook():
        return "a global module hook is registered"
    if torch.compiler.is_compiling():
        # not ``is_exporting()``, which dynamo takes for True in older versions
        return "torch.export is recording" if torch.compiler._is_exporting_flag else None
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
    return refuse_function_modes() if torch._C._len_torch_function_stack() else None  # a call each is not free


def refuse_modes() -> str | None:
    """Why kernels may not be started without an operator of PyTorch's dispatcher: a mode, such as one that counts
    FLOPs, sees operators only. A mode with the attribute ``sees_launches`` does not mind."""
    for i in range(torch._C._len_torch_dispatch_stack()):
        if not getattr(torch._C._get_dispatch_stack_at(i), "sees_launches", False):
            return "a dispatch mode is active, which sees operators only"
    return None


def refuse_autocast(x: torch.Tensor) -> str | None:
    """Why a whole block may not take x under autocast, which casts the inputs of some parts and not of others."""
    if not torch._C._is_any_autocast_enabled():
        return None
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.get_autocast_dtype(device):
        return "autocast makes of its parts and of its shortcut different dtypes"
    return None
