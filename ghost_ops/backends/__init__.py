"""HOW the operators run: ``reference`` (plain PyTorch), ``native`` (compiled kernels for CPUs), ``triton`` (kernels for
CUDA devices), and the choice between."""

from .choose import BACKENDS, Choice, choose, use_backend

__all__ = ["BACKENDS", "Choice", "choose", "use_backend"]
