"""Whole nets, with the state_dict keys of timm's and Huawei's, and checkpoints of other projects for them."""

from .checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from .convert import convert_state_dict
from .ghostnet import GhostNet, ghostnet_050, ghostnet_100, ghostnet_100_d_li14, ghostnet_130
from .registry import MODELS

__all__ = [
    "MODELS",
    "CheckpointError",
    "GhostNet",
    "convert_state_dict",
    "ghostnet_050",
    "ghostnet_100",
    "ghostnet_100_d_li14",
    "ghostnet_130",
    "load_checkpoint",
    "save_checkpoint",
]
