"""Whatever way a Ghost module is written in: it runs fused, or ``explain`` names it with the reason."""

import copy
import re
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ghost_ops.surgery import explain, freeze, fuse, survey, tally

from .. import zoo
from ..helpers import assert_as_accurate, make_map, randomise
from . import ways
from .ways import Excite, Functional, none

RECOGNISED = {
    "F.relu": Functional,
    "torch.relu": lambda: Functional(torch.relu),
    "in place": lambda: Functional(torch.relu_),
    "maximum": lambda: Functional(lambda x: torch.max(x, torch.zeros_like(x))),
    "clamp": lambda: Functional(lambda x: x.clamp(0, 6)),
    "leaky": lambda: Functional(lambda x: F.leaky_relu(x, 0.1)),
    "elu": lambda: Functional(lambda x: F.elu(x, 0.7)),
    "silu by hand": lambda: Functional(lambda x: x * x.sigmoid()),
    "gelu": lambda: Functional(F.gelu),
    "gelu of tanh": lambda: Functional(partial(F.gelu, approximate="tanh")),
    "first half only": lambda: Functional(F.relu, none),
    "subclass of ReLU": lambda: Functional(ways.OwnReLU()),
    "own SiLU": lambda: Functional(ways.OwnSiLU()),
    "own LeakyReLU": lambda: Functional(ways.OwnLeaky()),
    "own h-swish": lambda: Functional(ways.OwnSwish()),
    "subclass of Conv2d": lambda: Functional(conv=ways.OwnConv),
    "subclass of BatchNorm2d": lambda: Functional(norm=ways.OwnNorm),
    "no running statistics": lambda: Functional(norm=ways.without_statistics),
    "optional second argument": ways.Optional,
    "excite: F.relu": Excite,
    "excite: F.silu": lambda: Excite(F.silu),
    "excite: own class": lambda: Excite(ways.OwnSiLU()),
    "excite: torch.sigmoid": lambda: Excite(gate=torch.sigmoid),
    "excite: x / 5 + 0.5": lambda: Excite(gate=ways.fifth),
    "excite: F.silu, x / 5 + 0.5": lambda: Excite(F.silu, ways.fifth),
    "excite: numbers of its own": lambda: Excite(gate=ways.Line()),
}


def drawn(module, **options):
    channels = 12 if isinstance(module, ways.Split) else 8 if isinstance(module, Excite) else 6
    return make_map((2, channels, 12, 11), **options)


@pytest.mark.parametrize("name", RECOGNISED)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_recognised(name, training):
    plain = randomise(RECOGNISED[name]()).train(training)
    fused = fuse(copy.deepcopy(plain))
    x = drawn(plain)
    rows = explain(fused, x).rows
    alone = not training and isinstance(plain, Excite)  # without gradients it runs its own forward
    assert rows[0].fused and ("as fast" in rows[0].why if alone else "native" in rows[0].runs), rows
    cotangent, found = torch.randn(copy.deepcopy(plain)(x).shape), []
    for module, dtype in ((fused, torch.float32), (plain, torch.float32), (copy.deepcopy(plain), torch.float64)):
        module.to(dtype)
        leaf = x.to(dtype, copy=True).requires_grad_()
        out = module(leaf)
        module.zero_grad()
        (out * cotangent.to(dtype)).sum().backward()
        found.append([out, leaf.grad, *(p.grad for p in module.parameters())])
        plain.float()
    for ours, eager, truth in zip(*found, strict=True):
        assert_as_accurate(ours.detach(), eager.detach(), truth.detach())
    with torch.no_grad():
        assert_as_accurate(fused.eval()(x), plain.eval()(x), copy.deepcopy(plain).double()(x.double()))


