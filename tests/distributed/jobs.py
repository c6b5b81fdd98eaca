"""What the processes do: a few training steps in one setting, and everything that came of them."""

from __future__ import annotations

import copy
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.algorithms.join import Join
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from ghost_ops import explain, fuse
from ghost_ops.fused import graph
from ghost_ops.fused.graph import CudaGraphs
from ghost_ops.nn import SyncBatchNorm

from .. import zoo
from ..fused.emulated_graph import EmulatedGraphs
from ..helpers import make_map, randomise

PLAIN, FUSED, EXACT = "plain", "fused", "exact"
GHOSTS = 5  # Ghost modules in a net


@dataclass(frozen=True)
class Setting:
    """How a net is trained.

    Attributes:
        batches: for each process the sizes of its batches.
        wrap: "ddp", "fsdp" (each block, then the net) or "" for none.
        join: within ``Join``, for numbers of batches that differ.
        accumulate: one optimizer step, at the end.
        fuse_last: after the conversion to SyncBatchNorm.
        memory: what fused blocks keep.
    """

    batches: tuple[tuple[int, ...], ...] = ((3, 3), (3, 3))
    wrap: str = "ddp"
    sync_bn: bool = False
    join: bool = False
    compile: bool = False
    double: bool = False
    accumulate: bool = False
    fuse_last: bool = False
    memory: str = "balanced"


def make_net() -> nn.Module:
    blocks = zoo.HuaweiBottleneck(8, 16, 8, se=True), zoo.ArticleBottleneck(8, 16, 12, 3, 2, True)
    return randomise(zoo.Net(*blocks, zoo.YoloGhostConv(12, 12)))


class _Calls(TorchDispatchMode):
    """Counts calls of the package's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "ghost_ops":
            self.counts[func._schema.name.partition("::")[2]] += 1
        return func(*args, **(kwargs or {}))


def images(rank: int, step: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return make_map((size, 3, 17, 17), seed=100 * rank + step), (torch.arange(size) + rank + step) % 5


def prepare(kind: str, setting: Setting) -> nn.Module:
    """The net, converted and fused, not yet wrapped."""
    net = make_net()
    if kind == FUSED and not setting.fuse_last:
        fuse(net, memory=setting.memory)
    if setting.sync_bn:
        net = SyncBatchNorm.convert_sync_batchnorm(net)
    if kind == FUSED and setting.fuse_last:
        fuse(net, memory=setting.memory)
    return net.double() if kind == EXACT or setting.double else net


def shard(net: nn.Module) -> nn.Module:
    for block in net.blocks:
        fully_shard(block)
    return fully_shard(net)


def whole(t: torch.Tensor) -> torch.Tensor:
    return (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone()


def train(rank: int, kind: str, setting: Setting) -> dict[str, object]:
    """Losses, parameters and their last gradients, buffers, how often operators ran, and what runs each module."""
    net = prepare(kind, setting)
    model = net
    if setting.wrap == "ddp":
        model = DistributedDataParallel(net)
    elif setting.wrap == "fsdp":
        model = shard(net)
    call = torch.compile(model, backend="aot_eager") if setting.compile and kind == FUSED else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses, dtype = [], next(net.parameters()).dtype
    sizes = setting.batches[rank]
    with _Calls() if not setting.compile else nullcontext() as calls, Join([model]) if setting.join else nullcontext():
        for step, size in enumerate(sizes):
            x, labels = images(rank, step, size)
            last = step + 1 == len(sizes)
            waits = setting.accumulate and not last
            with model.no_sync() if waits else nullcontext():
                loss = F.cross_entropy(call(x.to(dtype)).to(dtype), labels)
                loss.backward()
            if not waits:
                gradients = {f"gradient of {n}": whole(p.grad) for n, p in net.named_parameters()}
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.detach())
    results = {"losses": torch.stack(losses), **gradients}
    results |= {name: whole(t) for name, t in (*net.named_parameters(), *net.named_buffers())}
    runs = {}
    if kind == FUSED and not setting.compile:
        example = images(rank, 0, 2)[0].to(dtype)
        runs = {row.name: f"{row.runs}: {row.why}" for row in explain(net.train(), example).rows}
    counts = calls.counts if calls is not None else Counter()
    return {"tensors": results, "counts": dict(counts), "runs": runs}


def full_batch(setting: Setting) -> dict[str, torch.Tensor]:
    """In float64, one process, BatchNorm, the batches of all processes as one: what SyncBatchNorm stands for.

    Each process's loss is the mean over its own images and DDP takes the mean of the processes: so they are weighted.
    """
    net = make_net().double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for step in range(len(setting.batches[0])):
        pairs = [images(rank, step, sizes[step]) for rank, sizes in enumerate(setting.batches)]
        logits = net(torch.cat([x for x, _ in pairs]).double()).split([len(x) for x, _ in pairs])
        loss = sum(F.cross_entropy(part, labels) for part, (_, labels) in zip(logits, pairs)) / len(pairs)
        optimizer.zero_grad()
        loss.backward()
        gradients = {f"gradient of {n}": p.grad.clone() for n, p in net.named_parameters()}
        optimizer.step()
    return gradients | {name: t.detach() for name, t in (*net.named_parameters(), *net.named_buffers())}


def evaluate_sharded(rank: int) -> dict[str, object]:
    """Eval of a sharded net as it stands, and what ran."""
    net = shard(fuse(make_net())).eval()
    with torch.inference_mode(False), torch.no_grad(), _Calls() as calls:
        out = net(images(rank, 0, 3)[0])
        again = net(images(rank, 0, 3)[0])
    assert torch.equal(out, again)
    return {"out": out, "counts": dict(calls.counts), "expected": make_net().eval()(images(rank, 0, 3)[0]).detach()}


def fuse_sharded(rank: int) -> tuple[list[str], str]:
    """What ``fuse`` says of a net that is sharded already, and whether it still runs."""
    import warnings

    net = shard(make_net())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fuse(net)
    net(images(rank, 0, 2)[0]).sum().backward()
    return [str(w.message) for w in caught], type(net.blocks[0]).__name__


def sync_batch_norm(rank: int, sizes: tuple[int, ...], dtype: torch.dtype, options: dict) -> dict[str, torch.Tensor]:
    """One layer: output, gradients and buffers for this process's part of a batch."""
    norm = randomise(SyncBatchNorm(4, **options)).to(dtype)
    x = make_map((sum(sizes), 4, 3, 5), dtype).split(sizes)[rank].clone().requires_grad_()
    for _ in range(2):
        norm.zero_grad()
        x.grad = None
        out = norm(x)
        (out * make_map((sum(sizes), 4, 3, 5), dtype, seed=1).split(sizes)[rank]).sum().backward()
    gradients = {}
    for name, p in norm.named_parameters():
        dist.all_reduce(p.grad)
        gradients[name] = p.grad
    return {"out": out.detach(), "x": x.grad, **gradients, **copy.deepcopy(dict(norm.named_buffers()))}


