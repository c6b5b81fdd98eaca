import copy

import pytest
import torch
from torch import nn

from ghost_ops import models
from ghost_ops.fused import FusedGhostBottleneck, FusedGhostModule, FusedSELayer
from ghost_ops.nn import GhostModule
from ghost_ops.surgery import fuse, revert

from .. import zoo
from ..fused.twins import run, why
from ..helpers import assert_as_accurate, make_map, randomise

FUSED = (FusedGhostModule, FusedSELayer, FusedGhostBottleneck)
CASES = {
    "article": lambda: zoo.ArticleGhostModule(8, 12),
    "article, sliced": lambda: zoo.ArticleGhostModule(8, 11, ratio=3, dw_size=5, relu=False),
    "article, 3x3 stride 2": lambda: zoo.ArticleGhostModule(8, 12, 3, stride=2),
    "article, ReLU6": lambda: zoo.ArticleGhostModule(8, 12, act=nn.ReLU6),
    "yolo": lambda: zoo.YoloGhostConv(8, 12),
    "yolo, 3x3 stride 2": lambda: zoo.YoloGhostConv(8, 12, 3, 2),
    "picodet": lambda: zoo.PicoGhostModule(8, 12, 5),
    "ghost-resnet": lambda: zoo.ResNetGhostModule(8, 14, 3, ratio=4, padding=1),
    "ghost-resnet, 1x1 stride 2": lambda: zoo.ResNetGhostModule(8, 14, 1, stride=2),
    "v3 deployed": lambda: zoo.DeployedV3GhostModule(8, 12),
    "SE, clamp": lambda: zoo.ArticleSELayer(8),
    "SE, sigmoid": lambda: zoo.ArticleSELayer(8, gate=nn.Sigmoid()),
    "SE, hard sigmoid": lambda: zoo.HuaweiSqueezeExcite(8, 4),
    "SE, identity": lambda: zoo.ArticleSELayer(8, gate=nn.Identity()),
    "article's block": lambda: zoo.ArticleBottleneck(8, 16, 12, 5, 2, True),
    "article's block, identity": lambda: zoo.ArticleBottleneck(8, 16, 8, 3, 1, True),
    "huawei's block": lambda: zoo.HuaweiBottleneck(8, 16, 12, 5, 2, True),
    "huawei's block, SE": lambda: zoo.HuaweiBottleneck(8, 16, 8, se=True),
    "huawei's block, identity": lambda: zoo.HuaweiBottleneck(8, 16, 8),
    "yolo's block": lambda: zoo.YoloGhostBottleneck(8, 12, 3, 2),
    "yolo's block, identity": lambda: zoo.YoloGhostBottleneck(8, 8),
}


def make_net():
    blocks = zoo.HuaweiBottleneck(8, 16, 8, se=True), zoo.ArticleBottleneck(8, 16, 12, 3, 2, True)
    return randomise(zoo.Net(*blocks, zoo.YoloGhostConv(12, 12)))


def count(net):
    return [sum(isinstance(m, kind) for m in net.modules()) for kind in FUSED]


def assert_same(ours, eager, exact, what):
    """Equal but for float32 rounding in a chain of operators, of which PyTorch has its share.

    How accurate each operator is, is tested with it; a piece in the wrong place would show as an error of order 1.
    """
    error, of_eager = (torch.linalg.vector_norm(result.double() - exact) for result in (ours, eager))
    assert error <= 1e-5 * torch.linalg.vector_norm(exact).clamp(min=1) + 3 * of_eager, what


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("mode", ["inference", "eval", "train"])
@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients(name, mode, layout):
    plain = randomise(CASES[name]()).train(mode == "train")
    exact, fused = copy.deepcopy(plain).double(), fuse(copy.deepcopy(plain))
    assert isinstance(fused, FUSED)
    x = make_map((2, 8, 9, 7), layout=layout)
    backward = mode != "inference"
    ours, eager, truth = run(fused, x, backward), run(plain, x, backward), run(exact, x.double(), backward)
    assert ours.keys() == truth.keys()
    for what, result in ours.items():
        if truth[what] is None:
            assert result is None, what
        else:
            assert_same(result, eager[what], truth[what], what)