NAMED = {
    "activation after the concatenation": (ways.ActAfter, "its activation, relu, comes after the concatenation"),
    "BatchNorm over it": (ways.NormAfter, "its BatchNorm 'norm' normalises the concatenation"),
    "BatchNorm over it alone": (lambda: ways.NormAfter(none), "its BatchNorm 'norm' normalises the concatenation"),
    "reversed": (ways.Reversed, "its halves in the reverse order"),
    "dropout": (ways.DropoutAfter, "draws random numbers"),
    "scale": (ways.Scaled, "its results differ .* also calls relu, mul"),
    "residual": (ways.Residual, "its results differ .* also calls pad, relu, add"),
    "two cheap operations": (ways.TwoCheap, "2 cheap operations, 'small.0' and 'large.0'"),
    "branches": (ways.Branches, "a sum of 3 convolutions, 'cheap.0.0', .*: fold its branches first"),
    "inline": (ways.Inline, "computes a Ghost module itself, with 'expand' and 'cheap'"),
    "twice inline": (ways.TwoInline, "computes 2 Ghost modules itself, with 'dw1' and 'dw2'"),
    "inline of one half": (ways.Split, "computes a Ghost module itself, with 'expand' and 'cheap'"),
    "frozen BatchNorm": (lambda: Functional(norm=ways.FrozenNorm), "normalisation 'norm1' is of the class FrozenNorm"),
    "InstanceNorm": (lambda: Functional(norm=nn.InstanceNorm2d), "'norm1' is of the class InstanceNorm2d"),
    "GroupNorm": (lambda: Functional(norm=partial(nn.GroupNorm, 2)), "'norm1' is of the class GroupNorm"),
    "another convolution": (
        lambda: Functional(conv=ways.StandardisedConv),
        "its convolution 'primary' is of the class StandardisedConv",
    ),
    "an unknown function": (lambda: Functional(F.softsign), "its results differ .* also calls softsign"),
    "a flat kernel": (lambda: Functional(kernel=(1, 7), padding=(0, 3)), "must be square and odd.*kernel 1 x 7"),
    "dilation": (lambda: Functional(padding=2, dilation=2), r"not be dilated: .*dilation \(2, 2\)"),
    "reflection": (lambda: Functional(padding_mode="reflect"), "pads with mode 'reflect'"),
    "excite: a number in a buffer": (
        lambda: Excite(gate=ways.LineOfBuffer()),
        "any of the gates clamp, .*also calls mean",
    ),
    "excite: numbers after the clamp": (lambda: Excite(gate=ways.beyond), "any of the gates clamp, .*also calls mean"),
    "excite: LeakyReLU": (lambda: Excite(F.leaky_relu), "known activations .*also calls mean, leaky_relu"),
}


@pytest.mark.parametrize("name", NAMED)
def test_named(name):
    make, reason = NAMED[name]
    module = randomise(make()).eval()
    x = drawn(module)
    wanted = module(x)
    with pytest.warns(UserWarning, match="0 of 1") as caught:
        fuse(module)
    (row,) = explain(module, x).rows
    assert re.search(reason, row.why), row.why
    assert not row.fused and row.why in str(caught[0].message)
    assert "failed" not in row.why and "Error" not in row.why
    assert torch.equal(module(x), wanted)


PARTLY = {  # what freeze leaves of it to PyTorch; of the others nothing
    "scale": "no step computes mul with a parameter",
    "InstanceNorm": "an InstanceNorm2d", "GroupNorm": "a GroupNorm",
    "another convolution": "StandardisedConv", "an unknown function": "softsign", "reflection": "pads with mode",
    "excite: a number in a buffer": "", "excite: numbers after the clamp": "",
}  # fmt: skip
BEFORE = {ways.Split: 12, Excite: 8}


@pytest.mark.parametrize("name", [name for name in NAMED if name not in PARTLY])
def test_what_is_not_fused_is_frozen(name):
    module = randomise(NAMED[name][0]()).eval()
    channels = BEFORE.get(type(module), 6)
    net = nn.Sequential(randomise(nn.Conv2d(channels, channels, 3, padding=1)), module).eval()
    frozen, x = freeze(net), drawn(module)
    (row,) = explain(frozen, x).rows
    assert row.fused and row.runs.startswith("program on native") and row.why == "", row
    with torch.no_grad():
        assert_as_accurate(frozen(x), net(x), copy.deepcopy(net).double()(x.double()))


@pytest.mark.parametrize("name", PARTLY)
def test_what_freeze_leaves_is_named(name):
    module = randomise(NAMED[name][0]()).eval()
    channels = BEFORE.get(type(module), 6)
    net = nn.Sequential(randomise(nn.Conv2d(channels, channels, 3, padding=1)), module).eval()
    frozen, x = freeze(net), drawn(module)
    whys = [row.why for row in explain(frozen, x).rows if not row.fused]
    assert any(PARTLY[name] in why for why in whys), whys
    with torch.no_grad():
        assert_as_accurate(frozen(x), net(x), copy.deepcopy(net).double()(x.double()))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_a_gate_in_other_numbers_within_a_bottleneck(training):
    plain = randomise(zoo.HuaweiBottleneck(6, 16, 8, stride=2, se=True))
    plain.se.gate_fn = ways.fifth
    fused = fuse(copy.deepcopy(plain)).train(training)
    plain.train(training)
    x, exact = make_map((2, 6, 12, 11)), copy.deepcopy(plain).double()
    rows = {row.name: row for row in explain(fused, x).rows}
    assert rows["se"].runs.startswith("squeeze_excite on") if training else rows[""].runs.startswith("as one block")
    assert_as_accurate(*(module(t).detach() for module, t in ((fused, x), (plain, x), (exact, x.double()))))
    with torch.no_grad():
        assert_as_accurate(fused(x), plain(x), exact(x.double()))


