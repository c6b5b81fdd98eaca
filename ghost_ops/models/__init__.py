"""Whole nets, with the state_dict keys of timm's and Huawei's, and checkpoints of other projects for them."""

from .checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from .convert import convert_state_dict
from .costs import Cost, CostComparison, CostRow, compare_costs
from .ghost_resnet import GhostResNet50, GhostResNet56, ghost_resnet50, ghost_resnet56
from .ghost_vgg import GhostVGG16, ghost_vgg16
from .ghostify import ghostify
from .ghostnet import GhostNet, ghostnet_050, ghostnet_100, ghostnet_100_d_li14, ghostnet_130
from .ghostnetv2 import GhostNetV2, ghostnetv2_100, ghostnetv2_130, ghostnetv2_160
from .ghostnetv3 import GhostNetV3, ghostnetv3_050, ghostnetv3_100, ghostnetv3_130, ghostnetv3_160
from .registry import MODELS
from .repghostnet import (
    RepGhostNet,
    repghostnet_050,
    repghostnet_058,
    repghostnet_080,
    repghostnet_100,
    repghostnet_111,
    repghostnet_130,
    repghostnet_150,
    repghostnet_200,
)

__all__ = [
    "MODELS",
    "CheckpointError",
    "Cost",
    "CostComparison",
    "CostRow",
    "GhostNet",
    "GhostNetV2",
    "GhostNetV3",
    "GhostResNet50",
    "GhostResNet56",
    "GhostVGG16",
    "RepGhostNet",
    "compare_costs",
    "convert_state_dict",
    "ghost_resnet50",
    "ghost_resnet56",
    "ghost_vgg16",
    "ghostify",
    "ghostnet_050",
    "ghostnet_100",
    "ghostnet_100_d_li14",
    "ghostnet_130",
    "ghostnetv2_100",
    "ghostnetv2_130",
    "ghostnetv2_160",
    "ghostnetv3_050",
    "ghostnetv3_100",
    "ghostnetv3_130",
    "ghostnetv3_160",
    "load_checkpoint",
    "repghostnet_050",
    "repghostnet_058",
    "repghostnet_080",
    "repghostnet_100",
    "repghostnet_111",
    "repghostnet_130",
    "repghostnet_150",
    "repghostnet_200",
    "save_checkpoint",
]
