"""What a frozen net computes, what becomes a program, and what is left as it is."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ghost_ops import explain, freeze, models
from ghost_ops.backends import native
from ghost_ops.fused import FrozenProgram
from ghost_ops.fused.frozen_net import Frozen
from ghost_ops.fused.frozen_state import state_of
from ghost_ops.fused.in_place import source_class

from .. import zoo
from ..helpers import assert_as_accurate, make_map, randomise
from .test_fuse import CASES


@pytest.fixture(autouse=True)
def _as_with_kernels(monkeypatch):
    """Where the kernels are not built, programs run on the reference."""
    if not native.available():
        monkeypatch.setattr(native, "available", lambda: True)


def programs(net):
    return [m for m in net.modules() if isinstance(m, FrozenProgram)]


def whole_program(frozen):
    """The program that is all of a frozen net, which has kept its class."""
    (program,) = programs(frozen)
    assert isinstance(frozen, Frozen) and state_of(frozen).whole, frozen
    assert not state_of(frozen).left
    return program


def assert_agrees(net, *inputs, expected=None, frozen=None):
    """The frozen net is as accurate as the net, against float64; returns it."""
    frozen = freeze(net) if frozen is None else frozen
    exact = copy.deepcopy(net).double()
    with torch.no_grad():
        for x in inputs:
            ours, eager = frozen(x), net(x)
            assert_as_accurate(ours, eager, exact(x.double()), what=f"{type(net).__name__} on {tuple(x.shape)}")
            if ours.dim() == 4 and eager.shape[2] > 1 and eager.shape[1] > 1:
                assert ours.is_contiguous() or ours.is_contiguous(memory_format=torch.channels_last)
    if expected is not None:
        assert len(programs(frozen)) == expected, frozen
    assert isinstance(frozen, source_class(net)) and not any(p.requires_grad for p in frozen.parameters())
    return frozen


class Classifier(nn.Module):
    """The article's net, small: stem, blocks, 1x1 convolution, pooling, layers."""

    def __init__(self, *blocks, channels=8, out=12, classes=5):
        super().__init__()
        self.stem = zoo.conv_bn(3, channels, 3, 2, act=nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(*blocks)
        self.squeeze = nn.Sequential(zoo.conv_bn(out, 21, 1, act=nn.ReLU(inplace=True)), nn.AdaptiveAvgPool2d((1, 1)))
        self.classifier = nn.Sequential(
            nn.Linear(21, 17, bias=False), nn.BatchNorm1d(17), nn.ReLU(inplace=True), nn.Dropout(0.2),
            nn.Linear(17, classes),
        )  # fmt: skip

    def forward(self, x):
        x = self.squeeze(self.blocks(self.stem(x)))
        return self.classifier(x.view(x.size(0), -1))


def huawei():
    return zoo.HuaweiBottleneck(8, 16, 8, se=True), zoo.HuaweiBottleneck(8, 22, 12, 5, 2, True)


NETS = {
    "huawei": lambda: Classifier(*huawei()),
    "article": lambda: Classifier(
        zoo.ArticleBottleneck(8, 16, 8, 3, 1, True), zoo.ArticleBottleneck(8, 18, 12, 5, 2, False)
    ),
    "yolo": lambda: Classifier(zoo.YoloGhostBottleneck(8, 8), zoo.YoloGhostBottleneck(8, 12, 3, 2)),
    "modules": lambda: Classifier(
        zoo.PicoGhostModule(8, 12, 5), zoo.DeployedV3GhostModule(12, 14), zoo.YoloGhostConv(14, 12)
    ),
    "ratios": lambda: Classifier(
        zoo.ArticleGhostModule(8, 23, ratio=3), zoo.ArticleGhostModule(23, 12, ratio=4, dw_size=5)
    ),
}


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("name", NETS)
def test_small_nets_become_one_program(name, layout):
    net = randomise(NETS[name]()).eval()
    inputs = [
        make_map((n, 3, h, w), layout=layout, seed=n) for n, h, w in ((1, 33, 47), (9, 17, 15), (2, 64, 64), (1, 1, 1))
    ]
    frozen = assert_agrees(net, *inputs)
    assert not whole_program(frozen).returns_map()
    with torch.no_grad():
        assert frozen(inputs[0][:0]).shape == (0, 5)


@pytest.mark.parametrize("name", ["ghostnet_050", "ghostnet_100", "ghostnet_130"])
def test_timm_nets_become_one_program(name):
    timm = pytest.importorskip("timm")
    net = randomise(timm.create_model(name, num_classes=11)).eval()
    inputs = [make_map((n, 3, h, w), layout=layout, seed=n) for n, h, w, layout in
              ((1, 97, 65, "nchw"), (3, 64, 64, "channels_last"))]  # fmt: skip
    assert not whole_program(assert_agrees(net, *inputs)).returns_map()


@pytest.mark.parametrize("name", ["ghostnet_050", "ghostnet_100", "ghostnet_130"])
def test_our_nets_become_one_program(name):
    net = randomise(getattr(models, name)(num_classes=11)).eval()
    frozen = assert_agrees(net, make_map((2, 3, 65, 79), layout="channels_last"))
    assert not whole_program(frozen).returns_map()


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("SE") and "3x3" not in name and
                                  name not in ("ghost-resnet", "ghost-resnet, 1x1 stride 2")])  # fmt: skip
