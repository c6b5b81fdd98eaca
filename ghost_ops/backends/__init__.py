"""HOW the operators run: ``reference`` (plain PyTorch), ``native`` (the compiled kernels), and the choice between."""

from .choose import BACKENDS, Choice, choose, use_backend

__all__ = ["BACKENDS", "Choice", "choose", "use_backend"]
