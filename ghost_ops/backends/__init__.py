"""HOW the operators run: ``reference`` (plain PyTorch), ``native`` (compiled kernels for CPUs), ``triton`` (kernels for
CUDA devices), and the choice between."""

from .choose import BACKENDS, Choice, choose, use_backend
from .native import empty_cache

__all__ = ["BACKENDS", "Choice", "choose", "empty_cache", "use_backend"]