def test_single_modules(name, layout):
    module = randomise(CASES[name]()).eval()
    inputs = [make_map((n, 8, h, w), layout=layout) for n, h, w in ((2, 9, 7), (1, 33, 40), (3, 1, 1))]
    frozen = assert_agrees(module, *inputs)
    assert whole_program(frozen).returns_map()


@pytest.mark.parametrize("mid, out", [(12, 24), (30, 24), (24, 24)])
def test_bottlenecks_of_other_ratios(mid, out):
    """Cheap operations that make twice as many channels, on maps large enough that rows run in turn."""
    block = zoo.HuaweiBottleneck(out, mid, out)
    block.ghost1 = zoo.ArticleGhostModule(out, mid, ratio=3)
    block.ghost2 = zoo.ArticleGhostModule(mid, out, ratio=3, relu=False)
    assert_agrees(randomise(block).eval(), make_map((2, out, 23, 23)), expected=1)


HEADS = {
    "mean": lambda x: x.mean((2, 3)),
    "mean of others": lambda x: x.mean((-1, -2)),
    "mean kept": lambda x: x.mean((2, 3), True),
    "mean of rows": lambda x: x.mean(2),
    "mean twice": lambda x: x.mean(3).mean(2),
    "mean of channels": lambda x: x.mean(1),
    "mean of channels by name": lambda x: x.mean(dim=1, keepdim=True),
    "mean of all": lambda x: x.mean(),
    "mean of no dim": lambda x: x.mean(dim=None),
    "torch.mean": lambda x: torch.mean(x, dim=[2, 3], keepdim=True),
    "mean in float64": lambda x: x.mean((2, 3), dtype=torch.float64),
    "pool": lambda x: F.adaptive_avg_pool2d(x, 1),
    "pool of a pair": lambda x: F.adaptive_avg_pool2d(x, (1, 1)),
    "pool to columns": lambda x: F.adaptive_avg_pool2d(x, (1, None)),
    "pool by name": lambda x: F.adaptive_avg_pool2d(x, output_size=1),
    "pool, flatten": lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
    "pool, flatten spatially": lambda x: F.adaptive_avg_pool2d(x, 1).flatten(2),
    "pool, torch.flatten": lambda x: torch.flatten(F.adaptive_avg_pool2d(x, 1), start_dim=1),
    "flatten": lambda x: x.flatten(1),
    "relu": lambda x: F.relu(x, inplace=True),
    "in place": lambda x: x.mul_(2).relu_(),
    "max pool": lambda x: F.max_pool2d(x, 2).mean((2, 3)),
    "twice": lambda x: x + x.mean((2, 3), keepdim=True),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "leaky": lambda x: F.leaky_relu(x, 0.3),
}


class Headed(nn.Module):
    """A Ghost module, then anything."""

    def __init__(self, head, *more):
        super().__init__()
        self.ghost, self.head, self.more = zoo.ArticleGhostModule(8, 12), head, nn.ModuleList(more)

    def forward(self, x):
        return self.head(self.ghost(x), *self.more)


