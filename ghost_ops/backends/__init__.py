"""HOW the operators run: ``reference`` (plain PyTorch), ``native`` (compiled kernels for CPUs), ``triton`` (kernels for
CUDA devices) and ``cuda`` (CUDA C++ for them); ``ghost_ops.dispatch`` decides between them."""

from ..moved import hand_on
from . import cuda, native, reference, triton
from .native import empty_cache
from .registry import BACKENDS as _BACKENDS

__all__ = ["cuda", "empty_cache", "native", "reference", "triton"]
for _module in (native, cuda, triton, reference):  # the order in which they are asked
    _BACKENDS[_module.BACKEND.name] = _module.BACKEND

_MOVED = {"BACKENDS": "BACKENDS", "choose": "select", "use_backend": "use_backend"}
__getattr__ = hand_on(__name__, _MOVED, "ghost_ops.dispatch")
