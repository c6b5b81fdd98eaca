"""A training step of GhostNet-100, or of one Ghost module: time, gradients against float64, what autograd keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .. import surgery
from ..surgery.saved import saved_bytes
from .baselines import CHANNELS_LAST, FUSED, NCHW, compile_alone
from .cases import NETS, SIDE, ModuleCase, draw_map, randomise
from .machine import Unavailable
from .results import FAILED, MISSING, WRONG, Result, relate
from .timing import interleave, torch_threads

CLASSES = 1000
TOLERANCE = 1e-3  # for loss and gradients, in the Euclidean norm; or FACTOR times eager's error in the same layout
FACTOR, CEILING = 2.0, 0.05  # beyond the ceiling a step is wrong whatever eager does
Forward = Callable[[torch.Tensor], torch.Tensor]
FUSED_LOW = f"{FUSED}_low"


@dataclass(frozen=True)
class Step:
    """A way to train, described as a ``Baseline`` is; ``prepare`` takes a net and returns its forward."""

    name: str
    label: str
    group: str
    layout: torch.memory_format
    prepare: Callable[[nn.Module], Forward]


def _compile(net: nn.Module) -> Forward:
    return compile_alone(net)[0]


STEPS = (
    Step("eager_nchw", "eager, NCHW", "pytorch", NCHW, lambda net: net),
    Step("eager", "eager, channels_last", "pytorch", CHANNELS_LAST, lambda net: net),
    Step(FUSED, "ghost_ops", "target", CHANNELS_LAST, surgery.fuse),
    Step(FUSED_LOW, "ghost_ops, memory=low", "target", CHANNELS_LAST, lambda net: surgery.fuse(net, memory="low")),
    Step("compile", "torch.compile", "pytorch", CHANNELS_LAST, _compile),
)


@dataclass(frozen=True)
class TrainCase:
    """A step (zero_grad, forward, cross-entropy, backward, SGD) on a drawn batch, without dropout."""

    net: str = "ghostnet_100"
    side: int = SIDE
    count = 1
    kind = "train"

    @property
    def name(self) -> str:
        return f"{self.net} step" + ("" if self.side == SIDE else f"@{self.side}")

    def build(self) -> nn.Module:
        return randomise(NETS[self.net](num_classes=CLASSES, dropout=0.0)).train()

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        return draw_map(size, 3, self.side), torch.arange(size) * 37 % CLASSES

    def loss(self, out: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(out, labels)

    def backward(self, loss: torch.Tensor, labels: torch.Tensor) -> None:
        loss.backward()

    def step(self, net: nn.Module, forward: Forward, x: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)

        def call() -> None:
            optimizer.zero_grad(set_to_none=True)
            self.loss(forward(x), labels).backward()
            optimizer.step()

        return call


@dataclass(frozen=True)
class TrainModuleCase:
    """Forward and backward of a Ghost module over batch statistics, for a drawn gradient of its output."""

    module: ModuleCase
    kind = "train_module"

    @property
    def name(self) -> str:
        return self.module.name

    @property
    def count(self) -> int:
        return self.module.count

    def build(self) -> nn.Module:
        return self.module.build().train().requires_grad_(True)

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        grad = draw_map(size, self.module.out, self.module.side)
        return self.module.input(size).requires_grad_(), grad

    def loss(self, out: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        return out

    def backward(self, out: torch.Tensor, grad: torch.Tensor) -> None:
        out.backward(grad.to(out.dtype))

    def step(self, net: nn.Module, forward: Forward, x: torch.Tensor, grad: torch.Tensor) -> Callable[[], None]:
        def call() -> None:
            net.zero_grad(set_to_none=True)
            x.grad = None
            forward(x).backward(grad)

        return call


Case = TrainCase | TrainModuleCase


def gradients(case: Case, net: nn.Module, forward: Forward, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """One float64 vector: loss (a module's output), gradients of all used parameters, and that of x if it needs one."""
    net.zero_grad(set_to_none=True)
    x = x.detach().requires_grad_(x.requires_grad)
    loss = case.loss(forward(x), target)
    case.backward(loss, target)
    parts = [
        loss.detach(),
        *([x.grad] if x.requires_grad else []),
        *(p.grad for p in net.parameters() if p.grad is not None),
    ]
    net.zero_grad(set_to_none=True)
    return torch.cat([part.flatten().double() for part in parts])


def _relative(vector: torch.Tensor, reference: torch.Tensor) -> float:
    error = float((vector - reference).norm() / reference.norm())
    return error if error == error else float("inf")


def run_training(
    case: Case,
    batch: int,
    threads: int,
    names: set[str],
    *,
    rounds: int,
    on_step: Callable[[str], None] = lambda what: None,
) -> list[Result]:
    """Results of the steps in ``names``; one whose gradients are wrong has no speed.

    The error of a result is that of loss and gradients of the first step, relative to float64 in the Euclidean norm.
    Rounding flips some ReLUs of a deep net at random weights, and a flip moves every gradient before it: eager
    channels_last itself is off by several 1e-3 at batch 32. So a step is right within 1e-3, or, where that is more,
    within twice the error of eager in its own layout, and never beyond 5e-2.
    """
    x, target = case.batch(batch)
    rows, calls = [], {}
    with torch_threads(threads):
        on_step("float64 reference")
        exact = case.build().double()
        reference = gradients(case, exact, exact, x.double(), target)
        del exact
        allowed = {}
        for layout in {step.layout for step in STEPS if step.name in names}:
            on_step("eager, for its error")
            eager = case.build().to(memory_format=layout)
            found = gradients(case, eager, eager, x.contiguous(memory_format=layout), target)
            allowed[layout] = min(CEILING, max(TOLERANCE, FACTOR * _relative(found, reference)))
        for step in STEPS:
            if step.name not in names:
                continue
            on_step(f"{step.label}: first step")
            row = Result(case.kind, case.name, batch, threads, case.count, step.name, step.label, step.group)
            rows.append(row)
            call = _prepare(step, case, x, target, reference, allowed[step.layout], row)
            if call is not None:
                calls[step.name] = call
    labels_of = {step.name: step.label for step in STEPS}
    timings = interleave(calls, rounds=rounds, threads=threads, on_sample=lambda name: on_step(labels_of[name]))
    for row in rows:
        if row.baseline in timings:
            row.take(timings[row.baseline])
    return relate(rows)


def _prepare(
    step: Step,
    case: Case,
    x: torch.Tensor,
    target: torch.Tensor,
    reference: torch.Tensor,
    allowed: float,
    row: Result,
) -> Callable[[], None] | None:
    net = case.build().to(memory_format=step.layout)
    x = x.detach().contiguous(memory_format=step.layout).requires_grad_(x.requires_grad)
    if target.dim() == 4:
        target = target.contiguous(memory_format=step.layout)
    try:
        forward = step.prepare(net)
        row.error = _relative(gradients(case, net, forward, x, target), reference)
        if row.error > allowed:
            row.refuse(WRONG, f"its gradients differ from float64 by {row.error:.1e}, allowed {allowed:.1e}")
            return None
        row.saved_bytes = saved_bytes(lambda: case.loss(forward(x), target), net)
    except Unavailable as why:
        row.refuse(MISSING, str(why))
        return None
    except Exception as error:
        row.refuse(FAILED, f"{type(error).__name__}: {error}"[:300])
        return None
    return case.step(net, forward, x, target)
