"""The operators as CUDA C++ kernels (``csrc/cuda``): whether ``ghost_ops/_cuda.so`` is there, and each by its name.

Importing this package costs nothing. The library is loaded when it is first asked for on a machine whose PyTorch has
CUDA and that has a device; nowhere else.

They were written anew and not yet run on a device (docs/performance/gpu.md): Triton is the default, and
``GHOST_OPS_GPU=cuda`` in the environment, or ``with ghost_ops.use_backend("cuda")``, runs these.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path

import torch

from .. import environment
from ..registry import CHEAP_KERNELS, Backend, find

LIBRARY = Path(__file__).resolve().parents[2] / "_cuda.so"
LEAST_CAPABILITY = (8, 0)  # bfloat16 products
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FASTER_ON: frozenset[tuple[int, int]] = frozenset()  # capabilities on which benchmarks/gpu.py saw them beat Triton


WISH = environment.read().gpu


def _reason() -> str | None:
    if torch.version.cuda is None:
        return "this PyTorch was built without CUDA"
    if not LIBRARY.exists():
        return f"{LIBRARY.name} is missing, since the package was built without nvcc or with GHOST_OPS_CUDA=0"
    return None


_missing = _reason()


def could_load() -> bool:
    """Whether the library is there, for a PyTorch that has CUDA."""
    return _missing is None


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """The loaded library, or why there is none."""
    if _missing is not None:
        return None, _missing
    if not torch.cuda.is_available():
        return None, "no CUDA device is there"
    loaded = any(os.path.exists(other) and os.path.samefile(other, LIBRARY) for other in torch.ops.loaded_libraries)
    if not loaded and "ghost_ops::_cuda_gather" in torch._C._dispatch_get_all_op_names():
        return None, "another copy of ghost_ops has registered its CUDA operators in this process"
    try:
        torch.ops.load_library(str(LIBRARY))
        return ctypes.CDLL(str(LIBRARY)), None
    except OSError as error:
        return None, f"{LIBRARY.name} does not load: {error}"


def library() -> ctypes.CDLL | None:
    """The library, loaded if it was not; None where it cannot be."""
    return _load()[0]


def available() -> bool:
    """Whether the kernels run on this machine."""
    return library() is not None


def reason() -> str | None:
    """Why they do not, as the end of a sentence; None where they do."""
    return _load()[1]


def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


@functools.cache
def _asked(index: int) -> str | None:
    refuses = library().ghost_ops_cuda_refuses
    refuses.restype = ctypes.c_char_p
    with torch.cuda.device(index):
        why = refuses()
    return None if why is None else f"its kernels do not run on this device: {why.decode()}"


def _refusal(index: int) -> str | None:
    """Why the library cannot launch on a device: it has nothing for its architecture, or needs a newer driver."""
    return _asked(index)


for _constant in (available, reason, _capability, _refusal):
    _constant._dynamo_marked_constant = True  # as in the package for Triton


def is_wanted(device: torch.device, forced: str | None) -> bool:
    """Whether they come before Triton: asked for, or measured to be faster on such a device."""
    if device.type != "cuda" or (forced or WISH) in ("triton", "reference"):
        return False
    wish = (forced or WISH) == "cuda"
    return wish or (bool(FASTER_ON) and _capability(-1 if device.index is None else device.index) in FASTER_ON)


def refuse_device(device: torch.device) -> str | None:
    """Why the kernels do not run on a device, as a sentence; None where they do."""
    if device.type != "cuda":
        return f"its kernels run on CUDA devices, the input is on {device.type}"
    if not available():
        return reason()
    index = -1 if device.index is None else device.index  # -1: the current one
    major, minor = _capability(index)
    if (major, minor) < LEAST_CAPABILITY:
        return f"its kernels need compute capability 8.0 or more, this device has {major}.{minor}"
    return _refusal(index)


def missing() -> str | None:
    """Why the kernels do not run on this machine, as the end of a sentence; None where they do."""
    return reason() or refuse_device(torch.device("cuda", torch.cuda.current_device()))


def load(name: str) -> Callable | None:
    """The implementation of an operator, or None where there is none."""
    return find(__name__, name)


def has(name: str) -> bool:
    """Whether there is an implementation of an operator."""
    return load(name) is not None


has._dynamo_marked_constant = True


def describe_program(x: torch.Tensor, packed: torch.Tensor, steps: list[int]) -> str:
    """The kernels of a program on such an input, and the bytes that its bottlenecks do not move."""
    from .program import summary  # which needs what this package registers

    return summary(x, packed, steps)


BACKEND = Backend(
    "cuda",
    is_candidate=is_wanted,
    refuse_device=refuse_device,
    has=has,
    dtypes=DTYPES,
    kernels=CHEAP_KERNELS,
    dispatch_key="CUDA" if could_load() else None,
    load=load,
    missing=missing,
    off_until=lambda: None if WISH == "cuda" else "GHOST_OPS_GPU=cuda",
    can_be_forced=True,
    fuses_epilogues=True,
    describe_program=describe_program,
)