@pytest.mark.parametrize("name", HEADS)
def test_what_follows(name):
    assert_agrees(randomise(Headed(HEADS[name])).eval(), make_map((2, 8, 9, 7)), make_map((1, 8, 5, 6)), expected=1)


LAYERS = {
    "1x1": lambda: nn.Conv2d(12, 9, 1),
    "PReLU": lambda: nn.Sequential(nn.Conv2d(12, 9, 1), nn.PReLU(9)),
    "strided": lambda: nn.Conv2d(12, 9, 1, 2),
    "padded": lambda: nn.Conv2d(12, 9, 1, padding=1),
    "same": lambda: nn.Conv2d(12, 9, 1, padding="same"),
    "grouped": lambda: nn.Conv2d(12, 12, 3, 1, 1, groups=4),
    "depthwise": lambda: nn.Conv2d(12, 12, 5, 3, 2, groups=12, bias=False),
    "dense": lambda: nn.Conv2d(12, 9, 3, 1, 1),
    "dilated": lambda: nn.Conv2d(12, 12, 3, 1, 2, 2, groups=12),
    "uneven": lambda: nn.Conv2d(12, 12, (3, 5), 1, (1, 2), groups=12),
    "mirrored": lambda: nn.Conv2d(12, 12, 3, 1, 1, groups=12, padding_mode="reflect"),
    "9x9": lambda: nn.Conv2d(12, 12, 9, 1, 4, groups=12),
    "linear": lambda: nn.Linear(7, 3),
    "norm": lambda: nn.BatchNorm2d(12),
    "expands": lambda: nn.Conv2d(12, 24, 3, 1, 1, groups=12),
    "transposed": lambda: nn.ConvTranspose2d(12, 9, 1),
    "pooled 1x1": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 9, 1), nn.Hardswish(), nn.Flatten()),
    "pooled padded": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 9, 1, padding=1)),
    "pooled strided": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 9, 1, 2), nn.LeakyReLU(0.3)),
    "pooled linear": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Linear(1, 3)),
    "layers": lambda: nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 33), nn.ReLU(), nn.BatchNorm1d(33), nn.Linear(33, 2)
    ),
}


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_around(name, before):
    layer, other = LAYERS[name](), zoo.ArticleGhostModule(8, 12)
    if before and ("pool" in name or name in ("layers", "linear")):
        return
    channels = 12 if before else 8
    modules = [layer, zoo.ArticleGhostModule(9 if getattr(layer, "out_channels", 9) == 9 and name != "norm" else
                                             24 if name == "expands" else 12, 10)]  # fmt: skip
    net = nn.Sequential(*modules) if before else nn.Sequential(other, layer)
    count = 2 if name == "pooled padded" else 1  # of features no step makes a map
    assert_agrees(randomise(net).eval(), make_map((2, channels, 9, 7)), make_map((1, channels, 20, 7)), expected=count)


STEMS = {
    "7x7": lambda: nn.Conv2d(3, 8, 7, 2, 3),
    "4x4": lambda: nn.Conv2d(3, 8, 4, 4),
    "2x2": lambda: nn.Conv2d(3, 8, 2, 1, 1),
    "1x1 strided": lambda: nn.Conv2d(3, 8, 1, 2),
    "uneven": lambda: nn.Conv2d(3, 8, (3, 5), 2, 1),
    "uneven stride": lambda: nn.Conv2d(3, 8, 3, (1, 2), 1),
    "uneven padding": lambda: nn.Conv2d(3, 8, 3, 1, (1, 0)),
    "dilated": lambda: nn.Conv2d(3, 8, 3, 1, 2, 2),
    "mirrored": lambda: nn.Conv2d(3, 8, 3, 1, 1, padding_mode="reflect"),
    "same": lambda: nn.Conv2d(3, 8, 3, 1, "same"),
    "valid": lambda: nn.Conv2d(3, 8, 3, 2, "valid"),
}


@pytest.mark.parametrize("name", STEMS)
def test_stems(name):
    net = nn.Sequential(STEMS[name](), nn.BatchNorm2d(8), nn.SiLU(), zoo.ArticleGhostModule(8, 12))
    for layout in ("nchw", "channels_last"):
        assert_agrees(randomise(net).eval(), make_map((2, 3, 29, 31), layout=layout), expected=1)


