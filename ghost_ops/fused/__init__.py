"""Fused and frozen modules: one file a block, each with its pieces, how it runs, and how it becomes a program."""

from .bottleneck import BottleneckParts, FusedGhostBottleneck
from .frozen import FrozenProgram
from .ghost_module import FusedGhostModule, GhostParts
from .graphed import GraphedNet
from .squeeze_excite import FusedSELayer, FusedSqueezeExcite, SqueezeExciteParts

__all__ = [
    "BottleneckParts",
    "FrozenProgram",
    "FusedGhostBottleneck",
    "FusedGhostModule",
    "FusedSELayer",
    "FusedSqueezeExcite",
    "GhostParts",
    "GraphedNet",
    "SqueezeExciteParts",
]
