"""Fused kernels for GhostNet's Ghost modules in PyTorch."""

from . import functional
from .backends import use_backend

__all__ = ["functional", "use_backend"]
