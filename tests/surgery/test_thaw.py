"""``thaw``: a plain net back from a frozen one."""

import copy

import pytest
import torch
from torch import nn

from ghost_ops import freeze, fuse, thaw
from ghost_ops.fused.frozen_net import Frozen
from ghost_ops.fused.in_place import made_class

from .. import zoo
from ..helpers import assert_as_accurate, make_map, randomise
from .test_freeze import _as_with_kernels, whole_program  # noqa: F401  (a fixture)
from .test_frozen_class import Careful, make_vision


@pytest.fixture
def x():
    return make_map((2, 3, 33, 31))


def make_sequence():
    return randomise(nn.Sequential(zoo.ArticleGhostModule(3, 8), nn.Softplus())).eval()


@pytest.mark.parametrize(
    "make",
    [make_vision, lambda: randomise(Careful()).eval(), make_sequence],
    ids=["whole", "parted", "sequential"],
)
def test_thaw(make, x):
    net = make()
    first = next(net.parameters()).requires_grad_(False)
    frozen = freeze(net)
    plain = thaw(frozen)
    assert type(plain) is type(net) and made_class(type(plain)) is None
    assert [type(m) for m in plain.modules()] == [type(m) for m in net.modules()]
    assert plain.state_dict().keys() == net.state_dict().keys()
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in plain.state_dict().items())
    assert [p.requires_grad for p in plain.parameters()] == [p.requires_grad for p in net.parameters()]
    assert not first.requires_grad and not plain.training
    again = thaw(freeze(frozen))
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in net.parameters()]
    with torch.no_grad():
        assert torch.equal(plain(x), net(x))
        want = frozen(x)
        for p in plain.train().parameters():
            p.zero_()
        assert torch.equal(frozen(x), want) and isinstance(frozen, Frozen)
    plain(x).sum().backward()


def test_thaw_and_freeze_again(x):
    frozen = freeze(make_vision())
    plain = thaw(frozen)
    plain.reset_classifier(3)
    again = freeze(plain)
    with torch.no_grad():
        assert again(x).shape == (2, 3) and torch.equal(freeze(thaw(frozen))(x), frozen(x))
        half = freeze(frozen, torch.bfloat16)
        assert half(x.bfloat16()).dtype == torch.bfloat16 and next(half.parameters()).dtype == torch.bfloat16


FOLDED = {
    "whole": make_vision,
    "parted": lambda: randomise(Careful()).eval(),
    "sequential": make_sequence,
    "transposed": lambda: _around(nn.ConvTranspose2d(8, 6, 3, 2, bias=False), nn.BatchNorm2d(6)),
    "bias and no affine": lambda: _around(nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6, affine=False, eps=1e-2)),
    "grouped": lambda: _around(nn.Conv2d(8, 6, 3, groups=2, padding_mode="reflect", padding=1), nn.BatchNorm2d(6)),
}
LEFT = {
    "transposed, grouped": lambda: _around(nn.ConvTranspose2d(8, 6, 3, groups=2), nn.BatchNorm2d(6)),
    "no statistics": lambda: _around(nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)),
    "after a ReLU": lambda: _around(nn.Conv2d(8, 6, 3), nn.ReLU(), nn.BatchNorm2d(6)),
    "read twice": lambda: _around(ReadTwice()),
    "called twice": lambda: _around(CalledTwice()),
}


class ReadTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y


class CalledTwice(ReadTwice):
    def forward(self, x):
        return self.norm(self.conv(x)) + self.conv(x)


class Branching(ReadTwice):
    """No graph: a value decides. What is inside is folded by the graphs of its children."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6))

    def forward(self, x):
        return self.inner(x) if x.sum() > 0 else self.inner(-x)


class ReachesIn(Branching):
    """Its forward calls a part of what is inside by itself."""

    def forward(self, x):
        return self.inner(x) if x.sum() == 12345 else self.inner[0](x)


def _around(*modules):
    return randomise(nn.Sequential(zoo.ArticleGhostModule(3, 8), *modules)).eval()


def norms(net):
    return sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())


@pytest.mark.parametrize("name", FOLDED)
def test_folded(name, x):
    net = FOLDED[name]()
    frozen = freeze(net)
    plain = thaw(frozen, fold=True)
    convs = [m for m in plain.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    assert type(plain) is type(net) and norms(net) > 0 and norms(plain) == 0
    assert all(m.bias is not None for m in convs) and not plain.training
    assert norms(thaw(frozen)) == norms(net)  # what was frozen stays as it was
    with torch.no_grad():
        exact = copy.deepcopy(net).double()(x.double())
        assert_as_accurate(plain(x), net(x), exact, 4.0)


@pytest.mark.parametrize("name", LEFT)
def test_left(name, x):
    net = LEFT[name]()
    plain = thaw(freeze(net), fold=True)
    assert norms(plain) == 1
    with torch.no_grad():
        torch.testing.assert_close(plain(x), net(x), rtol=1e-4, atol=1e-5)


def test_folded_without_a_graph(x):
    net = _around(Branching())
    plain = thaw(freeze(net), fold=True)
    assert norms(plain) == 1 and isinstance(plain[1].inner[1], nn.Identity)  # its own is not called
    with torch.no_grad():
        torch.testing.assert_close(plain(x), net(x), rtol=1e-4, atol=1e-5)


def test_nothing_is_folded_where_the_result_would_be_another(x):
    net = _around(ReachesIn())
    with pytest.warns(UserWarning, match=r"thaw: fold: nothing of this Sequential was folded: its result would not be"):
        plain = thaw(freeze(net), fold=True)
    assert norms(plain) == norms(net)
    with torch.no_grad():
        torch.testing.assert_close(plain(x), net(x), rtol=1e-4, atol=1e-5)


def test_folded_in_half_precision(x):
    net = make_vision()
    plain = thaw(freeze(net, torch.bfloat16), fold=True)
    assert {p.dtype for p in plain.parameters()} == {torch.bfloat16} and norms(plain) == 0
    with torch.no_grad():
        exact, rounded = net(x).double(), copy.deepcopy(net).bfloat16()(x.bfloat16())
        assert_as_accurate(plain(x.bfloat16()), rounded, exact, 2.0)


def test_thaw_refuses():
    with pytest.raises(TypeError, match=r"thaw: net: expected a torch\.nn\.Module, got Tensor"):
        thaw(torch.ones(1))
    for net in (make_vision(), fuse(make_vision()), whole_program(freeze(make_vision()))):
        with pytest.raises(ValueError, match="thaw: net: expected a frozen net"):
            thaw(net)
