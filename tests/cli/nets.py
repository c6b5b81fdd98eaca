"""Factories that commands call by name, and things that are none."""

import torch
from torch import nn

from ghost_ops.bench.cases import randomise
from ghost_ops.nn import GhostModule

CONSTANT = 3
net = nn.Conv2d(3, 4, 1)


def small() -> nn.Module:
    """A net that freezes as one program."""
    layers = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), GhostModule(8, 16)
    return randomise(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)))


def two_inputs() -> nn.Module:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.conv(x) + y

    return Two()


def branches() -> nn.Module:
    """A net that torch.export does not take."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ghost = GhostModule(3, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.ghost(x)
            return y if float(y.sum()) > 0 else 2 * y

    return Branches()


def features() -> nn.Module:
    """A net without a convolution."""
    return nn.Sequential(nn.Linear(3, 4))


def raises() -> nn.Module:
    raise ValueError("no such luck\nand more lines")


def leaves() -> nn.Module:
    raise SystemExit(3)


def returns_none() -> None:
    return None


def needs(size: int) -> nn.Module:
    return nn.Conv2d(size, 4, 1)


def plain_linear() -> nn.Module:
    """A net of which nothing is fused or frozen, though it says how many channels an image has."""

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Conv2d(3, 4, 1)
            self.linear = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x)

    return Linear()


def fixed() -> nn.Module:
    """A net for images of 8 x 8 pixels."""
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4 * 64, 2))


def eight() -> nn.Module:
    """A net for images of 8 channels."""
    return nn.Sequential(nn.Conv2d(8, 4, 1))
