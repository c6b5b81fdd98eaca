"""Fused and frozen modules: one file a block, each with its pieces, how it runs, and how it becomes a program."""

from .bottleneck import BottleneckParts, FusedGhostBottleneck
from .branched_module import BranchedParts
from .conv_layer import ConvLayerParts
from .dfc_attention import DFCAttentionParts
from .errors import Unfusable
from .frozen import FrozenProgram
from .ghost_module import FusedGhostModule, GhostParts
from .graphed import GraphedNet
from .inverted_residual import InvertedResidualParts
from .layer_block import LayerBlock
from .registry import register_block, registered_blocks, unregister_block
from .rep_ghost_module import RepGhostParts
from .squeeze_excite import FusedSELayer, FusedSqueezeExcite, SqueezeExciteParts

__all__ = [
    "BottleneckParts",
    "BranchedParts",
    "ConvLayerParts",
    "DFCAttentionParts",
    "FrozenProgram",
    "FusedGhostBottleneck",
    "FusedGhostModule",
    "FusedSELayer",
    "FusedSqueezeExcite",
    "GhostParts",
    "GraphedNet",
    "InvertedResidualParts",
    "LayerBlock",
    "RepGhostParts",
    "SqueezeExciteParts",
    "Unfusable",
    "register_block",
    "registered_blocks",
    "unregister_block",
]
