"""A small GhostNet learns scikit-learn's handwritten digits, plain and fused: same seed, same batches."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
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
EPOCHS, STEPS_PER_EPOCH = 4, 22  # of ``trained_net``, on the 1437 images for training
MEAN, STD = 0.3, 0.35  # by which images are normalised


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
        return ((x - MEAN) / STD).to(memory_format=torch.channels_last)

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


class Training:
    """Steps of SGD with one cycle of the learning rate.

    Args:
        net: is trained.
        data: what it learns.
        epochs: how many there will be.
        steps: of each epoch, at most; None for all images.
    """

    def __init__(self, net: nn.Module, data: Data, epochs: int, steps: int | None = None) -> None:
        self.net, self.data = net, data
        self.per_epoch = min(steps or len(data.train), len(data.train) // BATCH)
        self._optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, max_lr=0.1, total_steps=epochs * self.per_epoch
        )

    def run_epoch(self, epoch: int, on_step: Callable[[], object]) -> list[float]:
        """Train on the batches of this epoch, which its number draws; returns the loss of each step."""
        self.net.train()
        order = torch.randperm(len(self.data.train), generator=torch.Generator().manual_seed(epoch)).split(BATCH)
        losses = []
        for batch in order[: self.per_epoch]:
            loss = F.cross_entropy(self.net(self.data.train[batch]), self.data.train_labels[batch])
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            self._schedule.step()
            losses.append(loss.item())
            on_step()
        return losses

    def accuracy(self) -> float:
        """Share of right answers in the test set; the net is in eval mode afterwards."""
        with torch.inference_mode():
            guesses = self.net.eval()(self.data.test).argmax(1)
        return float((guesses == self.data.test_labels).float().mean())


def trained_net(
    side: int = 32, epochs: int = EPOCHS, on_step: Callable[[], object] = lambda: None
) -> tuple[nn.Module, float]:
    """A small GhostNet that has learned the digits, plain and in eval mode, and its share of right answers in tests.

    It is trained fused, which takes some seconds, from the same weights each time.

    Args:
        side: of the images, in pixels.
        epochs: at least 1.
        on_step: is called after each of the ``STEPS_PER_EPOCH`` steps of an epoch.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = SmallGhostNet().to(memory_format=torch.channels_last)
    training = Training(surgery.fuse(net), load(side), epochs)
    for epoch in range(epochs):
        training.run_epoch(epoch, on_step)
    accuracy = training.accuracy()
    return surgery.revert(training.net), accuracy


def compare(quick: bool, progress: Progress) -> dict[str, Run]:
    """Train the plain and the fused net, in turn epoch by epoch, both channels_last (PyTorch's faster layout here)."""
    side, epochs, steps = (16, 2, 4) if quick else (32, 8, None)
    data = load(side)
    torch.manual_seed(0)
    plain = SmallGhostNet().to(memory_format=torch.channels_last)
    nets = {PLAIN: plain, FUSED: surgery.fuse(copy.deepcopy(plain))}
    runs = _start(nets, data.train[:BATCH], data.train_labels[:BATCH])

    trainings = {name: Training(net, data, epochs, steps) for name, net in nets.items()}
    per_epoch = trainings[PLAIN].per_epoch
    task = progress.add_task("digits: training", total=epochs * per_epoch * len(nets))
    for epoch in range(epochs):
        names = list(nets) if epoch % 2 == 0 else list(nets)[::-1]
        for name in names:
            start = time.perf_counter()
            runs[name].losses += trainings[name].run_epoch(epoch, lambda: progress.advance(task))
            runs[name].epochs.append(time.perf_counter() - start)
    for name, training in trainings.items():
        runs[name].accuracy = training.accuracy()
    return runs
