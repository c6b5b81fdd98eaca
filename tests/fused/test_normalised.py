"""BatchNorm and activation of large maps, which are one operator in training on a CPU: convolution layers, and the
convolutions of a bottleneck, against their plain twins and float64."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn

import ghost_ops
from ghost_ops.fused import convolutions
from ghost_ops.fused.behaviour import block_of
from tests import zoo
from tests.fused.twins import assert_agree, plain_twin
from tests.helpers import make_map, randomise

OPERATOR = "ghost_ops::batch_norm_act_train"


@pytest.fixture(autouse=True)
def _of_all_maps(monkeypatch):
    monkeypatch.setattr(convolutions, "LEAST_NORMALISED", 0)


class Siblings(nn.Module):
    def __init__(self, act=nn.Hardswish):
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), act()

    def forward(self, x):
        x = self.conv(x)
        x = self.bn(x)
        return self.act(x)


def layer(act=nn.ReLU, bias=True, **norm):
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1, bias=bias), nn.BatchNorm2d(6, **norm), *[] if act is None else [act()]
    )


NETS = {
    "convolution, BatchNorm, ReLU": layer,
    "without an activation": lambda: layer(None),
    "PReLU": lambda: layer(nn.PReLU),
    "not affine, without momentum": lambda: layer(nn.SiLU, affine=False, momentum=None),
    "without running statistics": lambda: layer(nn.SiLU, track_running_stats=False),
    "siblings": Siblings,
    "bottleneck": lambda: zoo.ArticleBottleneck(3, 16, 8, 3, 2, True),
}


def calls_of(function):
    """How often the operator runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return sum(event.count for event in profile.key_averages() if event.key == OPERATOR)


@pytest.fixture
def x():
    return make_map((3, 3, 24, 17), layout="channels_last")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python tells no positions of calls before 3.11")
@pytest.mark.parametrize(("name", "memory"), [*((name, "balanced") for name in NETS), ("bottleneck", "low")])
def test_as_the_plain_module(name, memory, x):
    """Output, gradients, running statistics, over two steps."""
    net = ghost_ops.fuse(randomise(NETS[name]()).train(), memory=memory)
    assert_agree(net, x, calls=2)
    assert calls_of(lambda: net(x)) == (3 if name == "bottleneck" else 1)


@pytest.mark.parametrize("name", ["convolution, BatchNorm, ReLU", "siblings", "bottleneck"])
def test_autocast(name, x):
    """Its result has the plain net's dtype, and is as near to float64's."""
    net = ghost_ops.fuse(randomise(NETS[name]()).train())
    twin = plain_twin(net)
    exact = copy.deepcopy(twin).double()(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        ours, plain = net(x), twin(x)
    assert ours.dtype is plain.dtype
    assert (ours.double() - exact).norm() <= 2 * (plain.double() - exact).norm()


def test_left_to_pytorch(x):
    """To the bit, wherever the operator must not run."""

    def frozen_statistics(net):
        net[1].eval()

    def without_training(net):
        net.eval()

    def float64(net):
        net.double()

    def of_all_processes(net):
        net[1] = nn.SyncBatchNorm.convert_sync_batchnorm(net[1])

    def hooked(net):
        net[1].register_forward_hook(lambda module, args, out: out + 1)

    for change in (frozen_statistics, without_training, float64, of_all_processes, hooked):
        plain = randomise(layer()).train()
        net = ghost_ops.fuse(copy.deepcopy(plain))
        seen = x.double() if change is float64 else x
        for module in (net, plain):
            change(module)
        assert torch.equal(net(seen), plain(seen)), change.__name__
        assert all(map(torch.equal, net.state_dict().values(), plain.state_dict().values())), change.__name__


class NormAct(nn.BatchNorm2d):
    """A BatchNorm that applies its activation itself, as timm's."""

    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.SiLU()

    def forward(self, x):
        return self.act(super().forward(x))


class Derived(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3, 2, 1), NormAct(6)

    def forward(self, x):
        return self.bn(self.conv(x))


def test_an_activation_within_the_batch_norm_runs_once(x):
    net = ghost_ops.fuse(randomise(Derived()).train())
    assert calls_of(lambda: net(x)) == 1
    assert_agree(net, x)
    twin = plain_twin(net)
    for module in (net, twin):
        module.bn.eval()
    assert "running statistics" in block_of(net).decide(net, x).why
    assert torch.equal(net(x), twin(x))
    layer = block_of(net).current_plan(net).layers.layer
    z = torch.randn(2, 6, 5, 5)
    assert torch.equal(convolutions.run_norm(layer, z), twin.bn(z))


def test_refused_as_pytorch_refuses():
    net = ghost_ops.fuse(layer().train())
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        net(torch.randn(1, 3, 2, 2))
    assert net(torch.randn(0, 3, 8, 8)).shape == (0, 6, 4, 4)


def test_explained(x):
    net = ghost_ops.fuse(layer().train())
    runs = block_of(net).decide(net, x).runs
    assert runs == "PyTorch's convolution, batch_norm_act_train on native"
    with ghost_ops.use_backend("reference"):
        assert "reference backend was asked for" in block_of(net).decide(net, x).why


def test_small_maps_are_pytorchs(x, monkeypatch):
    monkeypatch.setattr(convolutions, "LEAST_NORMALISED", 3 * 6 * 12 * 9 + 1)
    plain = randomise(layer()).train()
    net = ghost_ops.fuse(copy.deepcopy(plain))
    assert torch.equal(net(x), plain(x))
    assert "maps of less than" in block_of(net).decide(net, x).why
