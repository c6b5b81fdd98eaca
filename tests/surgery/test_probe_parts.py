"""The instruments of the probe: sizes that tell, what is kept of a state, when results agree."""

import math
import sys
from collections import deque

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ghost_ops.surgery import survey
from ghost_ops.surgery._compare import agree
from ghost_ops.surgery._observe import Watch
from ghost_ops.surgery._sizes import Ratio, Size, Sizes
from ghost_ops.surgery._state import Generators, State

from .. import zoo


def told():
    """A size of 8 and the list of what it told."""
    events = []
    return Size(8, lambda: events.append("compared"), lambda: events.append("converted")), events


@pytest.mark.parametrize(
    "compute",
    [
        lambda n: n + 1, lambda n: 1 + n, lambda n: n * 2, lambda n: n // 2, lambda n: n / 2, lambda n: n % 3,
        lambda n: -n, lambda n: n * 0.5, lambda n: n**0.5, lambda n: n - 0.5, lambda n: divmod(n, 3)[1],
        lambda n: round(n / 3), lambda n: math.ceil(n / 3), lambda n: math.floor(n / 3), lambda n: abs(n),
        lambda n: Sizes((n, n)).numel(), lambda n: Sizes((n, n))[1:][0], lambda n: (Sizes((n,)) + (1,))[0],
    ],
)  # fmt: skip
def test_sizes_tell_when_they_are_compared(compute):
    size, events = told()
    value = compute(size)
    assert isinstance(value, (Size, Ratio)) and not events
    assert value > -(10**9) and events == ["compared"]
    assert bool(value + 1) and events == ["compared"] * 2
    assert float(value) == compute(8) or isinstance(compute(size), Size)
    assert "converted" in events


def test_sizes_serve_as_sizes():
    size, events = told()
    x = torch.zeros(2, 8, 8)
    assert x.view(2, size * size).shape == torch.zeros(Sizes((2, size * 8))).shape == (2, 64)
    assert x[:, :size].narrow(1, 0, size).expand(2, size, 8).shape == (2, 8, 8)
    assert (x + 1).sum() / size == 16 and F.interpolate(x, size=size).shape == (2, 8, 8)
    assert events.count("compared") <= 1


def into_a_size(x, y):
    return y if y is None else F.interpolate(y, size=(x.shape[-2], x.shape[-1]), mode="nearest")


def into_a_variable(x, y):
    side = x.shape[-1]
    return y if y is None else F.interpolate(y, size=side, mode="nearest")