def test_in_eval_blocks_run_as_one():
    x = make_map((2, 8, 9, 7))
    for name in (
        "article's block",
        "huawei's block",
        "huawei's block, identity",
        "yolo's block",
        "yolo's block, identity",
    ):
        with torch.no_grad():
            assert why(fuse(CASES[name]().eval()), x).startswith("as one block"), name


def test_timm_net():
    timm = pytest.importorskip("timm")
    plain = randomise(timm.create_model("ghostnet_100", num_classes=5)).eval()
    fused = fuse(copy.deepcopy(plain))
    assert count(fused) == [32, 7, 16]
    x = make_map((2, 3, 64, 64))
    with torch.no_grad():
        ours, eager = fused(x), plain(x)
        truth = plain.double()(x.double())
    assert_as_accurate(ours, eager, truth)
    assert count(revert(fused)) == [0, 0, 0]
    with torch.no_grad():
        assert torch.equal(fused(x), eager)


@pytest.mark.parametrize("name", [name for name in zoo.__dict__ if name.endswith("GhostModule") and name[:5] in
                                  ("Scale", "Swapp", "Dropo", "Layer", "Atten")])  # fmt: skip
def test_lookalikes_compute_what_they_did(name):
    module = randomise(zoo.__dict__[name](8, 12)).eval()
    x = make_map((2, 8, 9, 7))
    with torch.no_grad():
        wanted = module(x)
        with pytest.warns(UserWarning, match=f"no Ghost module was found in this {name} that .* 0 of 1 Ghost modules"):
            assert fuse(module) is module
        assert torch.equal(module(x), wanted)


def test_shares_everything():
    net = make_net()
    parameters, buffers = dict(net.named_parameters()), dict(net.named_buffers())
    names = [name for name, _ in net.named_modules()]
    keys = list(net.state_dict())
    leaves = {name: m for name, m in net.named_modules() if not m._modules}
    assert fuse(net) is net
    assert count(net) == [5, 2, 2]
    assert [name for name, _ in net.named_modules()] == names
    assert list(net.state_dict()) == keys
    assert all(p is parameters[name] for name, p in net.named_parameters())
    assert all(b is buffers[name] for name, b in net.named_buffers())
    assert all(net.get_submodule(name) is m for name, m in leaves.items())


def test_revert_puts_the_very_modules_back():
    net = make_net().eval()
    modules = list(net.modules())
    x = make_map((2, 3, 17, 17))
    with torch.no_grad():
        wanted = net(x)
        assert not torch.equal(fuse(net)(x), torch.zeros_like(wanted))
        assert revert(net) is net
        assert all(a is b for a, b in zip(net.modules(), modules, strict=True))
        assert torch.equal(net(x), wanted)
        fuse(net)
        assert count(net) == [5, 2, 2]


def test_revert_knows_what_happened_meanwhile():
    net = fuse(make_net().train())
    net.blocks[0].ghost2.cheap_operation[1] = nn.Identity()
    net.eval()
    net.blocks[1].note = "said later"
    net.to(torch.float64)
    revert(net)
    assert not any(m.training for m in net.modules())
    assert isinstance(net.blocks[0].ghost2.cheap_operation[1], nn.Identity)
    assert net.blocks[1].note == "said later"
    assert all(p.dtype == torch.float64 for p in net.parameters())
    net.blocks[0].ghost1.train()
    assert fuse(net).blocks[0].ghost1.training and not net.blocks[0].ghost2.training


def test_revert_of_what_was_built_fused():
    net = models.ghostnet_050(fused=True).eval()
    x = make_map((1, 3, 32, 32))
    keys = list(net.state_dict())
    with torch.no_grad():
        wanted = net(x)
        assert count(revert(net)) == [0, 0, 0]
        torch.testing.assert_close(net(x), wanted)
    assert list(net.state_dict()) == keys
    assert type(net.blocks[0][0].ghost1) is GhostModule


