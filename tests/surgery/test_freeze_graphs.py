"""Nets that branch: what of a graph becomes one program, and what is left to PyTorch."""

from __future__ import annotations

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ghost_ops import explain, freeze
from ghost_ops.fused import FrozenProgram
from ghost_ops.fused.frozen_state import state_of
from ghost_ops.program import decode

from .. import zoo
from ..helpers import assert_as_accurate, make_map, randomise
from .test_freeze import _as_with_kernels  # noqa: F401  (a fixture)


class Net(nn.Module):
    """A forward over two convolutions of eight channels, and whatever modules it is given."""

    def __init__(self, forward, *more):
        super().__init__()
        self.first, self.second = zoo.conv_bn(8, 8, 1, act=nn.ReLU()), zoo.conv_bn(8, 8, 3, act=nn.SiLU())
        self.more = nn.ModuleList(more)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def kinds(frozen):
    """The names of the steps of each program."""
    programs = [m for m in frozen.modules() if isinstance(m, FrozenProgram)]
    return [[type(step).__name__ for step in decode(program.steps)] for program in programs]


def frozen_of(net, channels=8, sizes=((2, 9, 8), (1, 14, 6))):
    """The frozen net, of which every result is as accurate as the net's."""
    net = randomise(net).eval()
    frozen, exact = freeze(net), copy.deepcopy(net).double()
    for n, h, w in sizes:
        x = make_map((n, channels, h, w), seed=n)
        kept = x.clone()
        with torch.no_grad():
            results = [f(t) for f, t in ((frozen, x), (net, x.clone()), (exact, x.double()))]
        assert torch.equal(x, kept), "it writes to its input"
        results = [r if isinstance(r, (list, tuple)) else [r] for r in results]
        for ours, eager, truth in zip(*results, strict=True):
            assert_as_accurate(ours, eager, truth)
    return frozen


def shuffle(x, groups=2):
    n, c, h, w = x.size()
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


def excited(self, x, gate=torch.sigmoid):
    means = F.relu(self.more[0](x.mean((2, 3), keepdim=True)))
    return x * gate(self.more[1](means))


def fifth(x):
    """Paddle's hard sigmoid."""
    return torch.clamp(0.5 + 0.2 * x, min=0, max=1)


def third(x):
    return F.relu6(x - 0.5 + 3) / 6


def excited_by_linear(self, x):
    n, c = x.shape[:2]
    means = self.more[1](F.relu(self.more[0](F.adaptive_avg_pool2d(x, 1).view(n, c))))
    return x * F.hardsigmoid(means).view(n, c, 1, 1).expand_as(x)


def gate(self, x):
    y = self.first(x)
    low = torch.sigmoid(self.second(F.avg_pool2d(x, 2)))
    return y * F.interpolate(low, size=(y.shape[-2], y.shape[-1]), mode="nearest")