def into_python(x, y):
    return y if y is None else F.interpolate(y, scale_factor=1 + len([0] * x.shape[-1]) // 1000)


def into_an_attribute(x, y):
    return y if y is None else F.interpolate(y, size=x.shape[-1].real)


def into_values(x, y):
    return y if y is None else y * torch.full((1,), x.shape[-1])


@pytest.mark.parametrize(
    ("forward", "straight"),
    [
        (into_a_size, sys.version_info >= (3, 11)), (into_a_variable, False), (into_python, False),
        (into_an_attribute, False), (into_values, False),
    ],
)  # fmt: skip
def test_sizes_that_go_straight_into_a_result_of_that_size_are_followed(forward, straight):
    """Though the function has branches: no other size need be tried then."""
    x = torch.zeros(1, 2, 6, 6)
    watch = Watch(frozenset())
    for _ in range(20):  # Python specialises what it runs often
        with watch:
            forward(x, x)
    assert watch.unfollowed != straight and not watch.objections


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.list, self.queue, self.set, self.dictionary = [1], deque([1]), {1}, {"a": [1]}
        self.register_buffer("count", torch.zeros(2))

    def forward(self, x):
        return x


CHANGES = {
    "list": lambda m: m.list.append(2),
    "queue": lambda m: m.queue.append(2),
    "set": lambda m: m.set.add(2),
    "dictionary": lambda m: m.dictionary["a"].append(2),
    "count": lambda m: m.count.add_(1),
    "new": lambda m: setattr(m, "new", 1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_seen_and_put_back(name):
    module = nn.Sequential(Holder())
    state = State(module)
    assert state.difference() is None
    CHANGES[name](module[0])
    assert name in state.difference()
    state.restore()
    assert state.difference() is None and State(module).difference() is None
    assert not hasattr(module[0], "new") and module[0].count.sum() == 0


def test_generators():
    generators = Generators()
    assert not generators.have_moved()
    first = torch.rand(2)
    assert generators.have_moved()
    generators.restore()
    assert torch.equal(torch.rand(2), first)


def test_agreement():
    x = torch.tensor([1.0, float("nan"), float("inf"), 0.0], dtype=torch.float64).view(1, 1, 2, 2)
    assert agree(x, x.clone()) and agree(x, x + 1e-12) and not agree(x, x + 1e-6)
    assert not agree(x, x.nan_to_num()) and not agree(x, x.float()) and not agree(x, x[0]) and not agree(x, None)
    huge = torch.cat([torch.full_like(x, 1e30), torch.ones_like(x)])
    assert not agree(huge, huge + 1e-3)  # a huge image hides nothing in its neighbour
    assert agree(None, None)


class WithSoftsign(zoo.ArticleGhostModule):
    def forward(self, x):
        y = F.softsign(self.primary_conv(x))
        return torch.cat([y, F.softsign(self.cheap_operation(y))], 1)


class NormOfAll(nn.Module):
    def __init__(self):
        super().__init__()
        self.primary, self.cheap = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(16)

    def forward(self, x):
        y = self.primary(x)
        return F.relu(self.norm(torch.cat([y, self.cheap(y)], 1)))


def with_instance_norm():
    module = zoo.ArticleGhostModule(6, 10)
    module.primary_conv[1] = nn.InstanceNorm2d(5)
    return module


class OnlyWeights(zoo.ArticleGhostModule):
    def forward(self, x):
        y = F.conv2d(x, self.primary_conv[0].weight)
        return torch.cat([y, F.conv2d(y, self.cheap_operation[0].weight, padding=1, groups=5)], 1)


class OneMoreConvolution(zoo.ArticleGhostModule):
    def __init__(self, inp, oup):
        super().__init__(inp, oup)
        self.more = nn.Sequential(nn.Conv2d(inp, inp, 1), nn.Conv2d(inp, oup, 1))

    def forward(self, x):
        return super().forward(x) + self.more(x)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: WithSoftsign(6, 10, relu=False), "its forward also calls softsign"),
        (NormOfAll, "its BatchNorm 'norm' normalises the concatenation"),
        (with_instance_norm, "its normalisation 'primary_conv.1' is of the class InstanceNorm2d"),
        (lambda: OneMoreConvolution(6, 10), "it also calls 'more.0', a convolution more"),
        (lambda: OnlyWeights(6, 10), "it calls 0 convolutions where a Ghost module calls two"),
    ],
)
def test_reasons_are_true(make, reason):
    module = make()
    (finding,) = [f for f in survey(module) if f.module is module]
    assert finding.parts is None and reason in finding.reason
    assert "failed" not in finding.reason and "Error" not in finding.reason


class Branching(zoo.ArticleGhostModule):
    def forward(self, x):
        return super().forward(x) if self.training or x.shape[-1] > 99 else super().forward(x.relu())


class WithFloats(zoo.ArticleGhostModule):
    """Its own constant is in float32, so that it cannot be run in float64."""

    def __init__(self, *args):
        super().__init__(*args)
        self.one = torch.ones(10, 1, 1, 1)

    def forward(self, x):
        return F.conv2d(super().forward(x), self.one, groups=10)


def test_an_objection_comes_before_a_failure():
    assert "branches on the size" in survey(Branching(6, 10))[0].reason


def test_what_runs_in_float32_only():
    (finding,) = survey(WithFloats(6, 10))
    assert finding.parts is not None and set(finding.reads) == {("", "oup"), ("", "one")}
