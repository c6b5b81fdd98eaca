"""HOW the operators run: ``reference`` (plain PyTorch), ``native`` (compiled kernels for CPUs), ``triton`` and ``cuda``
(kernels for CUDA devices, in Triton and in CUDA C++), and the choice between them."""

from .choose import BACKENDS, Choice, choose, use_backend
from .native import empty_cache

__all__ = ["BACKENDS", "Choice", "choose", "empty_cache", "use_backend"]
