"""Every operator, every bottleneck and the whole net, forward and backward, against float64 on the device."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import nn

import ghost_ops
from ghost_ops.bench.comparison import Comparison, Results, results_of, state_of
from ghost_ops.bench.gpu import LAST, SCALE, Device
from ghost_ops.bench.training import TrainCase
from ghost_ops.nn import GhostBottleneck
from ghost_ops.ops.program_train import MEMORY

from .cases import train_case
from .runner import Report, Wrong

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SEEDS = 8  # drawn cases of an operator in a dtype
BATCH = 16
STEPS = 5  # the first ones record launches and capture graphs; the last, on other images, is compared


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def full_float32() -> Iterator[None]:
    """Products of float32 without TF32, on both sides."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def operators(settings: dict, report: Report) -> dict:
    """Drawn calls of every operator, with odd channels, all layouts and options; as ``tests/gpu`` checks them."""
    from ghost_ops.dispatch import select
    from tests.gpu import test_operators as tests
    from tests.ops.cases import Errors

    device = Device(settings["dry"])
    errors = {(kind, dtype): Errors() for kind in tests.KINDS for dtype in DTYPES}
    wrong: list[str] = []
    backends: set[str] = set()

    def figures() -> dict:
        rows = {}
        for (kind, dtype), found in errors.items():
            rows.setdefault(kind, {})[name_of(dtype)] = {
                what: [len(pairs), *((sum(p[i] for p in pairs) / len(pairs)) ** 0.5 for i in (0, 1))]
                for (what, _), pairs in found.squares.items()
            }
        return {"cases, error, eager's": rows, "backends": sorted(backends), "wrong": wrong[:40]}

    with full_float32():
        for seed in range(1 if device.dry else SEEDS):
            for kind, dtype in errors:
                case = tests.drawn(kind, seed)
                backends.add(select(kind, next(iter(case.tensors.values())).to(device.name, dtype)).backend)
                try:
                    tests.check(kind, case, dtype, errors[kind, dtype], device.name, exact_on=device.name)
                except AssertionError as found:
                    wrong.append(f"{kind}, {name_of(dtype)}, seed {seed}: {found}"[:300])
            device.synchronize()
            report(figures())
    for (kind, dtype), found in errors.items():
        try:
            found.assert_within(2.0, single=(4.0, 2.0))
        except AssertionError as why:
            wrong.append(f"{kind}, {name_of(dtype)}: {why}"[:300])
    if not device.dry and backends != {"triton"}:
        wrong.append(f"operators ran on {', '.join(sorted(backends))}")
    return _verdict(figures(), wrong, report)


def fused(module: nn.Module, **options: object) -> nn.Module:
    return ghost_ops.fuse(module, **options)


def _autocast(device: Device, dtype: torch.dtype):
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.name, dtype)


def bottlenecks(settings: dict, report: Report) -> dict:
    """Every bottleneck of the net on the map that reaches it, for a drawn gradient of its output."""
    device = Device(settings["dry"])
    case = train_case(device)
    blocks = list(_with_inputs(device, case, 2 if device.dry else BATCH))
    figures, wrong = {}, []
    with full_float32():
        for dtype in DTYPES[1:2] if device.dry else DTYPES:
            exact, eager = [], []
            for _, block, x, grad in blocks:
                x, grad = x.to(dtype), grad.to(dtype)  # ours and eager get the same arguments
                exact.append(_block_step(device, copy.deepcopy(block).double(), x.double(), grad.double()))
                eager.append(_block_step(device, copy.deepcopy(block), x, grad, dtype))
            for memory in MEMORY:
                comparison = Comparison(dtype)
                for (name, block, x, grad), right, plain in zip(blocks, exact, eager):
                    ours = fused(copy.deepcopy(block), memory=memory)
                    found = _block_step(device, ours, x.to(dtype), grad.to(dtype), dtype)
                    comparison.add(name, found, plain, right)
                what = f"{name_of(dtype)}, memory={memory}"
                figures[what] = comparison.judge()
                wrong += [f"{what}: {found}" for found in comparison.wrong]
                device.synchronize()
                report(figures)
            del exact, eager
    return _verdict(figures, wrong, report)


