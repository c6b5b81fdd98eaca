"""What freeze compares on: drawn inputs, examples, half precision; and nets that it cannot copy."""

import copy
import re
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from ghost_ops import freeze
from ghost_ops.fused import FrozenProgram
from ghost_ops.fused.frozen_state import STATE
from ghost_ops.surgery.freeze import compare
from ghost_ops.surgery.freeze.compare import Arguments

from .. import zoo
from ..helpers import make_map, randomise
from .test_freeze import Classifier, _as_with_kernels, huawei, programs  # noqa: F401  (a fixture)
from .test_freeze_compare import Around


@pytest.fixture
def x():
    return make_map((2, 3, 33, 31))


class Sized(Around):
    """As a net with a layer for maps of one size."""

    side = 0

    def forward(self, x):
        if tuple(x.shape[2:]) != (self.side, self.side):
            raise ValueError("another size")
        return super().forward(x)


@pytest.mark.parametrize("side, is_drawn", [(224, True), (112, True), (77, False)])
def test_nets_of_one_size(side, is_drawn):
    cls = type("OfSize", (Sized,), {"side": side})
    net, x = cls().eval(), make_map((2, 3, side, side))
    frozen = freeze(net)
    assert len(programs(frozen)) == 1
    left = dict(frozen.__dict__[STATE].left)
    assert left.keys() == (set() if is_drawn else {""})
    tried = "no input that it accepts could be drawn: tensors of 3 .* 64 x 96, .*another size.*; give freeze an example"
    assert is_drawn or re.match(tried, left[""])
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), net(x), rtol=1e-4, atol=1e-4)
    given = freeze(net, example=x)
    assert given.__dict__[STATE].left == () and given.__dict__[STATE].guard is not None
    for made in (frozen, given):
        with pytest.raises(ValueError, match="another size"):
            made(make_map((2, 3, side, side + 1)))


def test_nets_of_a_few_sizes():
    """A face net's head: a kernel as large as the map, then a BatchNorm of features. Two batches, two sizes."""
    head = [nn.Conv2d(3, 8, 3, 16, 1), nn.Conv2d(8, 8, 7, groups=8), nn.Flatten(), nn.BatchNorm1d(8)]
    calls = compare.draw(nn.Sequential(*head).eval())
    assert [tuple(call.args[0].shape) for call in calls] == [(2, 3, 112, 112), (1, 3, 111, 110)]
    calls = compare.draw(nn.Sequential(nn.Conv2d(3, 8, 1), nn.AvgPool2d(16), *head[1:]).eval())
    assert [tuple(call.args[0].shape) for call in calls] == [(2, 3, 112, 112), (1, 3, 113, 114)]


class Pair(nn.Module):
    """Two images, of which nothing is drawn."""

    def __init__(self):
        super().__init__()
        self.body = randomise(Classifier(*huawei()))

    def forward(self, left, right, *, weight=0.5):
        return self.body(left) * weight + self.body(right) * (1 - weight)


