"""The processes of a run: one, or those that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ghost_ops.nn import GhostBottleneck, SyncBatchNorm


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def gather(self, value: object) -> list:
        """One from each process."""
        values = [value]
        if self.size > 1:
            values = [None] * self.size
            dist.all_gather_object(values, value)
        return values

    def total(self, *values: float | torch.Tensor) -> list[float]:
        """Sums over the processes."""
        sums = torch.tensor([float(v) for v in values], dtype=torch.float64, device=self.device)
        if self.size > 1:
            dist.all_reduce(sums)
        return sums.tolist()


@contextmanager
def join(sharded: bool) -> Iterator[World]:
    """NCCL where there are GPUs, else gloo; no process group where there is one process that shards nothing."""
    size, cuda = int(os.environ.get("WORLD_SIZE", 1)), torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if size > 1:
        dist.init_process_group("nccl" if cuda else "gloo")
    elif sharded:
        dist.init_process_group("nccl" if cuda else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield World(int(os.environ.get("RANK", 0)), size, device)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def synchronise_norms(net: nn.Module, world: World) -> nn.Module:
    """BatchNorms over the batches of all processes: PyTorch's on GPUs, on the CPU ours, since PyTorch's refuses it."""
    kind = SyncBatchNorm if world.device.type == "cpu" else nn.SyncBatchNorm
    return kind.convert_sync_batchnorm(net)


def shard(net: nn.Module) -> nn.Module:
    """FSDP2 around each bottleneck, and around the rest. Fused modules inside see whole, plain parameters."""
    for module in list(net.modules()):
        if isinstance(module, GhostBottleneck):
            fully_shard(module)
    return fully_shard(net)


def average(net: nn.Module, decay: float) -> AveragedModel:
    """The exponential moving average of parameters and buffers, sharded ones apart: PyTorch's takes no mixture."""
    update = get_ema_multi_avg_fn(decay)

    def update_alike(averages: list[torch.Tensor], values: list[torch.Tensor], count: torch.Tensor) -> None:
        for sharded in (True, False):
            alike = [pair for pair in zip(averages, values) if isinstance(pair[0], DTensor) == sharded]
            if alike:
                update(*map(list, zip(*alike)), count)

    return AveragedModel(net, multi_avg_fn=update_alike, use_buffers=True)


def replicate(net: nn.Module, world: World) -> nn.Module:
    if world.size == 1:
        return net
    return DistributedDataParallel(net, device_ids=None if world.device.type == "cpu" else [world.device.index])


def reduce_gradients(model: nn.Module, wanted: bool) -> None:
    """Whether the next backward joins the processes' gradients: under accumulation only the last need do so."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(wanted)
    elif isinstance(model, DistributedDataParallel):
        model.require_backward_grad_sync = wanted  # what no_sync() sets for a block


def share_buffers(net: nn.Module, world: World) -> None:
    """The running statistics of all processes become those of the first one, which DDP does before each forward."""
    if world.size > 1:
        for buffer in net.buffers():
            dist.broadcast(buffer, 0)
