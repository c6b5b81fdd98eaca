"""The article's figure for any net: the feature maps of a layer, and which of them are alike."""

from .layers import Ghosts, default_layer, ghosts_of, shapes_of
from .maps import FeatureMaps, Pair, feature_maps, similarities

__all__ = [
    "FeatureMaps",
    "Ghosts",
    "Pair",
    "default_layer",
    "feature_maps",
    "ghosts_of",
    "shapes_of",
    "similarities",
]
