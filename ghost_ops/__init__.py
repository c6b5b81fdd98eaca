"""Fused kernels for GhostNet's Ghost modules in PyTorch.

``fuse`` takes anybody's GhostNet and makes its Ghost modules run fused, sharing the very parameters; the modules of
``ghost_ops.nn`` and the nets of ``ghost_ops.models`` are there to build with; ``functional`` has the operators.
"""

import typing as _typing
from importlib import import_module as _import_module
from importlib import metadata as _metadata

from . import functional, models
from .ahead import warm_up
from .backends import empty_cache
from .dispatch import use_backend
from .fused import (
    FusedGhostBottleneck,
    FusedGhostModule,
    FusedSELayer,
    FusedSqueezeExcite,
    LayerBlock,
    register_block,
)
from .models import ghostify
from .nn import (
    GhostBottleneck,
    GhostModule,
    SELayer,
    SqueezeExcite,
)
from .ops.decompositions import decompositions
from .surgery import explain, freeze, fuse, revert, thaw

try:
    __version__ = _metadata.version("ghost-ops")
except _metadata.PackageNotFoundError:  # a checkout that was not installed
    __version__ = "unknown"


if _typing.TYPE_CHECKING:
    from .profiling import profile
else:

    def __getattr__(name: str) -> object:
        if name != "profile":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        profiling = _import_module(".profiling", __name__)  # what it imports takes a while, and few need it
        return globals().setdefault(name, profiling.profile)


__all__ = [
    "FusedGhostBottleneck",
    "FusedGhostModule",
    "FusedSELayer",
    "FusedSqueezeExcite",
    "GhostBottleneck",
    "GhostModule",
    "LayerBlock",
    "SELayer",
    "SqueezeExcite",
    "decompositions",
    "empty_cache",
    "explain",
    "freeze",
    "functional",
    "fuse",
    "ghostify",
    "models",
    "profile",
    "register_block",
    "revert",
    "thaw",
    "use_backend",
    "warm_up",
]
