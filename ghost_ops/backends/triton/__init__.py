"""The operators as Triton kernels for CUDA devices: whether they are there, and each by its name.

Importing this package costs nothing: Triton is imported when an operator first runs on a device.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable

import torch

LEAST_CAPABILITY = (8, 0)  # bfloat16 and TF32 products, asynchronous copies
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_FILES = {
    "ghost_module": "ghost_module",
    "ghost_module_backward": "ghost_module",
    "ghost_module_eval": "ghost_module",
    "ghost_module_train": "ghost_module_train",
    "ghost_module_train_backward": "ghost_module_train",
    "cheap_concat": "cheap_concat",
    "cheap_concat_backward": "cheap_concat",
    "squeeze_excite": "squeeze_excite",
    "squeeze_excite_backward": "squeeze_excite",
    "excite": "squeeze_excite",
    "depthwise": "depthwise",
    "depthwise_backward": "depthwise_gradient",
    "program": "program",
}
OPERATORS = tuple(_FILES)


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


@functools.cache
def load(name: str) -> Callable:
    """The implementation of an operator: imports Triton."""
    return getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)
