"""Features of a program: of flattened maps, normalised, in several heads, and beside maps."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ghost_ops import freeze
from ghost_ops.fused.frozen_state import state_of

from .. import zoo
from ..helpers import assert_as_accurate, make_map, randomise
from .test_freeze import _as_with_kernels  # noqa: F401  (a fixture)
from .test_freeze_graphs import frozen_of, kinds


class Tail(nn.Module):
    """A body whose map of a 28 x 28 image is 7 x 7, and what a function computes of it with the modules given."""

    def __init__(self, tail, *more):
        super().__init__()
        self.body = nn.Sequential(
            zoo.conv_bn(3, 12, 3, 2, act=nn.PReLU()), zoo.ArticleGhostModule(12, 13), zoo.conv_bn(13, 13, 3, 2, 13),
        )  # fmt: skip
        self.more = nn.ModuleList(more)
        self.tail = tail

    def forward(self, x):
        return self.tail(self, self.body(x))


def chained(self, y):
    for module in self.more:
        y = module(y)
    return y


def heads(self, y):
    means = y.mean((2, 3))
    return self.more[0](means), F.relu(self.more[1](means)), means


def of_two_maps(self, y):
    deep = self.more[0](y)
    return self.more[1](y.mean((2, 3))), self.more[2](torch.flatten(deep, 1)), deep


def beside_layers(self, y):
    flat = y.flatten(1)
    return flat, self.more[0](flat)


def by_size(self, y):
    return self.more[0](y.reshape(y.size(0), -1))


def by_shape(self, y):
    n, c, h, w = y.shape
    return y.view((n, NUMBERS)), self.more[0](y.reshape(n, c * h * w))


NUMBERS = 13 * 7 * 7
VALID = nn.Conv2d(13, 13, 7, groups=13, bias=False)
HEAD = VALID, nn.BatchNorm2d(13), nn.Dropout(0.3), nn.Conv2d(13, 21, 1, bias=False)
WHOLE = {
    "a face net's": (
        chained, (*HEAD, nn.Flatten(), nn.BatchNorm1d(21)), {"Flatten": 1, "ScaleFeatures": 1, "Linear": 1},
    ),
    "flattened with an activation": (
        chained, (*HEAD, nn.Flatten(), nn.BatchNorm1d(21), nn.PReLU(21), nn.Linear(21, 5)), {"ScaleFeatures": 1},
    ),
    "a face net's map, too": (
        lambda s, y: (z := s.more[1](s.more[0](y)), s.more[2](z.flatten(1))), (VALID, HEAD[3], nn.Linear(21, 5)),
        {"Flatten": 1, "Linear": 1, "Store": 1},
    ),
    "a VGG's": (
        chained, (nn.Flatten(), nn.Linear(NUMBERS, 40), nn.ReLU(), nn.Dropout(), nn.Linear(40, 30)),
        {"Flatten": 1, "Linear": 2},
    ),
    "an ArcFace's": (
        chained,
        (nn.BatchNorm2d(13), nn.Dropout(), nn.Flatten(), nn.Linear(NUMBERS, 20, bias=False), nn.BatchNorm1d(20)),
        {"Flatten": 1, "Linear": 1, "ScaleFeatures": 0},
    ),
    "a BatchNorm of all numbers": (
        chained, (nn.Flatten(), nn.BatchNorm1d(NUMBERS), nn.Linear(NUMBERS, 5)), {"ScaleFeatures": 1},
    ),
    "by a size": (by_size, (nn.Linear(NUMBERS, 30),), {"Flatten": 1}),
    "by a shape": (by_shape, (nn.Linear(NUMBERS, 30),), {"Flatten": 2}),
    "beside layers": (beside_layers, (nn.Linear(NUMBERS, 30),), {"Flatten": 1, "StoreFeatures": 2}),
    "means": (
        chained, (nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(13), nn.Flatten(), nn.BatchNorm1d(13), nn.Linear(13, 5)),
        {"Pool": 1, "ScaleFeatures": 2},
    ),
    "heads": (heads, (nn.Linear(13, 5), nn.Linear(13, 30)), {"Pool": 2, "StoreFeatures": 3}),
    "features of two maps": (
        of_two_maps, (zoo.conv_bn(13, 9, 3, 2), nn.Linear(13, 5), nn.Linear(9 * 16, 5)),
        {"Pool": 1, "Flatten": 1, "StoreFeatures": 2, "Store": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_one_program(name):
    tail, more, counts = WHOLE[name]
    net = Tail(tail, *copy.deepcopy(more))
    frozen = frozen_of(net, 3, ((1, 28, 28), (3, 28, 27), (9, 25, 28)))
    (steps,) = kinds(frozen)
    assert {kind: steps.count(kind) for kind in counts} == counts, steps
    with torch.no_grad():
        assert len(frozen(make_map((0, 3, 28, 28)))) in (0, 2, 3)
        for size in ((28, 64), (60, 60)) if "Flatten" in counts else ():
            for refuses in (net, frozen):
                with pytest.raises((RuntimeError, ValueError)):
                    refuses(make_map((2, 3, *size)))


@pytest.mark.parametrize("name", ["a face net's", "an ArcFace's", "heads", "features of two maps"])
def test_in_bfloat16(name):
    tail, more, _ = WHOLE[name]
    net = randomise(Tail(tail, *copy.deepcopy(more))).eval().bfloat16()
    frozen, exact = freeze(net), copy.deepcopy(net).double()
    for n in (1, 3, 9):
        x = make_map((n, 3, 28, 26), torch.bfloat16)
        with torch.no_grad():
            results = [f(t) for f, t in ((frozen, x), (net, x), (exact, x.double()))]
        for ours, eager, truth in zip(*(r if isinstance(r, tuple) else [r] for r in results), strict=True):
            assert_as_accurate(ours, eager, truth, 1.0)


def of_one_size(self, y):
    return self.more[1](y + self.more[0].weight).flatten(1)


def branches(self, y):
    z = self.more[0](y.mean((2, 3)))
    return self.more[1](z), self.more[2](z)


LEFT = {
    "flattened only": (lambda s, y: y.flatten(1), (), "no step computes flatten"),
    "flattened last": (of_one_size, (nn.Linear(7, 7), nn.Conv2d(13, 9, 1)), "a matter of the size of the image"),
    "flattened to rows": (lambda s, y: s.more[0](y.flatten(2)), (nn.Linear(49, 5),), "no step computes flatten"),
    "mixed with the batch": (lambda s, y: s.more[0](y.view(-1, 13)), (nn.Linear(13, 5),), "no step computes view"),
    "layers that branch": (branches, (nn.Linear(13, 8), nn.Linear(8, 5), nn.Linear(8, 4)), "another layer has taken"),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_left_to_pytorch(name):
    tail, more, why = LEFT[name]
    frozen = frozen_of(Tail(tail, *copy.deepcopy(more)), 3, ((1, 28, 28), (3, 28, 27)))
    assert not any("Flatten" in steps for steps in kinds(frozen))
    assert any(why in reason for _, reason in state_of(frozen).left), state_of(frozen).left


def test_flattened_maps_of_any_size():
    """What returns them as they are takes every size, frozen too."""
    frozen_of(Tail(lambda s, y: y.flatten(1)), 3, ((1, 28, 28), (3, 64, 35)))
