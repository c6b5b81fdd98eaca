"""Which convolution layers ``fuse`` takes, and what they keep: their class, order, state and PyTorch's results."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import ghost_ops
from ghost_ops.fused import conv_layer
from ghost_ops.fused.behaviour import block_of, is_fused
from ghost_ops.fused.conv_layer import ConvLayerBlock, ConvLayerParts
from tests import zoo


class Conv(nn.Module):
    def __init__(self, *args, act=nn.SiLU, **kwargs):
        super().__init__()
        self.conv = nn.Conv2d(*args, **kwargs)
        self.bn = nn.BatchNorm2d(self.conv.out_channels)
        self.act = act()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class Doubled(Conv):
    def forward(self, x):
        return 2 * super().forward(x)


class ActivationFirst(Conv):
    def forward(self, x):
        return self.bn(self.act(self.conv(x)))


class Concatenated(nn.Sequential):
    def forward(self, x):
        return torch.cat([x, super().forward(x)], 1)


def sequence(*args, act=nn.ReLU, **kwargs):
    conv = nn.Conv2d(*args, **kwargs)
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), *[] if act is None else [act()])


def nested():
    return nn.Sequential(sequence(3, 8, 3, act=None), nn.Identity(), nn.ReLU())


@pytest.mark.parametrize(
    ("net", "parts"),
    [
        (sequence(3, 16, 3, 2, 1), ConvLayerParts("0", "1", "2")),
        (sequence(1, 16, 5, act=None), ConvLayerParts("0", "1", None)),
        (sequence(24, 72, 1, act=nn.Hardswish), ConvLayerParts("0", "1", "2")),
        (nested(), ConvLayerParts("0.0", "0.1", "2")),
        (sequence(32, 64, 3, dilation=2), ConvLayerParts("0", "1", "2")),
        (sequence(8, 8, 3, groups=8), ConvLayerParts("0", "1", "2")),
        (Conv(3, 16, 3, 2, 1), ConvLayerParts("conv", "bn", "act")),
    ],
)
def test_taken(net, parts):
    own = type(net)
    ghost_ops.fuse(net)
    assert isinstance(net, own) and isinstance(block_of(net), ConvLayerBlock) and block_of(net).parts == parts
    assert sum(map(is_fused, net.modules())) == 1
    ghost_ops.revert(net)
    assert type(net) is own and not any(map(is_fused, net.modules()))


@pytest.mark.parametrize(
    "net",
    [
        sequence(3, 16, 3, act=nn.Softplus),
        sequence(3, 16, 3, padding=1, padding_mode="reflect"),
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU()),
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8)),
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1)),
        nn.ModuleList(sequence(3, 8, 3)),
        Doubled(3, 8, 3),
        ActivationFirst(3, 8, 3),
        Concatenated(*sequence(3, 8, 3)),
    ],
)
def test_left_as_it_is(net):
    with pytest.warns(UserWarning, match="no Ghost module was found"):
        ghost_ops.fuse(net)
    assert not any(map(is_fused, net.modules()))


def test_layers_inside_of_blocks_are_the_blocks():
    net = nn.Sequential(sequence(3, 16, 3, 2, 1), zoo.ArticleBottleneck(16, 48, 24, 3, 2, True))
    ghost_ops.fuse(net)
    layers = [name for name, m in net.named_modules() if isinstance(block_of(m), ConvLayerBlock)]
    assert layers == ["0"]
    assert not is_fused(ghost_ops.fuse(zoo.ArticleGhostModule(8, 16)).primary_conv)


def test_what_only_looks_like_a_block_is_not_looked_into():
    with pytest.warns(UserWarning, match="no Ghost module was found"):
        ghost_ops.fuse(zoo.ScaledGhostModule(8, 12))


def test_fused_again_within_a_block():
    """A block is recognised although its shortcut was fused on its own before."""
    block = zoo.HuaweiBottleneck(16, 48, 24, stride=2)
    block.shortcut = nn.Sequential(sequence(16, 24, 1, stride=1, act=None))
    block.shortcut.insert(0, nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1, groups=16), nn.BatchNorm2d(16)))
    ghost_ops.fuse(block.shortcut)
    assert any(map(is_fused, block.shortcut.modules()))
    ghost_ops.fuse(block)
    assert block_of(block) is not None and not any(map(is_fused, block.shortcut.modules()))


@pytest.mark.parametrize("make", [lambda: sequence(3, 8, 3, 2, 1, act=nn.PReLU), lambda: Conv(3, 8, 3, 2, 1)])
def test_on_the_cpu_it_is_pytorch(make):
    """To the bit, in training and in eval, after a copy and a pickle."""
    plain, x = make(), torch.randn(2, 3, 9, 8)
    fused = ghost_ops.fuse(copy.deepcopy(plain))
    again = pickle.loads(pickle.dumps(fused))
    assert fused.state_dict().keys() == plain.state_dict().keys()
    for net in (fused, again, copy.deepcopy(fused)):
        theirs = copy.deepcopy(plain)
        for mode in (True, False):
            a, b = net.train(mode)(x), theirs.train(mode)(x)
            assert torch.equal(a, b)
        assert all(map(torch.equal, net.state_dict().values(), theirs.state_dict().values()))
    assert "plain PyTorch" in str(ghost_ops.explain(fused, x))


def test_a_slice_is_plain():
    fused = ghost_ops.fuse(sequence(3, 8, 3))
    assert type(fused[:2]) is nn.Sequential and len(fused[:2]) == 2
    assert [type(m) for m in fused] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]


def test_frozen_nets_have_programs_of_blocks_only():
    net = nn.Sequential(sequence(3, 16, 3, 2, 1), zoo.ArticleBottleneck(16, 48, 24, 3, 2, True)).eval()
    x = torch.randn(1, 3, 32, 32)
    frozen = ghost_ops.freeze(ghost_ops.fuse(net))
    assert not any(isinstance(block_of(m), ConvLayerBlock) for m in frozen.modules())
    rows = ghost_ops.explain(frozen, x).rows
    assert len(rows) == 1 and "in one call" in rows[0].runs
    torch.testing.assert_close(frozen(x), net(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("net", "shape", "dtype", "reason"),
    [
        (sequence(3, 16, 3, 2, 1), (256, 3, 224, 224), torch.float16, None),
        (sequence(3, 16, 3, 2, 1), (256, 3, 224, 224), torch.bfloat16, None),
        (sequence(3, 16, 3, 2, 1), (256, 3, 224, 224), torch.float32, "in float32"),
        (sequence(3, 16, 3, 2, 1), (8, 3, 224, 224), torch.float16, "on maps of less than"),
        (sequence(24, 72, 1), (256, 24, 56, 56), torch.float16, None),
        (sequence(64, 64, 1), (256, 64, 14, 14), torch.float16, "on maps of less than"),
        (sequence(32, 64, 3), (256, 32, 112, 112), torch.float16, "for such a convolution"),
        (sequence(160, 960, 1), (256, 160, 112, 112), torch.float16, "for such a convolution"),
        (sequence(8, 8, 3, groups=8), (256, 8, 112, 112), torch.float16, "for such a convolution"),
    ],
)
def test_where_it_pays(net, shape, dtype, reason):
    """As docs/performance/gpu.md has it."""
    ghost_ops.fuse(net)
    layer = block_of(net).current_plan(net).layers.layer
    why = conv_layer.slower(layer, torch.empty(shape, dtype=dtype, device="meta"))
    assert why is None if reason is None else reason in why
