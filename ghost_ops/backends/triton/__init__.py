"""The operators as Triton kernels for CUDA devices: whether they are there, and each by its name.

Importing this package costs nothing: Triton is imported when an operator first runs on a device.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch

from ..registry import CHEAP_KERNELS, Backend, find

LACKS = {"branched_module_train": "made of its other kernels it would be no faster than PyTorch's operators"}
LEAST_CAPABILITY = (8, 0)  # bfloat16 and TF32 products, asynchronous copies
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _reason() -> str | None:
    if torch.version.cuda is None:
        return "this PyTorch was built without CUDA"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    return None


_missing = _reason()


def available() -> bool:
    """Whether the kernels could run here, given a device."""
    return _missing is None


def reason() -> str | None:
    """Why they could not, as the end of a sentence; None where they could."""
    return _missing


def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


# What torch.compiler.assume_constant_result does, which would import the compiler: seconds, for everybody.
_capability._dynamo_marked_constant = True


def refuse_device(device: torch.device) -> str | None:
    """Why the kernels do not run on a device, as a sentence; None where they do."""
    if device.type != "cuda":
        return f"its kernels run on CUDA devices, the input is on {device.type}"
    if _missing is not None:
        return _missing
    major, minor = _capability(-1 if device.index is None else device.index)
    if (major, minor) < LEAST_CAPABILITY:
        return f"its kernels need compute capability 8.0 or more, this device has {major}.{minor}"
    return None


def missing() -> str | None:
    """Why the kernels do not run on this machine, as the end of a sentence; None where they do."""
    if _missing is None and not torch.cuda.is_available():
        return "no CUDA device is there"
    return _missing or refuse_device(torch.device("cuda", torch.cuda.current_device()))


def load(name: str) -> Callable | None:
    """The implementation of an operator, or None where there is none. Imports Triton."""
    return find(__name__, name)


def has(name: str) -> bool:
    """Whether there is an implementation of an operator. Imports Triton."""
    return load(name) is not None


def slowed() -> str | None:
    """Why calls cost more than they should, as the end of a sentence; None where they do not. Imports Triton."""
    if _missing is not None:
        return None
    from .launch_cache import why_not_cached

    return why_not_cached()


has._dynamo_marked_constant = slowed._dynamo_marked_constant = True
BACKEND = Backend(
    "triton",
    is_candidate=lambda device, forced: device.type == "cuda",
    refuse_device=refuse_device,
    has=has,
    dtypes=DTYPES,
    kernels=CHEAP_KERNELS,
    dispatch_key="CUDA" if available() else None,
    load=load,
    missing=missing,
    can_be_forced=True,
    fuses_epilogues=True,
    slowed=slowed,
    lacks=LACKS,
)
