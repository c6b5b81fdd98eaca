"""``torch.func.functional_call`` on a frozen net: what its programs have not packed is refused, never ignored."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state

from ghost_ops import freeze, thaw

from ..helpers import make_map
from .test_frozen_class import Careful, make_vision, randomise

REFUSED = r"\(frozen\): it was called with other parameters or buffers than those that were packed"


@pytest.fixture
def x():
    return make_map((2, 3, 33, 31))


def scaled(tensors):
    return {name: t.detach() * 2 for name, t in tensors if t.is_floating_point() and not name.endswith("packed")}


OTHERS = {
    "every parameter": lambda net: scaled(net.named_parameters()),
    "one weight": lambda net: {"blocks.0.ghost1.primary_conv.0.weight": torch.zeros(8, 8, 1, 1)},
    "one bias": lambda net: {"classifier.1.bias": torch.zeros(17)},
    "statistics": lambda net: scaled(net.named_buffers()),
    "of another shape": lambda net: {"blocks.0.ghost1.primary_conv.0.weight": torch.zeros(3)},
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("moved", [lambda net: net, copy.deepcopy, lambda net: net.double().float()])
def test_others_are_refused_while_they_are_there(name, moved, x):
    net = moved(freeze(make_vision()))
    want = net(x)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=REFUSED) as raised:
            functional_call(net, OTHERS[name](net), (x,))
        assert str(raised.value).startswith("Vision (frozen)") and "ghost_ops.thaw(net)" in str(raised.value)
    assert torch.equal(net(x), want)
    outer = nn.Sequential(net)
    with pytest.raises(RuntimeError, match=REFUSED):
        functional_call(outer, {f"0.{key}": t for key, t in OTHERS[name](net).items()}, (x,))
    assert torch.equal(outer(x), want)


def test_the_same_ones_and_a_whole_state_are_taken(x):
    net, other = freeze(make_vision()), make_vision()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.25)
    other = freeze(other)
    want = net(x)
    assert not torch.allclose(other(x), want)
    assert torch.equal(functional_call(net, dict(net.named_parameters()), (x,)), want)
    assert torch.equal(functional_call(net, dict(net.state_dict(keep_vars=True)), (x,)), want)
    assert torch.equal(functional_call(net, other.state_dict(), (x,)), other(x))  # what is packed is in it
    assert torch.equal(net(x), want)


def test_a_thawed_net_takes_them(x):
    net = thaw(freeze(make_vision()))
    others = scaled(net.named_parameters())
    assert not torch.allclose(functional_call(net, others, (x,)), net(x))


def test_ensembles_are_refused(x):
    nets = [freeze(make_vision()) for _ in range(2)]
    parameters, _ = stack_module_state([thaw(net) for net in nets])
    with pytest.raises(RuntimeError, match=REFUSED):
        torch.vmap(lambda p: functional_call(nets[0], p, (x,)))(parameters)


def test_what_is_not_packed_may_be_others(x):
    net = freeze(randomise(Careful()).eval())
    zeros = {"model.4.weight": torch.zeros_like(net.model[4].weight)}  # not in a program
    assert not functional_call(net, zeros, (x,)).std((2, 3)).any()
    with pytest.raises(RuntimeError, match=r"YoloGhostConv " + REFUSED):
        functional_call(net, {"model.1.cv1.conv.weight": torch.zeros_like(net.model[1].cv1.conv.weight)}, (x,))
