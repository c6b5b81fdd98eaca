"""A small GhostNet learns scikit-learn's handwritten digits, plain and fused: same seed, same batches."""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import nn

from .. import surgery
from ..nn import GhostBottleneck
from ..surgery.saved import saved_bytes

PLAIN, FUSED = "plain PyTorch", "ghost_ops"
BATCH = 64


@dataclass
class Run:
    """One training.

    Attributes:
        saved_bytes: what a step's forward keeps for its backward.
        gradient_error: error of the first batch's gradients against float64: norm of the difference over norm.
        losses: the loss of every step.
        epochs: seconds of each.
        accuracy: share of right answers in the test set.
    """

    saved_bytes: int
    gradient_error: float
    losses: list[float] = field(default_factory=list)
    epochs: list[float] = field(default_factory=list)
    accuracy: float = 0.0

    @property
    def epoch_seconds(self) -> float:
        """The median epoch."""
        return statistics.median(self.epochs)

    @property
    def last_loss(self) -> float:
        """The mean loss of the last epoch's steps."""
        return statistics.mean(self.losses[-(len(self.losses) // len(self.epochs)) :])


@dataclass(frozen=True)
class Data:
    """Images N x 1 x side x side, and labels."""

    train: torch.Tensor
    train_labels: torch.Tensor
    test: torch.Tensor
    test_labels: torch.Tensor


class SmallGhostNet(nn.Module):
    """Stem, five Ghost bottlenecks (two halve the map, two with squeeze-and-excite), pooling, classifier."""

    def __init__(self, num_classes: int = 10, in_chans: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_chans, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(
            GhostBottleneck(16, 16, 16),
            GhostBottleneck(16, 48, 24, stride=2),
            GhostBottleneck(24, 72, 24),
            GhostBottleneck(24, 72, 40, dw_kernel_size=5, stride=2, se_ratio=0.25),
            GhostBottleneck(40, 120, 40, dw_kernel_size=5, se_ratio=0.25),
        )
        self.classifier = nn.Linear(40, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.blocks(self.stem(x)).mean((2, 3)))


def load(side: int) -> Data:
    """The 1797 digits of 8 x 8 pixels, enlarged to ``side`` x ``side``; a fifth, drawn by class, is for tests."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train, test, train_labels, test_labels = train_test_split(
        digits.images, digits.target, test_size=0.2, random_state=0, stratify=digits.target
    )

    def images(values) -> torch.Tensor:
        x = torch.from_numpy(values).float()[:, None] / 16
        x = F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
        return ((x - 0.3) / 0.35).to(memory_format=torch.channels_last)

    return Data(images(train), torch.from_numpy(train_labels), images(test), torch.from_numpy(test_labels))


def _gradients(net: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """All parameters' gradients of one step, in a row, in float64; the net stays as it is."""
    net = copy.deepcopy(net)
    F.cross_entropy(net(x), labels).backward()
    return torch.cat([p.grad.flatten().double() for p in net.parameters()])


def _start(nets: dict[str, nn.Module], x: torch.Tensor, labels: torch.Tensor) -> dict[str, Run]:
    """The runs before the first step, with what the first batch shows."""
    exact = _gradients(copy.deepcopy(nets[PLAIN]).double(), x.double(), labels)
    runs = {}
    for name, net in nets.items():
        error = (_gradients(net, x, labels) - exact).norm() / exact.norm()
        probe = copy.deepcopy(net)  # a step changes running statistics
        runs[name] = Run(saved_bytes(partial(probe, x), probe), float(error))
    return runs


def compare(quick: bool, progress: Progress) -> dict[str, Run]:
    """Train the plain and the fused net, in turn epoch by epoch, both channels_last (PyTorch's faster layout here)."""
    side, epochs, steps = (16, 2, 4) if quick else (32, 8, None)
    data = load(side)
    torch.manual_seed(0)
    plain = SmallGhostNet().to(memory_format=torch.channels_last)
    nets = {PLAIN: plain, FUSED: surgery.fuse(copy.deepcopy(plain))}
    runs = _start(nets, data.train[:BATCH], data.train_labels[:BATCH])

    per_epoch = min(steps or len(data.train), len(data.train) // BATCH)
    optimizers = {
        name: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True) for name, net in nets.items()
    }
    schedules = {
        name: torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=epochs * per_epoch)
        for name, optimizer in optimizers.items()
    }
    task = progress.add_task("digits: training", total=epochs * per_epoch * len(nets))
    for epoch in range(epochs):
        order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(epoch)).split(BATCH)
        names = list(nets) if epoch % 2 == 0 else list(nets)[::-1]
        for name in names:
            net, run = nets[name].train(), runs[name]
            start = time.perf_counter()
            for batch in order[:per_epoch]:
                loss = F.cross_entropy(net(data.train[batch]), data.train_labels[batch])
                optimizers[name].zero_grad()
                loss.backward()
                optimizers[name].step()
                schedules[name].step()
                run.losses.append(loss.item())
                progress.advance(task)
            run.epochs.append(time.perf_counter() - start)
    for name, net in nets.items():
        with torch.inference_mode():
            guesses = net.eval()(data.test).argmax(1)
        runs[name].accuracy = float((guesses == data.test_labels).float().mean())
    return runs