# What is left as it is


def hooked(module):
    module.register_forward_hook(lambda m, i, out: out * 2)
    return module


def hooked_inside(module):
    hooked(module.primary_conv[1])
    return module


def hooked_before(module):
    module.register_forward_pre_hook(lambda m, inputs: (inputs[0] * 2,))
    return module


def normalised(module):
    nn.utils.parametrizations.weight_norm(module.primary_conv[0])
    return module


def without_statistics(module):
    module.primary_conv[1] = nn.BatchNorm2d(6, track_running_stats=False)
    return module


MIDDLE = {
    "hooked": (lambda: hooked(zoo.ArticleGhostModule(12, 12)), ""),
    "hooked before": (lambda: hooked_before(zoo.ArticleGhostModule(12, 12)), ""),
    "hooked inside": (lambda: hooked_inside(zoo.ArticleGhostModule(12, 12)), "hooks"),
    "parametrised": (lambda: normalised(zoo.ArticleGhostModule(12, 12)), "parametri"),
    "batch statistics": (lambda: without_statistics(zoo.ArticleGhostModule(12, 12)), ""),
    "look-alike": (lambda: zoo.ScaledGhostModule(12, 12), "does not compute a Ghost module"),
    "hooked block": (lambda: hooked(zoo.HuaweiBottleneck(12, 20, 12, se=True)), ""),
    "unknown": (nn.Softplus, None),
    "max pooling of ceiled size": (lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True), None),
    "hooked convolution": (lambda: hooked(nn.Conv2d(12, 12, 1)), None),
}  # fmt: skip


@pytest.mark.parametrize("name", MIDDLE)
def test_left_as_it_is(name):
    make, why = MIDDLE[name]
    net = randomise(nn.Sequential(zoo.ArticleGhostModule(8, 12), make(), zoo.ArticleGhostModule(12, 12))).eval()
    x = make_map((2, 8, 9, 7))
    frozen = assert_agrees(net, x, expected=2)
    rows = explain(frozen, x).rows
    assert sum(row.module == "FrozenProgram" for row in rows) == 2
    if why is not None:
        left = [row for row in rows if row.name.partition(".")[0] == "1" and not row.runs.startswith("program on")]
        assert any(why in row.why for row in left), rows


@pytest.mark.parametrize("primary", [(3, 2, 3, 1), (1, 2, 3, 2), (5, 3, 5, 2)], ids=str)
def test_primary_convolutions_of_any_size_are_in_a_program(primary):
    kernel, ratio, size, stride = primary
    middle = zoo.ArticleGhostModule(12, 12, kernel, ratio, size, stride=stride)
    net = randomise(nn.Sequential(zoo.ArticleGhostModule(8, 12), middle, zoo.ArticleGhostModule(12, 12))).eval()
    assert_agrees(net, make_map((2, 8, 9, 7)), make_map((1, 8, 16, 5)), expected=1)


@pytest.mark.parametrize("name", ["hooked", "hooked before", "hooked block"])
def test_hooks_of_the_net_itself_run(name):
    net = randomise(MIDDLE[name][0]()).eval()
    assert_agrees(net, make_map((2, 12, 9, 7)))
    outer = randomise(nn.Sequential(zoo.ArticleGhostModule(12, 8), nn.ReLU())).eval()
    (hooked_before if "before" in name else hooked)(outer)
    assert_agrees(outer, make_map((2, 12, 9, 7)), expected=1)


def test_dropout_that_still_drops_is_left():
    net = nn.Sequential(
        zoo.ArticleGhostModule(8, 12), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 5)
    )
    net = randomise(net).eval()
    net[3].train()
    frozen, x = freeze(net), make_map((64, 8, 5, 5))
    with torch.no_grad():
        torch.manual_seed(1)
        want = net(x)
        torch.manual_seed(1)
        torch.testing.assert_close(frozen(x), want, rtol=1e-4, atol=1e-4)


