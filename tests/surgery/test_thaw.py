"""``thaw``: a plain net back from a frozen one."""

import pytest
import torch
from torch import nn

from ghost_ops import freeze, fuse, thaw
from ghost_ops.fused.frozen_net import Frozen
from ghost_ops.fused.in_place import made_class

from .. import zoo
from ..helpers import make_map, randomise
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


def test_thaw_refuses():
    with pytest.raises(TypeError, match=r"thaw: net: expected a torch\.nn\.Module, got Tensor"):
        thaw(torch.ones(1))
    for net in (make_vision(), fuse(make_vision()), whole_program(freeze(make_vision()))):
        with pytest.raises(ValueError, match="thaw: net: expected a frozen net"):
            thaw(net)
