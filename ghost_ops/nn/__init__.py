"""Modules, as people write nets: plain ones, and fused ones with the same constructors and state_dicts."""

from .bottleneck import GhostBottleneck
from .frozen import FrozenProgram
from .fused_bottleneck import FusedGhostBottleneck
from .fused_ghost_module import FusedGhostModule
from .fused_squeeze_excite import FusedSELayer, FusedSqueezeExcite
from .ghost_module import GhostModule
from .graphed import GraphedNet
from .parts import BottleneckParts, GhostParts, SqueezeExciteParts
from .squeeze_excite import SELayer, SqueezeExcite
from .sync_batch_norm import SyncBatchNorm

__all__ = [
    "BottleneckParts",
    "FrozenProgram",
    "FusedGhostBottleneck",
    "FusedGhostModule",
    "FusedSELayer",
    "FusedSqueezeExcite",
    "GhostBottleneck",
    "GhostModule",
    "GhostParts",
    "GraphedNet",
    "SELayer",
    "SqueezeExcite",
    "SqueezeExciteParts",
    "SyncBatchNorm",
]
