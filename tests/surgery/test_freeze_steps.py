"""Steps that compute one of PyTorch's modules or functions on its own, within a frozen net's program."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ghost_ops import GhostModule
from ghost_ops.fused import FrozenProgram
from ghost_ops.program import Activation, MaxPool, decode
from ghost_ops.surgery import freeze

from ..helpers import randomise
from .test_freeze import _as_with_kernels  # noqa: F401  (a fixture)


class Between(nn.Module):
    """Something between two Ghost modules."""

    def __init__(self, between) -> None:
        super().__init__()
        self.first = GhostModule(6, 10, relu=False)
        self.between = between
        self.last = GhostModule(10, 7)

    def forward(self, x):
        return self.last(self.between(self.first(x)))


class Function(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def programs(net: nn.Module) -> list[FrozenProgram]:
    return [m for m in net.modules() if isinstance(m, FrozenProgram)]


POOLS = {
    "3, 2, 1": nn.MaxPool2d(3, 2, 1),
    "2": nn.MaxPool2d(2),
    "5, 1, 2": nn.MaxPool2d(5, 1, 2),
    "3, 3": nn.MaxPool2d((3, 3), (3, 3)),
    "function": Function(lambda x: F.max_pool2d(x, 3, stride=2, padding=1)),
}
ACTS = {
    "relu": nn.ReLU(),
    "gelu": nn.GELU(),
    "gelu by tanh": nn.GELU(approximate="tanh"),
    "elu": nn.ELU(0.7),
    "leaky": nn.LeakyReLU(0.2),
    "prelu": nn.PReLU(10),
    "prelu of one": nn.PReLU(),
    "mish": nn.Mish(),
    "hard-sigmoid": nn.Hardsigmoid(),
    "function": Function(lambda x: F.hardswish(x)),
    "method": Function(lambda x: x.sigmoid()),
}


@pytest.mark.parametrize("name, kind", [*((n, MaxPool) for n in POOLS), *((n, Activation) for n in ACTS)])
def test_is_a_step(name, kind):
    net = randomise(Between((POOLS if kind is MaxPool else ACTS)[name])).eval()
    frozen = freeze(net)
    (program,) = programs(frozen)
    assert [type(step) for step in decode(program.steps)].count(kind) == 1
    for x in (torch.randn(2, 6, 19, 22), torch.randn(1, 6, 12, 9).to(memory_format=torch.channels_last)):
        x[0, 3, 2, 2] = float("nan")
        with torch.no_grad():
            expected = net(x)
            torch.testing.assert_close(frozen(x), expected, rtol=1e-4, atol=1e-4, equal_nan=True)
            threads = torch.get_num_threads()
            torch.set_num_threads(2)
            torch.testing.assert_close(frozen(x), expected, rtol=1e-4, atol=1e-4, equal_nan=True)
            torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "between",
    [
        nn.MaxPool2d((3, 2)),
        nn.MaxPool2d(3, ceil_mode=True),
        nn.MaxPool2d(3, dilation=2),
        nn.Softplus(),
        Function(lambda x: F.relu(x) + F.relu(-x)),
    ],
    ids=["not square", "ceil", "dilation", "no activation of ours", "a sum"],
)
def test_others_stay_pytorch(between):
    net = randomise(Between(between)).eval()
    frozen, x = freeze(net), torch.randn(2, 6, 17, 18)
    assert len(programs(frozen)) == 2
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), net(x), rtol=1e-4, atol=1e-4)


def test_after_the_stem_and_before_the_mean():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1), GhostModule(8, 12, relu=False), nn.SiLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip
    net = randomise(net).eval()
    frozen, x = freeze(net), torch.randn(3, 3, 45, 38)
    (program,) = programs(frozen)
    assert [type(s).__name__ for s in decode(program.steps)] == [
        "Conv", "MaxPool", "Ghost", "Activation", "Pool", "Linear",
    ]  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), net(x), rtol=1e-4, atol=1e-4)