def refuses_one_value(rank: int) -> str:
    try:
        SyncBatchNorm(4)(torch.ones(1 - rank, 4, 1, 1))
    except ValueError as error:
        return str(error)
    return "nothing"


def fsdp1(rank: int, kind: str, memory: str) -> dict[str, object]:
    """Two steps under the older FSDP with ``use_orig_params``: outputs, gradients of the input, and what runs."""
    blocks = nn.Sequential(zoo.HuaweiBottleneck(8, 16, 12, 3, 2, True), zoo.HuaweiBottleneck(12, 24, 12))
    net = randomise(blocks).train()
    if kind == FUSED:
        fuse(net, memory=memory)
    net = nn.Sequential(
        *(FullyShardedDataParallel(b, use_orig_params=True, device_id=torch.device("cpu")) for b in net)
    )
    optimizer, found = torch.optim.SGD(net.parameters(), lr=0.01), {}
    for step in range(2):
        x = make_map((4, 8, 9, 7), seed=10 * rank + step).requires_grad_()
        optimizer.zero_grad()
        out = net(x)
        out.square().mean().backward()
        optimizer.step()
        found |= {f"output {step}": out.detach(), f"gradient of x {step}": x.grad}
    runs = {row.name: row.runs for row in explain(net, x.detach()).rows} if kind == FUSED else {}
    return {"tensors": found, "runs": runs}


def _emulated() -> EmulatedGraphs:
    graph.device_graphs = EmulatedGraphs()
    return graph.device_graphs


def graphed_and_sharded(rank: int) -> dict[str, object]:
    """Blocks that are to run as graphs, in FSDP2 and in the older FSDP: results beside those of their twins, replays,
    and what is said."""
    device, results = _emulated(), {}
    for name, wanted in (("graphs", True), ("twin", False)):
        net = shard(fuse(make_net(), cuda_graph=wanted))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        for step in range(6):
            x, labels = images(rank, step, 3)
            F.cross_entropy(net(x), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        results[name] = {key: whole(t) for key, t in (*net.named_parameters(), *net.named_buffers())}
        if wanted:
            results["said"] = [row.why for row in explain(net, images(rank, 0, 2)[0]).rows if "CUDA graph" in row.why]
    blocks = randomise(nn.Sequential(zoo.HuaweiBottleneck(8, 16, 12, 3, 2, True), zoo.HuaweiBottleneck(12, 24, 12)))
    for name, wanted in (("graphs", True), ("twin", False)):
        fused = fuse(copy.deepcopy(blocks), cuda_graph=wanted)
        cpu = {"use_orig_params": True, "device_id": torch.device("cpu")}
        net = nn.Sequential(*(FullyShardedDataParallel(block, **cpu) for block in fused))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        for step in range(6):
            optimizer.zero_grad()
            results[name][f"loss {step}"] = loss = net(make_map((4, 8, 9, 7), seed=10 * rank + step)).square().mean()
            loss.backward()
            optimizer.step()
    graph.device_graphs = CudaGraphs()
    for name in ("graphs", "twin"):
        results[name] = {key: t.detach() for key, t in results[name].items()}
    return results | {"replays": len(device.replays)}


def graphed(rank: int) -> dict[str, object]:
    """A net with emulated CUDA graphs in DDP beside its twin without: results, and when buckets were ready."""
    device, ready = _emulated(), []
    results = {}
    for name, wanted in (("graphs", True), ("twin", False)):
        net = fuse(make_net(), cuda_graph=wanted)
        model = DistributedDataParallel(net, bucket_cap_mb=0.001)

        def hook(group, bucket):  # DDP looks at annotations, and takes no text
            ready.append(len(device.replays))
            return allreduce_hook(group, bucket)

        model.register_comm_hook(None, hook)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for step in range(7):
            for micro in range(2):
                x, labels = images(rank, 2 * step + micro, 3)
                with model.no_sync() if micro == 0 else nullcontext():
                    F.cross_entropy(model(x), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        results[name] = {key: whole(t) for key, t in (*net.named_parameters(), *net.named_buffers())}
        if wanted:
            results["ready"], results["replays"] = list(ready), len(device.replays)
    graph.device_graphs = CudaGraphs()
    return results