def test_root():
    module = zoo.ArticleGhostModule(8, 12)
    assert fuse(module) is module and isinstance(module, FusedGhostModule)
    made = type(module)
    assert issubclass(made, zoo.ArticleGhostModule) and made.__name__ == "FusedArticleGhostModule"
    assert fuse(module) is module and type(module) is made
    assert type(fuse(zoo.ArticleGhostModule(4, 6))) is made
    assert revert(module) is module and type(module) is zoo.ArticleGhostModule
    block = zoo.HuaweiBottleneck(8, 16, 8, se=True)
    assert (
        fuse(block) is block and isinstance(block, FusedGhostBottleneck) and isinstance(block.ghost1, FusedGhostModule)
    )
    assert not isinstance(block, FusedGhostModule) and not isinstance(block.ghost1, FusedGhostBottleneck)
    assert revert(block) is block and type(block) is zoo.HuaweiBottleneck
    assert type(block.ghost1) is zoo.ArticleGhostModule


@pytest.mark.filterwarnings("error")
def test_idempotent():
    net = fuse(make_net())
    modules = list(net.modules())
    assert fuse(net) is net
    assert all(a is b for a, b in zip(net.modules(), modules, strict=True))


def test_what_was_fused_before_serves_in_a_block():
    block = zoo.HuaweiBottleneck(8, 16, 8, se=True)
    block.ghost1, block.se = fuse(block.ghost1), fuse(block.se)
    first = block.ghost1
    fused = fuse(block)
    assert isinstance(fused, FusedGhostBottleneck) and fused.ghost1 is first
    assert count(fused) == [2, 1, 1]


def test_shared_modules_stay_shared():
    ghost, block = zoo.ArticleGhostModule(8, 8), zoo.HuaweiBottleneck(8, 16, 8)
    net = nn.Sequential(ghost, block, nn.Sequential(ghost, block), block.ghost1)
    fuse(net)
    assert net[0] is net[2][0] and net[1] is net[2][1] and net[1].ghost1 is net[3]
    assert isinstance(net[0], FusedGhostModule) and isinstance(net[1], FusedGhostBottleneck)
    revert(net)
    assert net[0] is net[2][0] is ghost and net[1] is net[2][1] is block and net[3] is block.ghost1


def test_a_cycle_of_plain_references_does_no_harm():
    net = make_net()
    net.blocks[0].notes = [net, net.blocks[1]]  # no child: a plain attribute
    fuse(net)
    assert count(net) == [5, 2, 2]
    assert net.blocks[0].notes[0] is net


def test_mode_and_requires_grad_are_kept():
    net = make_net()
    net.blocks[0].eval()
    net.blocks[0].ghost1.primary_conv[0].weight.requires_grad_(False)
    modes = {name: m.training for name, m in net.named_modules()}
    fuse(net)
    assert {name: m.training for name, m in net.named_modules()} == modes
    assert [n for n, p in net.named_parameters() if not p.requires_grad] == ["blocks.0.ghost1.primary_conv.0.weight"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("path", ["blocks.0", "blocks.0.ghost1", "blocks.0.se", "blocks.0.shortcut",
                                  "blocks.0.ghost2.cheap_operation.1", "blocks.1.conv.2.avg_pool"])  # fmt: skip
def test_hooks_fire(path, when):
    net = make_net().eval()
    x, calls = make_map((2, 3, 17, 17)), []
    with torch.no_grad():
        wanted = net(x)
        if when == "after":
            fuse(net)
        child = net.get_submodule(path)
        handles = [
            child.register_forward_pre_hook(lambda *_: calls.append("before")),
            child.register_forward_hook(lambda module, args, out: calls.append(out) or 2 * out),
        ]
        fuse(net)
        doubled = net(x)
        assert calls[0] == "before" and len(calls) == 2
        assert not torch.allclose(doubled, wanted, rtol=1e-3)
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(net(x), wanted)
        assert len(calls) == 2


def test_nothing_to_fuse():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    before = list(net.modules())
    with pytest.warns(UserWarning, match="no Ghost module was found in this Sequential"):
        assert fuse(net) is net
    assert list(net.modules()) == before
    assert revert(net) is net


@pytest.mark.parametrize("function", [fuse, revert])
@pytest.mark.parametrize("net", [None, "net", torch.ones(2), nn.ReLU])
def test_no_module(function, net):
    with pytest.raises(TypeError, match=r"net: expected a torch\.nn\.Module, got"):
        function(net)