WHOLE = {
    "sum": (lambda s, x: s.first(x) + s.second(x), {"Conv": 1, "Ghost": 1}),
    "sum in place": (lambda s, x: s.second(s.first(x).add_(s.second(x))), {}),
    "sum of three": (lambda s, x: sum([s.first(x), x, s.second(x)]), {}),
    "residual, then ReLU": (lambda s, x: F.relu(s.more[0](s.first(x)) + x, inplace=True), {"Conv": 1, "Activation": 0}),
    "concatenation": (lambda s, x: torch.cat([s.first(x), x, s.second(x)], 1), {"Concat": 1}),
    "concatenation of concatenations": (
        lambda s, x: s.second(torch.cat([torch.cat([s.first(x), x], 1), x], dim=-3)[:, 4:12]),
        {"Concat": 1, "Slice": 1},
    ),
    "parts side by side again": (lambda s, x: s.second(torch.cat(s.first(x).chunk(2, 1), 1)), {"Concat": 0}),
    "parts": (lambda s, x: torch.cat([x, s.first(x)[:, 2:7], s.second(x).narrow(1, 1, 3)], 1), {"Slice": 2}),
    "chunks in a list": (lambda s, x: torch.cat([*list(s.first(x).chunk(3, 1))[::2], s.second(x)], 1), {"Slice": 2}),
    "split": (lambda s, x: torch.cat(s.second(s.first(x)).split((3, 5), 1)[::-1], 1), {"Slice": 2}),
    "gate": (gate, {"AvgPool": 1, "Multiply": 1, "Upsample": 0}),
    "product": (lambda s, x: s.first(x) * s.second(x), {"Multiply": 1}),
    "shuffle": (lambda s, x: s.second(shuffle(s.first(x))), {"Shuffle": 1}),
    "shuffle by a module": (lambda s, x: s.second(s.more[0](s.first(x))), {"Shuffle": 1}),
    "upsampling to a map": (
        lambda s, x: F.interpolate(s.first(F.max_pool2d(x, 2)), x.shape[2:]) + s.second(x), {"Upsample": 1},
    ),
    "bilinear upsampling to a map": (
        lambda s, x: F.interpolate(s.first(F.max_pool2d(x, 2)), size=x.shape[2:], mode="bilinear") * s.second(x),
        {"BilinearUpsample": 1, "Multiply": 1},
    ),
    "bilinear upsampling of corners": (
        lambda s, x: s.second(F.interpolate(s.first(x), scale_factor=1.7, mode="bilinear", align_corners=True)),
        {"BilinearUpsample": 1},
    ),
    "bilinear upsampling by a module": (lambda s, x: s.second(s.more[0](s.first(x))), {"BilinearUpsample": 1}),
    "bilinear upsampling to a size": (
        lambda s, x: s.second(F.interpolate(s.first(x), (11, 5), mode="bilinear")), {"BilinearUpsample": 1},
    ),
    "upsampling by two": (lambda s, x: s.second(F.interpolate(s.first(x), scale_factor=2)), {"Upsample": 1}),
    "a BatchNorm of its own": (lambda s, x: s.more[1](x) + s.second(x), {"Depthwise": 1}),
    "an activation first": (lambda s, x: s.second(F.hardswish(x)), {"Activation": 1}),
    "excitation": (lambda s, x: s.first(excited(s, s.second(x))), {"Excite": 1}),
    "excitation by linear layers": (lambda s, x: s.first(excited_by_linear(s, s.second(x))), {"Excite": 1}),
    "excitation before a dense convolution": (
        lambda s, x: s.second(excited(s, s.first(x))), {"Excite": 1, "Scale": 1, "Squeeze": 0},
    ),
    "excitation of the input": (lambda s, x: s.second(excited(s, x)), {"Squeeze": 1, "Excite": 1, "Scale": 1}),
    "excitation that is added": (lambda s, x: excited(s, s.second(x)) + x, {"Scale": 1}),
    "excitation that is concatenated": (
        lambda s, x: s.first(torch.cat([excited(s, s.second(x)), x], 1)[:, :8]), {"Scale": 1},
    ),
    "excitation of excitations": (
        lambda s, x: s.second(excited(s, excited(s, s.first(x)))), {"Excite": 2, "Scale": 2, "Squeeze": 0},
    ),
    "excitations side by side": (
        lambda s, x: s.first(y := excited(s, s.first(x))) + s.first(excited(s, s.second(y))), {"Excite": 2},
    ),
    "excitation of a slice": (
        lambda s, x: torch.cat([excited(s, torch.cat([s.second(x), x], 1)[:, 3:11]), x], 1), {"Squeeze": 1},
    ),
    "a gate in other numbers": (lambda s, x: s.first(excited(s, s.second(x), fifth)), {"Excite": 1}),
    "a gate by relu6": (lambda s, x: s.second(excited(s, s.first(x), third)), {"Excite": 1, "Scale": 1}),
    "means after max pooling": (
        lambda s, x: s.more[1](F.max_pool2d(s.second(x), 3, 1, 1).mean((2, 3))), {"Squeeze": 1, "Linear": 1},
    ),
    "means of a slice": (lambda s, x: s.second(x)[:, 3:7].mean((2, 3)), {"Squeeze": 1}),
    "means after a shuffle": (lambda s, x: shuffle(s.second(x)).mean((2, 3), True), {"Squeeze": 1}),
    "features beside maps": (
        lambda s, x: [s.second(y := s.first(x)), y.mean((2, 3), True), s.more[0](y.mean((2, 3)))],
        {"Pool": 1, "StoreFeatures": 2, "Store": 1},
    ),
    "several maps": (lambda s, x: [(y := s.first(x)), (z := s.second(y)), y[:, :3], z], {"Store": 3}),
    "a map and the input": (lambda s, x: (s.second(x), x), {}),
    "a Ghost module written out": (
        lambda s, x: s.second(torch.cat([(y := s.first(x)), s.more[0](y)], 1)[:, :11]), {"Ghost": 1, "Concat": 0},
    ),
}  # fmt: skip


