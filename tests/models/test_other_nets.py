"""Ghost-ResNet-50, Ghost-ResNet-56 and Ghost-VGG-16."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import ghost_ops
from ghost_ops.models import MODELS, convert_state_dict
from ghost_ops.nn import GhostConv2d
from ghost_ops.surgery import tally

from ..helpers import assert_as_accurate, make_map, randomise
from ..zoo import ResNetGhostModule


def count(net, side):
    """Millions of parameters and of multiply-adds."""
    with FlopCounterMode(display=False) as counter:
        net.eval()(torch.empty(1, 3, side, side, device="meta"))
    return sum(p.numel() for p in net.parameters()) / 1e6, counter.get_total_flops() / 2e6


def test_counts_are_the_articles():
    parameters, multiply_adds = count(MODELS["ghost_vgg16"](device="meta"), 32)
    assert (round(parameters, 1), round(multiply_adds)) == (7.7, 158)
    parameters, multiply_adds = count(MODELS["ghost_resnet56"](device="meta"), 32)  # 0.43 M and 63 M in the article
    assert (round(parameters, 2), round(multiply_adds)) == (0.44, 65)
    # 13.0 M and 2.2 G in the article; these are those of Huawei's code, of the layers that it calls
    parameters, multiply_adds = count(MODELS["ghost_resnet50"](device="meta"), 224)
    assert (round(parameters, 1), round(multiply_adds)) == (13.9, 2151)


def huawei_resnet50(net):
    """The same net of Huawei's modules, with the parameters that these do not use."""
    source = copy.deepcopy(net)
    for path, module in net.named_modules():
        if isinstance(module, GhostConv2d):
            first, m = module.conv1, module.conv1.out_channels
            theirs = ResNetGhostModule(
                first.in_channels,
                module.oup,
                first.kernel_size[0],
                stride=first.stride,
                padding=first.padding,
                bias=False,
            )
            theirs.weight2, theirs.bn2 = nn.Parameter(torch.randn(m, 1, 3, 3)), nn.BatchNorm2d(m)
            source.set_submodule(path, theirs)
    return source


def test_huaweis_ghost_resnet_is_converted():
    source = randomise(huawei_resnet50(MODELS["ghost_resnet50"](num_classes=5))).eval()
    state = source.state_dict()
    assert "layer1.0.conv1.weight1" in state and "layer4.2.conv3.bn2.weight" in state
    net = MODELS["ghost_resnet50"](num_classes=5).eval()
    net.load_state_dict(convert_state_dict(state, "ghost_resnet50"), strict=True)
    x = make_map((1, 3, 64, 64))
    with torch.no_grad():
        wanted = source(x)
        assert float((net(x) - wanted).abs().max() / wanted.abs().max()) < 1e-5


BEGINNINGS = {  # of each net the first layers, and how many Ghost modules these have
    "ghost_resnet50": (lambda net: (net.conv1, net.bn1, net.relu, net.maxpool, *net.layer1[:2]), 7),
    "ghost_resnet56": (lambda net: (net.conv1, net.bn1, nn.ReLU(), net.layer1[0], *net.layer2[:2]), 6),
    "ghost_vgg16": (lambda net: tuple(net.features[:5]), 4),
}


@pytest.mark.parametrize("name", BEGINNINGS)
def test_fused_and_frozen(name):
    layers, ghosts = BEGINNINGS[name]
    net = randomise(nn.Sequential(*layers(MODELS[name]()))).eval()
    x = make_map((2, 3, 16, 16))
    with torch.no_grad():
        wanted, exact = net(x), copy.deepcopy(net).double()(x.double())
        frozen = ghost_ops.freeze(net)
        assert sum(isinstance(m, ghost_ops.fused.FrozenProgram) for m in frozen.modules()) == 1
        assert_as_accurate(frozen(x), wanted, exact)
        fused = ghost_ops.fuse(net)
        assert str(tally(fused)).startswith(f"{ghosts} of {ghosts} Ghost modules")
        assert_as_accurate(fused(x), wanted, exact)


@pytest.mark.parametrize(("name", "features"), [("ghost_resnet50", 2048), ("ghost_resnet56", 64), ("ghost_vgg16", 512)])
def test_without_a_classifier_and_bad_arguments(name, features):
    net = MODELS[name](num_classes=0, in_chans=1, device="meta").eval()
    assert net(torch.empty(2, 1, 64, 64, device="meta")).shape == (2, features)
    assert convert_state_dict(net.state_dict(), name).keys() == net.state_dict().keys()
    with pytest.raises(ValueError, match=r"num_classes: expected at least 0, got -1"):
        MODELS[name](num_classes=-1)
    with pytest.raises(ValueError, match=r"in_chans: expected at least 1, got 0"):
        MODELS[name](in_chans=0)
    with pytest.raises(ValueError, match=r"ratio: expected"):
        MODELS[name](ratio=0)
