"""Whole nets: GhostNet v1 in three widths, with the state_dict keys of timm's and Huawei's."""

from .ghostnet import GhostNet, ghostnet_050, ghostnet_100, ghostnet_130

__all__ = ["GhostNet", "ghostnet_050", "ghostnet_100", "ghostnet_130"]