def modules_of(name):
    if name == "residual, then ReLU":
        return (zoo.conv_bn(8, 8, 3),)
    if name == "bilinear upsampling by a module":
        return (nn.Upsample(scale_factor=2, mode="bilinear"),)
    if name == "shuffle by a module":
        return (nn.ChannelShuffle(4),)
    if name.startswith(("excitation", "a gate ")) and "linear" not in name:
        return nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
    if name in ("means after max pooling", "features beside maps"):
        return nn.Linear(8, 5), nn.Linear(8, 3)
    if name == "excitation by linear layers":
        return nn.Linear(8, 2), nn.Linear(2, 8, bias=False)
    if name == "a BatchNorm of its own":
        return nn.Identity(), nn.BatchNorm2d(8)
    if name == "a Ghost module written out":
        return (zoo.conv_bn(8, 8, 3, groups=8, act=nn.ReLU()),)
    return ()


@pytest.mark.parametrize("name", WHOLE)
def test_one_program(name):
    forward, counts = WHOLE[name]
    net = Net(forward, *modules_of(name))
    if name == "concatenation of concatenations":
        net.second = zoo.conv_bn(8, 5, 3, act=nn.SiLU())
    if name == "a Ghost module written out":
        net.second = zoo.conv_bn(11, 5, 3)
    frozen = frozen_of(net)
    (steps,) = kinds(frozen)
    assert {kind: steps.count(kind) for kind in counts} == counts, steps


LEFT = {
    "softplus between": (lambda s, x: s.second(F.softplus(s.first(x))), 2, "no step computes softplus"),
    "two maps from outside": (
        lambda s, x: s.second(F.softplus(s.first(x)) + F.softplus(s.second(x))), 2, "no step computes softplus",
    ),
    "written to before it is read again": (lambda s, x: (s.first(x), s.second(x.clone().mul_(2))), 2, "mul_"),
    "no convolution": (lambda s, x: F.relu(F.softplus(s.first(x))) + 1, 1, "no step computes softplus"),
    "excitation by a third": (
        lambda s, x: s.first(excited(s, s.second(x), lambda z: F.relu(z) / 3)), 2, "no step computes truediv",
    ),
    "transposed": (lambda s, x: s.second(s.first(x).transpose(2, 3)), 2, "no step computes transpose"),
    "smoothed downsampling": (
        lambda s, x: s.second(F.interpolate(s.first(x), scale_factor=0.5, mode="bilinear", antialias=True)), 2,
        "no step computes an interpolation of mode 'bilinear' with these arguments",
    ),
    "another size": (lambda s, x: s.second(s.first(x)) + s.first(x.mean((2, 3), True)), 1, ""),
    "means of the input": (lambda s, x: s.first(x) + x.mean((2, 3), keepdim=True), 1, "different sizes|features|input"),
    "an activation in place that is read before": (
        lambda s, x: (y := s.first(x), z := y[:, :4], F.relu_(y), s.second(y) + z.mean())[-1], 2, "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_left_to_pytorch(name):
    forward, count, why = LEFT[name]
    net = Net(forward, *modules_of(name))
    frozen = frozen_of(net)
    assert len(kinds(frozen)) == count, kinds(frozen)
    reasons = " ".join(why for _, why in state_of(frozen).left)
    assert any(part in reasons for part in why.split("|")), reasons
    if why:
        assert any(part in row.why for row in explain(frozen, make_map((2, 8, 9, 8))).rows for part in why.split("|"))


# Modules whose forwards cannot be traced


class Looped(nn.Module):
    """A forward that asks for values, over a head of two convolutions."""

    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(zoo.conv_bn(8, 8, 3, act=nn.SiLU()), nn.Conv2d(8, 5, 1))

    def forward(self, x):
        while x.mean() > 1e6:
            x = x / 2
        return self.head(x).flatten(1)


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.looped = zoo.ArticleGhostModule(8, 8), Looped()

    def forward(self, x, *args, scale=1, **kwargs):
        y = self.looped(self.stem(x)) * scale
        return y + sum(args) + sum(kwargs.values()) if args or kwargs else y


def test_what_is_inside_of_a_forward_that_cannot_be_traced():
    net = Keywords()
    frozen = frozen_of(net)
    assert kinds(frozen) == [["Conv", "Ghost", "Store"], ["Load", "Ghost", "Store"]]
    assert "cannot be traced" in dict(state_of(frozen).left)["looped"]
    x, net = make_map((2, 8, 9, 8)), net.eval()
    with torch.no_grad():
        for args, kwargs in (((1.5,), {}), ((), {"scale": 2}), ((), {"other": 3.0})):
            torch.testing.assert_close(frozen(x, *args, **kwargs), net(x, *args, **kwargs), rtol=1e-4, atol=1e-4)
    again = copy.deepcopy(frozen)
    with torch.no_grad():
        assert torch.equal(again(x), frozen(x))


def test_the_warning_has_three_reasons():
    net = nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(5))).double().eval()
    with pytest.warns(UserWarning, match="nothing of this Sequential was frozen: .* float32") as caught:
        freeze(net)
    assert str(caught[0].message).count(";") == 2