def test_a_kernel_that_no_backend_has():
    module = fuse(Functional(kernel=9)).eval()
    (row,) = explain(module, drawn(module)).rows
    assert row.runs == "plain PyTorch" and "this one is 9" in row.why


def test_a_second_argument_runs_the_own_forward():
    plain = randomise(ways.Optional()).eval()
    fused, x, skip = fuse(copy.deepcopy(plain)), drawn(plain), make_map((2, 16, 12, 11))
    for call in (lambda m: m(x, skip), lambda m: m(x, skip=skip), lambda m: m(x=x, skip=skip)):
        assert torch.equal(call(fused), call(plain))
    torch.testing.assert_close(fused(x, None), plain(x))


def set_slope(module):
    module.act.slope = 0.5


def other_class(module):
    module.act = module.cheap_act = ways.OwnSiLU()


def other_function(module):
    module.act = F.silu


def unknown(module):
    module.act = nn.Softsign()


def hooked(module):
    module.act.register_forward_hook(lambda *_: torch.zeros(1))


CHANGES = [
    (lambda: Functional(ways.OwnLeaky()), set_slope, True),
    (lambda: Functional(ways.OwnReLU()), other_class, True),
    (lambda: Functional(F.relu), other_function, True),
    (lambda: Functional(ways.OwnReLU()), unknown, False),
    (lambda: Excite(ways.OwnSiLU()), unknown, False),
    (lambda: Excite(F.relu), other_function, True),
    (lambda: Excite(F.relu, ways.Line()), lambda m: setattr(m.gate, "scale", 0.3), True),
    (lambda: Excite(F.relu, ways.fifth), lambda m: setattr(m, "gate", torch.tanh), False),
    (lambda: Excite(F.relu, nn.Sigmoid()), lambda m: setattr(m, "gate", nn.Hardsigmoid()), True),
    (lambda: zoo.ArticleSELayer(8, gate=nn.Sigmoid()), lambda m: m.fc.__setitem__(3, nn.Hardsigmoid()), True),
    (lambda: zoo.ArticleSELayer(8, gate=nn.Sigmoid()), lambda m: m.fc.__setitem__(3, nn.Tanh()), False),
]


@pytest.mark.parametrize(("make", "change", "stays_fused"), CHANGES)
@pytest.mark.parametrize("used", [False, True])
def test_a_changed_activation_is_noticed(make, change, stays_fused, used):
    plain = randomise(make())
    plain.train(not isinstance(plain, Functional))  # an excitation runs its own forward in inference
    fused = fuse(copy.deepcopy(plain))
    x = make_map((2, 6 if isinstance(plain, Functional) else 8, 12, 11))
    if used:
        fused(x)
    change(plain)
    change(fused)
    torch.testing.assert_close(fused(x), plain(x))
    assert ("native" in explain(fused, x).rows[0].runs) == stays_fused


def test_hooks_on_what_is_skipped_run():
    module = fuse(randomise(Functional(ways.OwnReLU()))).eval()
    calls = []
    module.act.register_forward_hook(lambda *_: calls.append(1))
    module(drawn(module))
    assert len(calls) == 2
    assert "'act' carries hooks" in explain(module, drawn(module)).rows[0].why


def test_copies_and_pickles(tmp_path):
    module = fuse(randomise(Functional(ways.OwnSiLU()))).eval()
    x = drawn(module)
    wanted = module(x)
    torch.save(module, tmp_path / "module.pt")
    for other in (copy.deepcopy(module), torch.load(tmp_path / "module.pt", weights_only=False)):
        assert torch.equal(other(x), wanted) and "native" in explain(other, x).rows[0].runs


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("order", ["fold fuse", "fuse fold", "fuse call fold", "fuse copy fold", "fuse fold copy"])
def test_layers_that_their_net_folds(order, copied):
    plain = randomise(ways.Foldable()).eval()
    module, x = copy.deepcopy(plain), make_map((2, 6, 12, 11))
    steps = {"fold": ways.Foldable.fold, "fuse": fuse, "call": lambda m: (m(x), m)[1], "copy": copy.deepcopy}
    for step in order.split():
        module = steps[step](module)
    module = copy.deepcopy(module) if copied else module
    with torch.no_grad():
        assert_as_accurate(module(x), plain(x), copy.deepcopy(plain).double()(x.double()))
    (row,) = explain(module, x).rows
    assert row.fused and "native" in row.runs, row