SIZES = {
    "its own": lambda self, x: (y := F.adaptive_avg_pool2d(self.ghost(x), 1)).view(y.size(0), -1),
    "shape": lambda self, x: F.adaptive_avg_pool2d(self.ghost(x), 1).view(x.shape[0], -1),
    "the input's": lambda self, x: F.adaptive_avg_pool2d(self.ghost(x), 1).view(x.size(0), -1),
    "the input's, read before": lambda self, x: (lambda n: F.adaptive_avg_pool2d(self.ghost(x), 1).view(n, -1))(
        x.size(0)
    ),
    "the input's, used twice": lambda self, x: (
        lambda n: F.adaptive_avg_pool2d(self.ghost(x), 1).view(n, -1) + x.mean((1, 2, 3)).view(n, 1)
    )(x.size(0)),
    "channels": lambda self, x: F.adaptive_avg_pool2d(self.ghost(x), 1).view(x.size(1), -1),
    "reshape": lambda self, x: F.adaptive_avg_pool2d(self.ghost(x), 1).reshape(-1, 4),
}


@pytest.mark.parametrize("name", SIZES)
def test_views(name):
    class Net(Headed):
        forward = SIZES[name]

    assert_agrees(randomise(Net(None)).eval(), make_map((2, 8, 9, 7)), make_map((4, 8, 5, 6)), expected=1)


class Branched(nn.Module):
    """A map that several read, a module that is called again, an input that is written to."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = zoo.ArticleGhostModule(8, 8), zoo.ArticleGhostModule(8, 8), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        y = self.a(x)
        z = self.b(self.b(y))
        z += y
        x = y.clone()
        w = self.a(x)
        x.add_(1)
        return self.c(z) * self.c.weight.mean() + w, F.relu(self.b(x), inplace=True)


def test_branches_and_writing():
    net = randomise(Branched()).eval()
    frozen, x, exact = freeze(net), make_map((2, 8, 9, 7)), copy.deepcopy(net).double()
    with torch.no_grad():
        for ours, eager, truth in zip(frozen(x), net(x), exact(x.double()), strict=True):
            assert_as_accurate(ours, eager, truth)
    assert [program.result_count() for program in programs(frozen)] == [3, 1]  # PyTorch's is what was written to


# Nets that cannot be traced


class Untraceable(nn.Module):
    """What it does depends on its input."""

    def __init__(self, how, container=nn.Sequential):
        super().__init__()
        self.how = how
        blocks = zoo.HuaweiBottleneck(8, 16, 8), zoo.ArticleBottleneck(8, 16, 8, 3, 1, True), zoo.YoloGhostConv(8, 8)
        self.blocks = container(*blocks) if container is nn.Sequential else container(blocks)

    def forward(self, x):
        if x.mean() > 1e9:
            return x
        if self.how == "called":
            return self.blocks(x)
        if self.how == "indexed":
            return self.blocks[2](self.blocks[1](self.blocks[0](x)))
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize(
    "container, how",
    [
        (nn.Sequential, "called"),
        (nn.Sequential, "in a loop"),
        (nn.Sequential, "indexed"),
        (nn.ModuleList, "in a loop"),
        (nn.ModuleList, "indexed"),
    ],
)
def test_untraceable_nets(container, how):
    net = randomise(Untraceable(how, container)).eval()
    frozen = assert_agrees(net, make_map((2, 8, 9, 7)))
    assert isinstance(frozen, Untraceable) and len(programs(frozen)) == (1 if how == "called" else 3)


@pytest.mark.parametrize("container", [nn.Sequential, nn.ModuleList])
def test_hooks_in_untraceable_nets_run(container):
    for index in range(3):
        net = randomise(Untraceable("in a loop", container)).eval()
        hooked(net.blocks[index])
        assert_agrees(net, make_map((2, 8, 9, 7)))


def test_optional_arguments():
    class Net(Headed):
        def forward(self, x, skip=None):
            y = self.more[0](self.ghost(x))
            return y if skip is None else y + skip

    net = randomise(Net(None, zoo.ArticleGhostModule(12, 12))).eval()
    frozen, x, skip = assert_agrees(net, make_map((2, 8, 9, 7))), make_map((2, 8, 9, 7)), make_map((2, 12, 9, 7))
    with torch.no_grad():
        torch.testing.assert_close(frozen(x, skip=skip), net(x, skip=skip), rtol=1e-4, atol=1e-4)
