"""The net that the parts run: GhostNet-100, or in a dry run a small one."""

from __future__ import annotations

from ghost_ops.bench.cases import NETS, NetCase
from ghost_ops.bench.gpu import Device
from ghost_ops.bench.training import TrainCase
from ghost_ops.demo.digits import SmallGhostNet

SMALL, SMALL_SIDE = "small_ghostnet", 16


def _small(num_classes: int = 1000, dropout: float = 0.0) -> SmallGhostNet:
    return SmallGhostNet(num_classes, in_chans=3)


NETS[SMALL] = _small


def train_case(device: Device) -> TrainCase:
    return TrainCase(SMALL, SMALL_SIDE) if device.dry else TrainCase()


def net_case(device: Device) -> NetCase:
    return NetCase(SMALL, SMALL_SIDE) if device.dry else NetCase("ghostnet_100")
