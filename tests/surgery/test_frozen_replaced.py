"""A frozen net notices that what it has packed was replaced in a module inside, at the next call."""

import copy
import gc

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from ghost_ops import freeze, thaw
from ghost_ops.fused import frozen_state

from .. import zoo
from ..helpers import make_map, randomise
from .test_freeze_life import make_net, make_parted

X = (2, 3, 33, 31)


def doubled(t):
    return nn.Parameter(t.detach() * 2, requires_grad=False)


class Doubling(nn.Module):
    def forward(self, t):
        return 2 * t


def _set(module, name):
    setattr(module, name, doubled(getattr(module, name)))


CHANGES = {
    "a parameter": lambda net: _set(net.stem[0], "weight"),
    "one of a linear layer": lambda net: _set(net.classifier[0], "weight"),
    "a bias that was none": lambda net: setattr(net.stem[0], "bias", nn.Parameter(torch.ones(8))),
    "a buffer": lambda net: setattr(net.stem[1], "running_mean", net.stem[1].running_mean + 1),
    "a module": lambda net: setattr(net.stem, "0", nn.Conv2d(3, 8, 3, 2, 1)),
    "a module further above": lambda net: setattr(net.blocks, "1", zoo.HuaweiBottleneck(8, 22, 12, 5, 2, True).eval()),
    "a parametrisation": lambda net: parametrize.register_parametrization(net.stem[0], "weight", Doubling()),
    "pruning": lambda net: prune.l1_unstructured(net.stem[0], "weight", 0.5),
    "register_parameter": lambda net: net.stem[0].register_parameter("weight", doubled(net.stem[0].weight)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_noticed(change):
    net, x = freeze(make_net()), make_map(X)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        wanted = net(x)
        CHANGES[change](net)
        for _ in range(2):
            with pytest.raises(
                RuntimeError, match=r"Classifier \(frozen\): '\w+' of a \w+ was replaced: change the net"
            ):
                net(x)
        assert torch.equal(twin(x), wanted)
        CHANGES[change](twin)
        with pytest.raises(RuntimeError, match="was replaced"):
            twin(x)


def test_what_was_not_packed_may_be_replaced():
    net, x = freeze(make_parted()), make_map(X)
    with torch.no_grad():
        wanted = net(x)
        net[2].beta = 3  # a Softplus between the programs
        net[1].note = nn.Identity()  # beside what was packed
        assert not torch.equal(net(x), wanted)


def test_thawed_and_frozen_again():
    net, x = freeze(make_net()), make_map(X)
    _set(net.classifier[0], "weight")
    with torch.no_grad():
        plain = thaw(net)
        _set(plain.classifier[0], "weight")  # of a plain net, which nobody watches
        again = freeze(plain)
        torch.testing.assert_close(again(x), plain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_of_a_frozen_net_loads(assign):
    net, other, x = freeze(make_net()), freeze(randomise(make_net(), 1)), make_map(X)
    with torch.no_grad():
        net.load_state_dict(other.state_dict(), assign=assign)
        assert torch.equal(net(x), other(x))
        net.stem[0].weight.mul_(2)
        with pytest.raises(RuntimeError, match="changed in place"):
            net(x)


def test_nothing_is_kept_alive():
    net = freeze(make_net())
    before = len(frozen_state._watchers.known)
    assert before > 0
    del net
    gc.collect()
    assert len(frozen_state._watchers.known) < before