def test_examples(x):
    net, y = Pair().eval(), x.flip(0)
    for example in ((x, y), [x, y], {"left": x, "right": y}):
        frozen = freeze(net, example=example)
        assert len(programs(frozen)) == 2
        assert frozen.__dict__[STATE].left == (("", "it reads what is made outside of a program"),)
    without = freeze(net)
    assert len(programs(without)) == 1 and "give freeze an example" in dict(without.__dict__[STATE].left)[""]
    with torch.no_grad():
        for ours in (frozen, without):
            torch.testing.assert_close(ours(x, right=y), net(x, y), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(ours(x, y, weight=0.9), net(x, y, weight=0.9), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"that this Pair accepts, got \(float32 .*: TypeError: .*'right'"):
        freeze(net, example=x)
    half = freeze(copy.deepcopy(net).bfloat16(), example=(x.bfloat16(), y.bfloat16()))
    assert len(programs(half)) == 2 and half(x.bfloat16(), y.bfloat16()).dtype == torch.bfloat16


def test_nothing_could_be_compared():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.parts = nn.ModuleList([Sum()])

        def forward(self, a, b):
            return self.parts[0](self.conv(a), b)

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.ghost = zoo.ArticleGhostModule(4, 4)

        def forward(self, a, b):
            return self.ghost(a + b)

    frozen = freeze(randomise(Two()).eval())
    assert len(programs(frozen)) == 1, "the Ghost module was compared on its own"
    sizes = compare.SIZES
    try:
        compare.SIZES = ()
        with pytest.warns(UserWarning, match="no input that it accepts could be drawn.*; give freeze an example"):
            freeze(randomise(Two()).eval())
    finally:
        compare.SIZES = sizes


# Half precision


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_the_structure_is_decided_in_float32(half, x):
    """A difference below what rounding to half precision is."""
    net = Around(None, lambda self, x: x * 1.004 if torch.is_grad_enabled() else x).eval()
    for frozen in (freeze(net, torch.bfloat16), freeze(copy.deepcopy(net).bfloat16())):
        assert "not be that of its source with gradients enabled: off by 0.00" in dict(frozen.__dict__[STATE].left)[""]
        assert len(programs(frozen)) == 1 and frozen(x.bfloat16()).dtype == torch.bfloat16
    with pytest.warns(UserWarning, match="nothing of this Around"):
        freeze(copy.deepcopy(net).half())


@pytest.mark.parametrize("value", [0, -1])
def test_results_far_off_in_half_precision_are_refused(value, monkeypatch):
    """What is packed is wrong only in bfloat16: as a whole net of zeros, or of NaNs."""
    right, net = FrozenProgram.of, Around().eval()

    def wrong(built, parts=(), dtype=None):
        program = right(built, parts, dtype)
        program.packed.fill_(value) if program.dtype is None else None
        return program

    monkeypatch.setattr(FrozenProgram, "of", wrong)
    assert len(programs(freeze(net))) == 1
    with pytest.warns(UserWarning, match=r"its result in torch\.bfloat16 is far from that of its source: "):
        frozen = freeze(net, torch.bfloat16)
    assert not programs(frozen) and next(frozen.parameters()).dtype == torch.bfloat16
    v = make_map((1, 3, 40, 40), torch.bfloat16)
    torch.testing.assert_close(frozen(v), copy.deepcopy(net).bfloat16()(v), rtol=0, atol=0)  # the same modules


def test_what_is_far_off():
    net = Around(None, lambda self, x: x).eval()
    call, source = Arguments.of(make_map((1, 3, 40, 40))), compare.private(net)
    for wrong, why in (
        (lambda v: torch.full((1, 5), torch.nan, dtype=v.dtype), "not finite"),
        (lambda v: torch.full((1, 5), 1e4, dtype=v.dtype), "off by"),
        (lambda v: torch.zeros((1, 4), dtype=v.dtype), "of shape"),
        (lambda v: v.missing, "it fails"),
    ):
        assert why in compare.unlike(wrong_net(wrong), source, call, torch.bfloat16)
    assert compare.unlike(copy.deepcopy(net.body).bfloat16(), compare.private(net.body), call, torch.bfloat16) is None


def wrong_net(function):
    class Wrong(nn.Module):
        def forward(self, x):
            return function(x)

    return Wrong()


# Copies that cannot be made


def weight_normed():
    net = nn.Sequential(zoo.ArticleGhostModule(3, 8), nn.Conv2d(8, 4, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(net[1])
    return net


def pruned():
    net = nn.Sequential(zoo.ArticleGhostModule(3, 8), nn.Conv2d(8, 4, 1))
    prune.l1_unstructured(net[1], "weight", 0.5)
    return net


def keeping():
    net = nn.Sequential(zoo.ArticleGhostModule(3, 8), nn.Conv2d(8, 4, 1))
    net[1].register_forward_hook(lambda module, args, out: setattr(module, "features", out))
    return net


@pytest.mark.parametrize(
    "make, message",
    [
        (
            weight_normed,
            r"1\.weight was computed .*: call torch\.nn\.utils\.remove_weight_norm\(module, 'weight'\) first",
        ),
        (pruned, r"1\.weight was computed .*: call torch\.nn\.utils\.prune\.remove\(module, 'weight'\) first"),
        (keeping, r"1\.features was computed .*: call the net once within torch\.no_grad\(\) first"),
    ],
)
def test_nets_that_cannot_be_copied(make, message, x):
    net = make().eval()
    net(x).sum().backward()
    with pytest.raises(ValueError, match="freeze: net: it cannot be copied: " + message) as raised:
        freeze(net)
    assert "\n" not in str(raised.value)
    if make is weight_normed:
        nn.utils.remove_weight_norm(net[1])
    elif make is pruned:
        prune.remove(net[1], "weight")
    else:
        with torch.no_grad():
            net(x)
    frozen = freeze(net)
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), net(x), rtol=1e-4, atol=1e-4)
    assert len(programs(frozen)) == 1
