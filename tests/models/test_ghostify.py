import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import ghost_ops
from ghost_ops.models import GhostResNet56, GhostVGG16, compare_costs, ghostify
from ghost_ops.nn import GhostConv2d, GhostModule
from ghost_ops.surgery import tally

from ..helpers import make_map, randomise
from .dense import VGG16, ResNet56


def kinds(net):
    return {path: type(m).__name__ for path, m in net.named_modules() if isinstance(m, (GhostModule, GhostConv2d))}


def layer(inp=4, out=6, **options):
    return nn.Sequential(nn.Conv2d(inp, out, 3, padding=1, **options), nn.BatchNorm2d(out), nn.ReLU())


ghostify_all = functools.partial(ghostify, keep_stem=False, pointwise=True)


def test_vgg_is_the_articles():
    dense, x = VGG16(device="meta"), torch.empty(1, 3, 32, 32, device="meta")
    net = ghostify(dense, keep_stem=False)
    costs = compare_costs(dense, net, x)
    before, after = costs.total.before, costs.total.after
    assert (round(before.parameters / 1e6, 1), round(before.multiply_adds / 1e6)) == (15.0, 313)
    assert (round(after.parameters / 1e6, 1), round(after.multiply_adds / 1e6)) == (7.7, 158)
    theirs = GhostVGG16(device="meta").state_dict()
    assert [v.shape for v in net.state_dict().values()] == [v.shape for v in theirs.values()]
    assert compare_costs(dense, ghostify(dense, 4, keep_stem=False), x).total.after.parameters < 4.3e6


def test_vgg_computes_what_the_net_of_ghost_modules_does():
    net, theirs = ghostify(VGG16(), keep_stem=False).eval(), randomise(GhostVGG16()).eval()
    values = theirs.state_dict().values()
    net.load_state_dict(dict(zip(net.state_dict(), values, strict=True)))
    assert sum(isinstance(m, nn.Identity) for m in net.features) == 26
    x = make_map((1, 3, 32, 32))
    with torch.no_grad():
        torch.testing.assert_close(net(x), theirs(x))


def test_resnet_is_the_articles():
    net, theirs = ghostify(ResNet56()).eval(), randomise(GhostResNet56()).eval()
    assert len(kinds(net)) == 54
    net.load_state_dict(theirs.state_dict(), strict=True)
    x = make_map((2, 3, 32, 32))
    with torch.no_grad():
        torch.testing.assert_close(net(x), theirs(x))
    total = compare_costs(ResNet56(device="meta"), ghostify(ResNet56(device="meta")), x[:1].to("meta")).total
    assert (round(total.before.parameters / 1e6, 2), round(total.before.multiply_adds / 1e6)) == (0.85, 125)
    # 0.43 M and 63 M in the article
    assert (round(total.after.parameters / 1e6, 2), round(total.after.multiply_adds / 1e6)) == (0.44, 65)


