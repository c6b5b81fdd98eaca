"""Plain modules, as people write nets: PyTorch without any kernel of ours."""

from ..moved import hand_on
from .bottleneck import GhostBottleneck
from .ghost_module import GhostModule
from .squeeze_excite import SELayer, SqueezeExcite
from .sync_batch_norm import SyncBatchNorm

__all__ = ["GhostBottleneck", "GhostModule", "SELayer", "SqueezeExcite", "SyncBatchNorm"]

__getattr__ = hand_on(
    __name__,
    (
        "BottleneckParts",
        "FrozenProgram",
        "FusedGhostBottleneck",
        "FusedGhostModule",
        "FusedSELayer",
        "FusedSqueezeExcite",
        "GhostParts",
        "GraphedNet",
        "SqueezeExciteParts",
    ),
    "ghost_ops.fused",
)
