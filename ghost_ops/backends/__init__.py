"""HOW the operators run: ``reference`` (plain PyTorch), ``native`` (compiled kernels for CPUs), ``triton`` (kernels for
CUDA devices) and ``cuda`` (CUDA C++ for them); ``ghost_ops.dispatch`` decides between them."""

from ..moved import hand_on
from .native import empty_cache

__all__ = ["empty_cache"]

_MOVED = {"BACKENDS": "BACKENDS", "choose": "select", "use_backend": "use_backend"}
__getattr__ = hand_on(__name__, _MOVED, "ghost_ops.dispatch")