def test_the_source_stays_and_the_copy_trains():
    dense = VGG16(16).train()
    state, x = copy.deepcopy(dense.state_dict()), make_map((4, 3, 32, 32))
    net = ghostify(dense)
    assert all(m.training for m in net.modules()) and "features.0" not in kinds(net) and len(kinds(net)) == 12
    net(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert all(p.grad is None for p in dense.parameters())
    assert all(torch.equal(value, state[name]) for name, value in dense.state_dict().items())
    assert torch.equal(net.features[0].weight, dense.features[0].weight)  # what is kept keeps its weights
    eval_net = ghostify(VGG16(16, dtype=torch.float64).eval())
    assert not any(m.training for m in eval_net.modules())
    assert all(p.dtype is torch.float64 for p in eval_net.parameters())


def test_it_is_fused_and_frozen():
    net = randomise(ghostify(nn.Sequential(*layer(3), *layer(6, 8), nn.Conv2d(8, 8, 3, 2, 1)), keep_stem=False)).eval()
    x = make_map((2, 3, 12, 12))
    with torch.no_grad():
        wanted = net(x)
        frozen = ghost_ops.freeze(net)
        assert sum(isinstance(m, ghost_ops.fused.FrozenProgram) for m in frozen.modules()) == 1
        torch.testing.assert_close(frozen(x), wanted, rtol=1e-4, atol=1e-5)
        assert str(tally(ghost_ops.fuse(net))) == "3 of 3 Ghost modules"
        torch.testing.assert_close(net(x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "stride": 2},
        {"kernel_size": 3, "padding": 2, "dilation": 2, "padding_mode": "reflect"},
        {"kernel_size": (1, 5), "stride": (2, 1), "padding": "valid"},
        {"kernel_size": 4, "padding": 1},
        {"kernel_size": 1, "stride": 2, "bias": False},
    ],
)
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("ratio", [2, 3])
def test_any_geometry(options, normed, ratio):
    conv = nn.Conv2d(3, 7, **options)
    dense = nn.Sequential(conv, nn.BatchNorm2d(7)) if normed else nn.Sequential(conv)
    net = ghostify_all(dense, ratio, dw_size=5)
    x = make_map((2, 3, 11, 12))
    assert net(x).shape == dense(x).shape
    first = net[0].primary_conv[0] if normed else net[0].conv1
    assert isinstance(net[0], GhostModule if normed else GhostConv2d)
    second = net[0].cheap_operation[0] if normed else net[0].conv2
    assert first.out_channels == -(-7 // ratio) and second.kernel_size == (5, 5)
    assert second.out_channels == first.out_channels * (ratio - 1)
    for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode"):
        assert getattr(first, name) == getattr(conv, name)
    assert (first.bias is not None) == (not normed and conv.bias is not None)


class Net(nn.Module):
    """A net of one convolution and more, whose forward is given."""

    def __init__(self, forward):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


@pytest.mark.parametrize(
    ("forward", "kind", "has_relu", "has_norm"),
    [
        (lambda net, x: net.relu(net.norm(net.conv(x))), GhostModule, True, False),
        (lambda net, x: net.norm(net.conv(x)).relu_(), GhostModule, True, False),
        (lambda net, x: F.relu(net.norm(net.conv(x)), inplace=True), GhostModule, True, False),
        (lambda net, x: torch.relu(net.norm(net.conv(x))), GhostModule, True, False),
        (lambda net, x: F.silu(net.norm(net.conv(x))), GhostModule, False, False),
        (lambda net, x: net.relu(net.norm(net.conv(net.relu(x)))), GhostModule, True, False),
        (lambda net, x: F.relu(y := net.norm(net.conv(x))) + y, GhostModule, False, False),
        (lambda net, x: net.norm(y := net.conv(x)) + y, GhostConv2d, False, True),
        (lambda net, x: net.norm(net.conv(net.norm(x))), GhostConv2d, False, True),
        (lambda net, x: net.relu(net.conv(x)), GhostConv2d, False, True),
    ],
)
def test_what_follows(forward, kind, has_relu, has_norm):
    net = ghostify_all(Net(forward))
    assert type(net.conv) is kind and isinstance(net.norm, nn.BatchNorm2d) == has_norm
    if kind is GhostModule:
        assert isinstance(net.conv.primary_conv[2], nn.ReLU) == has_relu
    net(make_map((2, 4, 5, 5))).sum().backward()


def test_options():
    dense = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, groups=2), GhostModule(4, 4, 3),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)),
    )  # fmt: skip
    assert set(kinds(ghostify(dense))) == {"1", "4", "5.0", "5.1"}
    assert set(kinds(ghostify(dense, pointwise=True))) == {"1", "2", "4", "5.0", "5.1"}
    assert set(kinds(ghostify(dense, keep_stem=False, keep=["5", "1"]))) == {"0", "4"}
    two_stems = Net(lambda net, x: net.conv(x / 2) + net.other(x * 2))
    two_stems.other = nn.Conv2d(4, 4, 3, padding=1)
    with pytest.raises(ValueError, match=r"nothing to replace: this Net has no dense .*, is not a stem \(keep_stem"):
        ghostify(two_stems)
    assert set(kinds(ghostify(two_stems, keep_stem=False))) == {"conv", "other"}


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.conv(x) if x.shape[2] > 2 else x


class Excited(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.reduce, self.expand, self.pool = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1), pool

    def forward(self, x):
        return x * self.expand(F.relu(self.reduce(self.pool(x)))).sigmoid()


