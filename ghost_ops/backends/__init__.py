"""HOW the operators run: ``reference`` (plain PyTorch), ``native`` (compiled kernels for CPUs), ``triton`` (kernels for
CUDA devices) and ``cuda`` (CUDA C++ for them); ``ghost_ops.dispatch`` decides between them."""

import importlib
import warnings

from . import cuda, native, reference, triton
from .native import empty_cache
from .registry import BACKENDS as _BACKENDS

__all__ = ["cuda", "empty_cache", "native", "reference", "triton"]
for _module in (native, cuda, triton, reference):  # the order in which they are asked
    _BACKENDS[_module.BACKEND.name] = _module.BACKEND


def __getattr__(name: str) -> object:
    """Names that moved to ``ghost_ops.dispatch``, for one release."""
    moved = {"BACKENDS": "BACKENDS", "choose": "select", "use_backend": "use_backend"}
    if name not in moved:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    where = f"{__name__.rpartition('.')[0]}.dispatch"
    message = f"{__name__}.{name} is {where}.{moved[name]} now"
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return getattr(importlib.import_module(where), moved[name])