# Drawn graphs

KINDS = ("conv", "depthwise", "add", "cat", "mul", "act", "norm", "shuffle", "slice", "gate", "softplus", "pad")


def drawn(rng, depth):
    """A module that computes a random graph over maps of eight channels and one size."""
    ops = []
    for at in range(2, depth):
        ops.append((rng.choice(KINDS), rng.randrange(at - 1), rng.randrange(at - 1), rng.randrange(1, 8)))
    makers = {
        "conv": lambda n: zoo.conv_bn(8, 8, (1, 3)[n % 2], act=(None, nn.ReLU(inplace=True), nn.SiLU())[n % 3]),
        "depthwise": lambda n: zoo.conv_bn(8, 8, (3, 5)[n % 2], groups=8),
        "norm": lambda n: nn.BatchNorm2d(8),
        "act": lambda n: (nn.ReLU(), nn.Hardswish(), nn.PReLU(8))[n % 3],
        "gate": lambda n: zoo.conv_bn(8, 8, 1, act=nn.Sigmoid()),
    }

    class Drawn(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(makers.get(kind, lambda n: nn.Identity())(n) for kind, _, _, n in ops)

        def forward(self, x):
            values = [x]
            for (kind, a, b, n), part in zip(ops, self.parts):
                a, b = values[a], values[b]
                if kind == "add":
                    values.append(a + b)
                elif kind == "mul":
                    values.append(a * torch.sigmoid(b))
                elif kind == "cat":
                    values.append(torch.cat([a[:, n:], b[:, :n]], 1))
                elif kind == "slice":
                    values.append(torch.cat([*a.split((n, 8 - n), 1)[::-1]], 1))
                elif kind == "shuffle":
                    values.append(shuffle(a, (2, 4)[n % 2]))
                elif kind == "gate":
                    values.append(a * F.interpolate(part(F.avg_pool2d(b, 2)), a.shape[-2:]))
                elif kind == "pad":
                    values.append(a + F.pad(b[:, :n], (0, 0, 0, 0, n % 3, 8 - n - n % 3)) if n < 6 else a)
                elif kind == "softplus":
                    values.append(F.softplus(a))
                else:
                    values.append(part(a))
            return values[-1], values[-2]

    return Drawn()


@pytest.mark.parametrize("seed", range(12))
def test_drawn_graphs(seed):
    frozen_of(drawn(random.Random(seed), 6 + seed))


def test_a_concatenation_of_very_many_maps_stays_pytorch():
    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.branches, self.last = nn.ModuleList(nn.Conv2d(3, 4, 1) for _ in range(70)), nn.Conv2d(280, 5, 1)

        def forward(self, x):
            return self.last(torch.cat([branch(x) for branch in self.branches], 1))

    net, x = Dense().eval(), torch.randn(2, 3, 7, 6)
    frozen = freeze(net)
    assert sum(isinstance(module, FrozenProgram) for module in frozen.modules()) == 2
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), net(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("act", [nn.PReLU, lambda **_: nn.LeakyReLU(0.2)])
def test_a_bottleneck_with_slopes_within_its_excitation(act):
    """GhostFaceNet's: one program with the others, in place of three."""
    frozen = frozen_of(nn.Sequential(zoo.HuaweiBottleneck(8, 16, 8, se=True, act=act), zoo.conv_bn(8, 8, 3)))
    (steps,) = kinds(frozen)
    assert steps.count("Excite") == 1