def test_what_stays():
    dense = nn.Sequential(*layer(3, 4), Branching(), nn.Conv2d(4, 4, 3))
    assert set(kinds(ghostify_all(dense))) == {"0", "4"}
    assert set(kinds(ghostify(nn.Sequential(Branching(), *layer(4, 4))))) == {"1"}  # it is no stem
    for pool in (
        nn.AdaptiveAvgPool2d(1),
        lambda x: x.mean((2, 3), keepdim=True),
        lambda x: torch.mean(x, dim=[-1, -2], keepdim=True),
        lambda x: F.adaptive_avg_pool2d(x, (1, 1)),
    ):
        dense = nn.Sequential(nn.Conv2d(3, 4, 1), Excited(pool), nn.Conv2d(4, 4, 1))
        assert set(kinds(ghostify_all(dense))) == {"0", "2"}
    for pool in (lambda x: x.mean(1, keepdim=True) + x, nn.AdaptiveAvgPool2d(2), lambda x: x.mean((2,), keepdim=True)):
        assert set(kinds(ghostify_all(Excited(pool)))) == {"reduce", "expand"}


def hooked(net):
    net[1].register_forward_hook(lambda *_: None)
    return net


def shared_weight(net):
    net[3].weight = net[0].weight
    return net


def two_names():
    net = Net(lambda net, x: net.again(x))
    net.again = net.conv
    return net


class OwnForward(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) + 1


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Linear(3, 3)), "nothing to replace"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), OwnForward(4, 4, 3)), "nothing to replace"),
        (nn.Conv2d(3, 3, 3), "nothing to replace"),
        (hooked(layer()), "1 carries hooks"),
        (nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3))), "0 carries parametrisations"),
        (Net(lambda net, x: net.conv(net.conv(x))), "conv is called 2 times: a shared convolution"),
        (shared_weight(nn.Sequential(*layer(4, 4), *layer(4, 4))), "0 shares a parameter"),
        (two_names(), "conv has 2 names: a shared module"),
        (Net(lambda net, x: net.conv(x) * net.conv.weight.sum()), "conv: a forward reads its tensors"),
        (Net(lambda net, x: net.conv(x) * net.conv.out_channels), "torch.fx cannot trace .*out_channels"),
        (
            nn.Sequential(Net(lambda net, x: net.conv(x) * net.conv.out_channels)),
            "the forward of 0 reads what only",
        ),
        (Net(lambda net, x: net.conv(x) if x.sum() > 0 else x), "torch.fx cannot trace this Net"),
    ],
)
def test_nets_that_it_refuses(net, message):
    with pytest.raises(ValueError, match=f"ghostify: net: .*{message}") as error:
        ghostify_all(net)
    assert "\n" not in str(error.value)


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"net: expected a torch.nn.Module, got int"):
        ghostify(3)
    for ratio in (0, 1):
        with pytest.raises(ValueError, match=r"ratio: expected"):
            ghostify(layer(), ratio)
    with pytest.raises(TypeError, match=r"ratio: expected a positive int, got 2.0"):
        ghostify(layer(), 2.0)
    with pytest.raises(ValueError, match="dw_size: expected an odd positive int, got 4"):
        ghostify(layer(), dw_size=4)
    with pytest.raises(ValueError, match="keep: no module has the path 'head'"):
        ghostify(layer(), keep=["head"])
    with pytest.raises(TypeError, match="keep: expected paths of modules, got the string 'head'"):
        ghostify(layer(), keep="head")
    with pytest.raises(ValueError, match=r"net: 0 is fused or frozen: call ghost_ops.revert first"):
        ghostify(ghost_ops.fuse(nn.Sequential(GhostModule(4, 4), nn.Conv2d(4, 4, 3))))


def test_table():
    dense = nn.Sequential(*layer(3, 8), *layer(8, 8), nn.Conv2d(8, 2, 1))
    costs = compare_costs(dense, ghostify(dense, keep_stem=False), make_map((1, 3, 6, 6)))
    assert [(row.name, row.kinds) for row in costs.rows] == [(n, ("Conv2d", "GhostModule")) for n in ("0", "3")]
    first = costs.rows[1]
    assert (first.before.parameters, first.before.multiply_adds) == (8 * 8 * 9 + 8, 8 * 8 * 9 * 36)
    assert first.after.multiply_adds == (8 * 4 * 9 + 4 * 9) * 36
    assert first.after.parameters == 8 * 4 * 9 + 4 * 9 + 2 * 8
    assert costs.total.after.parameters == sum(p.numel() for p in ghostify(dense, keep_stem=False).parameters())
    text = str(costs)
    assert all(part in text for part in ("Conv2d -> GhostModule", "the others", "the net", f"{8 * 8 * 9 * 36:,}"))
    same = compare_costs(dense, dense, (make_map((1, 3, 6, 6)),))
    assert not same.rows and same.total.before == same.total.after
    with pytest.raises(TypeError, match=r"after: expected a torch.nn.Module, got int"):
        compare_costs(dense, 3, None)
