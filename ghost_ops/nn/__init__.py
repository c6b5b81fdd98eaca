"""Plain modules, as people write nets: PyTorch without any kernel of ours."""

from ..moved import hand_on
from .bottleneck import GhostBottleneck, GhostBottleneckV2, RepGhostBottleneck
from .bottleneck_v3 import GhostBottleneckV3
from .ghost_conv import GhostConv2d
from .ghost_module import GhostModule
from .ghost_module_v2 import GhostModuleV2
from .ghost_module_v3 import GhostModuleV3
from .rep_ghost_module import RepGhostModule
from .squeeze_excite import SELayer, SqueezeExcite
from .sync_batch_norm import SyncBatchNorm

__all__ = [
    "GhostBottleneck",
    "GhostBottleneckV2",
    "GhostBottleneckV3",
    "GhostConv2d",
    "GhostModule",
    "GhostModuleV2",
    "GhostModuleV3",
    "RepGhostBottleneck",
    "RepGhostModule",
    "SELayer",
    "SqueezeExcite",
    "SyncBatchNorm",
]

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
