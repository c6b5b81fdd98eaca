"""Nets whose forwards no trace goes through: torch.export gives their graph, with a guard where a size decided."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ghost_ops import explain, freeze, thaw
from ghost_ops.fused import FrozenProgram
from ghost_ops.fused.frozen_state import state_of
from ghost_ops.program import decode

from .. import zoo
from ..helpers import assert_as_accurate, make_map, randomise
from .test_freeze import _as_with_kernels  # noqa: F401  (a fixture)


class Net(nn.Module):
    """Convolutions, a Ghost module, and whatever a test says of its forward."""

    def __init__(self):
        super().__init__()
        self.first, self.second = zoo.conv_bn(8, 8, 1, act=nn.ReLU()), zoo.conv_bn(8, 8, 3, act=nn.SiLU())
        self.ghost = zoo.ArticleGhostModule(8, 8)
        self.reduce, self.expand = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)


class Checked(Net):
    """What a careful forward asks of its input."""

    def forward(self, x, scale=None):
        if not isinstance(x, torch.Tensor) or x.dim() != 4:
            raise TypeError("expected a map")
        assert x.shape[1] == 8
        x = self.ghost(self.first(x))
        return self.second(x) if scale is None else scale * self.second(x)


class AnyNumber(Net):
    def forward(self, *inputs):
        (x,) = inputs
        low = self.second(F.max_pool2d(x, 2))
        maps = [self.first(x), F.interpolate(low, size=x.shape[2:])]
        while len(maps) > 1:
            maps = [torch.cat(maps[:2], 1)[:, 3:11], *maps[2:]]
        return {"out": self.ghost(maps[0]), "all": (low, x)}


class Excited(Net):
    """Of operators that a net writes in every way."""

    def forward(self, x):
        n, c, h, w = x.shape
        if c % 2:
            raise ValueError(c)
        y = self.first(x).view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        y = y * torch.sigmoid(self.expand(F.relu(self.reduce(y.mean((2, 3), keepdim=True)))))
        parts = list(self.ghost(y).chunk(2, 1))
        parts[0] = parts[0].add(parts[1])
        return self.second(torch.cat(parts, 1)) + F.hardtanh(x, 0, 6)


class BySize(Net):
    def forward(self, x):
        if x.shape[2] >= 20:
            x = F.max_pool2d(x, 2)
        return self.second(self.ghost(x)) + x


class ByBatch(Net):
    def forward(self, x):
        x = self.second(self.ghost(x))
        return x.mean(0) if x.shape[0] == 1 else x


class ByValue(Net):
    def forward(self, x):
        while x.abs().max() > 1e6:
            x = x / 2
        return self.ghost(self.second(x))


class Inside(Net):
    """The trace goes through, but for a module."""

    def __init__(self):
        super().__init__()
        self.inner = Checked()

    def forward(self, x):
        return self.first(self.inner(self.second(x)))


def programs(frozen):
    return [m for m in frozen.modules() if isinstance(m, FrozenProgram)]


def kinds(frozen):
    return [[type(step).__name__ for step in decode(program.steps)] for program in programs(frozen)]


def assert_same(frozen, net, *shapes):
    exact = copy.deepcopy(net).double()
    for shape in shapes:
        x = make_map(shape)
        with torch.no_grad():
            results = [f(t) for f, t in ((frozen, x.clone()), (net, x.clone()), (exact, x.double()))]
        flat = [torch.utils._pytree.tree_flatten(result) for result in results]
        assert flat[0][1] == flat[1][1]
        for ours, eager, truth in zip(*(items for items, _ in flat), strict=True):
            assert_as_accurate(ours, eager, truth)


WHOLE = {Checked: {"Ghost": 2, "Conv": 1}, AnyNumber: {"Upsample": 1}, Excited: {"Excite": 1, "Shuffle": 1}, Inside: {}}


@pytest.mark.parametrize("cls", WHOLE)
def test_one_program(cls):
    net = randomise(cls()).eval()
    frozen = freeze(net)
    (steps,) = kinds(frozen)
    counts = WHOLE[cls]
    assert {kind: steps.count(kind) for kind in counts} == counts, steps
    assert_same(frozen, net, (1, 8, 9, 8), (3, 8, 14, 6), (2, 8, 1, 2) if cls is Checked else (1, 8, 4, 4))
    assert not [row for row in explain(frozen, make_map((2, 8, 9, 8))).rows if row.runs == "plain PyTorch"]
    again, plain = copy.deepcopy(frozen), thaw(frozen)
    assert_same(again, net, (2, 8, 9, 8))
    assert type(plain) is cls


def test_other_arguments_run_the_own_forward():
    net, x = randomise(Checked()).eval(), make_map((2, 8, 9, 8))
    frozen = freeze(net)
    with torch.no_grad():
        torch.testing.assert_close(frozen(x, 2.0), net(x, 2.0), rtol=1e-4, atol=1e-4)
    with pytest.raises(TypeError, match="expected a map"):
        frozen("x")


def test_a_size_that_decides(tmp_path):
    net = randomise(BySize()).eval()
    frozen = freeze(net, example=make_map((2, 8, 24, 9)))
    assert state_of(frozen).guard is not None and len(programs(frozen)) == 1
    torch.save(frozen, tmp_path / "net.pt")
    for made in (frozen, copy.deepcopy(frozen), torch.load(tmp_path / "net.pt", weights_only=False)):
        assert_same(made, net, (1, 8, 24, 9), (2, 8, 19, 9), (2, 8, 20, 5), (1, 8, 3, 3))


def test_a_batch_that_decides():
    net = randomise(ByBatch()).eval()
    frozen = freeze(net)
    assert_same(frozen, net, (1, 8, 9, 8), (2, 8, 9, 8))


def test_what_cannot_be_exported_either():
    net = randomise(ByValue()).eval()
    frozen = freeze(net)
    why = dict(state_of(frozen).left)[""]
    assert "cannot be traced" in why and "cannot be exported" in why
    assert len(programs(frozen)) == 2
    assert_same(frozen, net, (1, 8, 9, 8), (2, 8, 9, 8))


def test_explain_says_which_forward_ran():
    frozen = freeze(randomise(BySize()).eval())
    (row,) = explain(frozen, make_map((1, 8, 24, 9))).rows
    assert row.runs.startswith("program on native")
    runs = {row.name: row.runs for row in explain(frozen, make_map((1, 8, 9, 9))).rows}
    assert runs[""] == "not on such inputs: for these its module's own forward runs"
    assert runs["ghost"] == "program_eval on native"


def test_a_size_is_asked_once():
    """What the guard has let pass is a call of the program; copies ask anew, and other sizes are always asked."""
    net = randomise(BySize()).eval()
    for frozen in (made := freeze(net, example=make_map((2, 8, 24, 9))), copy.deepcopy(made)):
        state, asked = state_of(frozen), []
        assert not state.shapes or frozen is made
        state.shapes.clear()
        decides = state.guard.forward
        state.guard.forward = lambda x, decides=decides, asked=asked: asked.append(tuple(x.shape)) or decides(x)
        try:
            for _ in range(3):
                assert_same(frozen, net, (2, 8, 24, 9), (1, 8, 3, 3))
            assert asked.count((2, 8, 24, 9)) == 1 and asked.count((1, 8, 3, 3)) >= 3
        finally:
            state.guard.forward = decides
    exported = torch.export.export(made, (make_map((2, 8, 24, 9)),), strict=False)
    assert_same(exported.module(), net, (2, 8, 24, 9))