def _with_inputs(
    device: Device, case: TrainCase, batch: int
) -> Iterator[tuple[str, nn.Module, torch.Tensor, torch.Tensor]]:
    """Path, plain bottleneck, input and gradient of the output, in float32."""
    net, seen = case.build().to(device.name).to(memory_format=LAST), {}
    blocks = {name: m for name, m in net.named_modules() if isinstance(m, GhostBottleneck)}
    hooks = [
        m.register_forward_hook(lambda m, args, out, name=name: seen.__setitem__(name, (args[0], out)))
        for name, m in blocks.items()
    ]
    with torch.no_grad():
        net(case.batch(batch)[0].to(device.name).contiguous(memory_format=LAST))
    for hook in hooks:
        hook.remove()
    generator = torch.Generator().manual_seed(1)
    for name, (x, out) in seen.items():
        grad = torch.randn(out.shape, generator=generator).to(device.name).contiguous(memory_format=LAST)
        yield name, blocks[name], x, grad


def _block_step(
    device: Device, block: nn.Module, x: torch.Tensor, grad: torch.Tensor, dtype: torch.dtype = torch.float32
) -> Results:
    block.zero_grad(set_to_none=True)
    before, x = state_of(block), x.detach().clone().requires_grad_()
    with _autocast(device, dtype) if x.dtype == dtype else nullcontext():
        out = block(x)
    out.backward(grad.to(out.dtype))
    return results_of(block, before, output=out, **{"gradient of the input": x.grad})


def nets(settings: dict, report: Report) -> dict:
    """A training step of the whole net, and several where the library replays graphs."""
    device = Device(settings["dry"])
    case = train_case(device)
    images, labels = (t.to(device.name) for t in case.batch(2 if device.dry else BATCH))
    images = images.contiguous(memory_format=LAST)
    variants = [{"memory": "balanced"}, {"memory": "low"}, {"memory": "balanced", "cuda_graph": True}]
    figures, wrong = {}, []
    with full_float32():
        exact = _net_steps(device, case.build().to(device.name).double(), images.double(), labels, torch.float64)
        for dtype in DTYPES[1:2] if device.dry else DTYPES:
            eager = _net_steps(device, _net(device, case), images, labels, dtype)
            for options in variants:
                comparison = Comparison(dtype)
                net = fused(_net(device, case), **options)
                comparison.add("the net", _net_steps(device, net, images, labels, dtype), eager, exact)
                what = ", ".join([name_of(dtype), *(f"{k}={v}" for k, v in options.items())])
                figures[what] = comparison.judge()
                if "cuda_graph" in options:
                    figures[what] |= (replayed := _replayed(device, net, images, dtype))
                    if not replayed["replayed"] and not device.dry:
                        wrong.append(f"{what}: no block was replayed")
                wrong += [f"{what}: {found}" for found in comparison.wrong]
                device.synchronize()
                report(figures)
    return _verdict(figures, wrong, report)


def _replayed(device: Device, net: nn.Module, images: torch.Tensor, dtype: torch.dtype) -> dict:
    """How many modules run as CUDA graphs, and why others do not."""
    with _autocast(device, dtype):
        rows = ghost_ops.explain(net, images).rows
    why = {row.why.rpartition("not as a CUDA graph, since ")[2] for row in rows if "CUDA graph" in row.why}
    return {"replayed": sum("as a CUDA graph" in row.runs for row in rows), "not replayed, since": sorted(why)}


def _net(device: Device, case: TrainCase) -> nn.Module:
    return case.build().to(device.name).to(memory_format=LAST)


def _net_steps(
    device: Device, net: nn.Module, images: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype
) -> Results:
    before = state_of(net)
    for seen in [images] * (0 if device.dry else STEPS - 1) + [images.flip(0, 3) * 0.9]:
        net.zero_grad(set_to_none=True)
        with nullcontext() if dtype == torch.float64 else _autocast(device, dtype):
            loss = F.cross_entropy(net(seen), labels)
        (loss * SCALE).backward()
    return results_of(net, before, loss=loss)


def _verdict(figures: dict, wrong: list[str], report: Report) -> dict:
    report(figures)
    if wrong:
        raise Wrong(f"{len(wrong)} results, first {wrong[0]}")
    return figures