@pytest.mark.parametrize("copied", [False, True])
def test_another_forward_of_an_instance_is_noticed(copied):
    plain = randomise(ways.Foldable()).eval()
    module, x = fuse(copy.deepcopy(plain)), make_map((2, 6, 12, 11))
    module = copy.deepcopy(module) if copied else module
    for m in (plain, module):
        m.cv1.forward = m.cv1.forward_fuse  # its BatchNorm is still there, but not called
    torch.testing.assert_close(module(x), plain(x))
    for m in (plain, module):
        m.cv1.forward = lambda x, m=m: 2 * m.cv1.conv(x)
    assert torch.equal(module(x), plain(x))
    assert "forward of its child 'cv1' was replaced" in explain(module, x).rows[0].why
    for m in (plain, module):
        del m.cv1.forward
    torch.testing.assert_close(module(x), plain(x))
    assert "native" in explain(module, x).rows[0].runs


@pytest.mark.parametrize("act", [F.relu, ways.OwnSiLU(), ways.OwnLeaky()])
def test_frozen(act):
    net = randomise(nn.Sequential(Functional(act), nn.Conv2d(16, 6, 1), Functional(act))).eval()
    x = drawn(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of what it does not freeze
        frozen = freeze(net)
    assert_as_accurate(frozen(x), net(x), copy.deepcopy(net).double()(x.double()))


def net_of(*modules):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(modules)

        def forward(self, x):
            for part in self.parts:
                x = part(x)[:, :6]
            return x

    return Net()


def test_fuse_says_how_many_of_how_many():
    net = net_of(Functional(), ways.Scaled(), ways.Scaled(), ways.TwoCheap(), ways.ActAfter(), ways.Reversed())
    assert str(tally(net)) == "0 of 6 Ghost modules"
    with pytest.warns(UserWarning) as caught:
        fuse(net)
    (message,) = (str(w.message) for w in caught)
    assert message.startswith(
        "fuse: 1 of 6 Ghost modules run fused, the others stay plain PyTorch: parts.1 and 1 more: "
    )
    assert message.count("parts.") == 3 and message.endswith("; and 1 more reasons")
    counted = tally(net)
    assert (dict(counted.fused), dict(counted.left)) == ({"Ghost module": 1}, {"Ghost module": 5})
    assert list(map(len, counted.reasons.values())) == [2, 1, 1, 1]
    text = str(explain(net, make_map((1, 6, 9, 9))))
    assert "1 of 6 Ghost modules run fused" in text


def test_fuse_is_silent_where_all_is_taken():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fuse(net_of(Functional(), zoo.HuaweiBottleneck(6, 8, 6, se=False)))


def test_nothing_to_take():
    with pytest.warns(UserWarning, match="no Ghost module was found in this Net that can run fused; 0 of 1 Ghost mod"):
        fuse(net_of(ways.Reversed()))
    with pytest.warns(UserWarning, match="no Ghost module was found in this Linear that can run fused$"):
        fuse(nn.Linear(2, 2))


class Shuffle(nn.Module):
    """ShuffleNetV2's unit: a depthwise convolution and a concatenation, and no Ghost module."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(zoo.conv_bn(4, 4, 1), zoo.conv_bn(4, 4, 3, groups=4), zoo.conv_bn(4, 4, 1))

    def forward(self, x):
        kept, x = x.chunk(2, 1)
        return torch.cat([kept, self.branch(x)], 1)


class Fire(nn.Module):
    """SqueezeNet's, with a depthwise expansion."""

    def __init__(self):
        super().__init__()
        self.squeeze, self.one = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.three = nn.Conv2d(4, 8, 3, padding=1, groups=4)

    def forward(self, x):
        x = F.relu(self.squeeze(x))
        return torch.cat([self.one(x), self.three(x)], 1)


@pytest.mark.parametrize("make", [Shuffle, Fire, lambda: net_of(Functional(), nn.Conv2d(6, 6, 3, 1, 1, 1, 6))])
def test_what_is_no_ghost_module_is_not_named(make):
    assert [found.reason for found in survey(make()) if found.reason is not None] == []
