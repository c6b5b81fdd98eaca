"""RepGhost modules whose branches are merged: one program in eval, their layers in training."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import ghost_ops
from ghost_ops.fused import FrozenProgram, RepGhostParts
from ghost_ops.fused.behaviour import block_of, is_fused
from ghost_ops.fused.rep_ghost_module import RepGhostModuleBlock
from ghost_ops.surgery.recognise import survey
from tests.fused.twins import assert_agree
from tests.helpers import make_map, randomise


class Deployed(nn.Module):
    """As timm's and the authors' after ``reparameterize``: the sum is one convolution with a bias."""

    def __init__(self, channels, out_channels, kernel=3, act=nn.ReLU, norm=False, **geometry):
        super().__init__()
        self.primary_conv = nn.Sequential(
            nn.Conv2d(channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels), act()
        )
        geometry = {"padding": kernel // 2, "groups": out_channels} | geometry
        self.cheap_operation = nn.Conv2d(out_channels, out_channels, kernel, **geometry)
        self.norm = nn.BatchNorm2d(out_channels) if norm else nn.Identity()
        self.relu = act()

    def forward(self, x):
        return self.relu(self.norm(self.cheap_operation(self.primary_conv(x))))


class Linear(Deployed):
    """The second module of a bottleneck has no activations."""

    def __init__(self, channels, out_channels):
        super().__init__(channels, out_channels, act=nn.Identity)


class Added(Deployed):
    def forward(self, x):
        y = self.primary_conv(x)
        return self.relu(self.cheap_operation(y) + y)


MODULES = {
    "as deployed": lambda: Deployed(6, 20),
    "without activations": lambda: Linear(20, 6),
    "BatchNorms, 5 x 5, PReLU": lambda: Deployed(7, 9, 5, nn.PReLU, norm=True),
}


def fused(make):
    module = randomise(make())
    assert block_of(ghost_ops.fuse(module)).kind == "RepGhost module"
    return module


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("training", [False, True])
def test_agrees_with_pytorch(name, training):
    module = fused(MODULES[name]).train(training)
    channels = module.primary_conv[0].in_channels
    assert_agree(module, make_map((3, channels, 13, 10), layout="channels_last"), backward=True)
    if not training:
        assert_agree(module, make_map((2, channels, 9, 12)), backward=False)


def test_one_program_in_eval():
    module, x = fused(MODULES["as deployed"]).eval(), torch.randn(2, 6, 9, 9)
    with torch.no_grad():
        assert "program_eval on native" in block_of(module).decide(module, x).runs
        expected = module(x)
        for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert torch.equal(again(x), expected)
        handle = module.cheap_operation.register_forward_hook(lambda m, args, out: out + 1)
        assert not torch.equal(module(x), expected)
        handle.remove()
        assert torch.equal(module(x), expected)
    assert block_of(module).parts == RepGhostParts(
        ("primary_conv.0", "primary_conv.1", "primary_conv.2", "cheap_operation", "relu")
    )
    assert type(ghost_ops.revert(module)) is Deployed


@pytest.mark.parametrize("make", [lambda: Deployed(6, 20, dilation=2, padding=2), lambda: Added(6, 20)])
def test_another_module_is_not_mentioned(make):
    module = randomise(make())
    assert survey(module) == [] and not is_fused(module)


@pytest.mark.parametrize(
    "module",
    [lambda: Deployed(6, 20, groups=10), lambda: Deployed(6, 20, stride=2), lambda: nn.Sequential(nn.Conv2d(6, 20, 1))],
)
def test_not_nominated(module):
    assert RepGhostModuleBlock.find(module()) is None


def test_timms_net():
    timm = pytest.importorskip("timm")
    from timm.utils.model import reparameterize_model

    net = randomise(reparameterize_model(timm.create_model("repghostnet_050").eval()))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = net(x)
        ghost_ops.fuse(net)
        assert sum(isinstance(block_of(m), RepGhostModuleBlock) for m in net.modules()) == 32
        torch.testing.assert_close(net(x), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
        frozen = ghost_ops.freeze(net)
        assert sum(isinstance(m, FrozenProgram) for m in frozen.modules()) == 1
        torch.testing.assert_close(frozen(x), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
