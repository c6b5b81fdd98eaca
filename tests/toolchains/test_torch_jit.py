"""TorchScript: fused and frozen nets are scripted and traced as the plain nets that they stand for."""

import copy
import io
import warnings

import pytest
import torch
from torch import nn

import ghost_ops
from ghost_ops.fused.in_place import made_class
from ghost_ops.nn import GhostBottleneck, GhostModule

from .. import zoo
from ..helpers import make_map, randomise
from .nets import NETS, assert_same, image, made, make

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
HOW = {
    "script": lambda net, x: torch.jit.script(net),
    "trace": lambda net, x: torch.jit.trace(net, x, check_trace=False),
}
every_how = pytest.mark.parametrize("how", HOW)
every_way = pytest.mark.parametrize("way", ["fused", "frozen"])


def recorded(how, net, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return HOW[how](net, x)


SCRIPTED = ("one program", "yolo")  # the others' forwards are none that TorchScript compiles, fused or not


@pytest.mark.parametrize(
    ("name", "how"), [*((name, "trace") for name in NETS), *((name, "script") for name in SCRIPTED)]
)
@every_way
def test_plain_nets_are_recorded(name, way, how):
    net, plain = made(name, way)
    x, other = image(), image(1)
    classes = [type(m) for m in net.modules()]
    script = recorded(how, net, x)
    assert [type(m) for m in net.modules()] == classes
    file = io.BytesIO()
    torch.jit.save(script, file)
    loaded = torch.jit.load(io.BytesIO(file.getvalue()))
    assert "ghost_ops::" not in str(loaded.inlined_graph)
    more = loaded.state_dict().keys() - plain.state_dict().keys()
    assert not more or (how == "trace" and all(key.endswith(".packed") for key in more))
    for v in (x, other):
        assert_same(loaded(v), plain(v))
        assert_same(net(v), plain(v))  # which runs as before


@every_how
def test_what_is_built_fused(how):
    for net, plain in (
        (ghost_ops.FusedGhostModule(8, 13, ratio=3), GhostModule(8, 13, ratio=3)),
        (ghost_ops.FusedGhostBottleneck(8, 16, 8, 3, 2, 0.25), GhostBottleneck(8, 16, 8, 3, 2, 0.25)),
    ):
        randomise(net).eval().requires_grad_(False)
        plain.load_state_dict(net.state_dict())
        x = make_map((2, 8, 9, 7))
        assert_same(recorded(how, net, x)(x), plain.eval().requires_grad_(False)(x))


def test_names_of_the_forward():
    """What a forward refers to by names around its class is found where the plain one finds it."""
    join = torch.cat

    class Joining(zoo.ArticleGhostModule):
        def forward(self, x):
            x1 = self.primary_conv(x)
            x2 = self.cheap_operation(x1)
            return join([x1, x2], dim=1)[:, : self.oup, :, :]

    plain = randomise(Joining(8, 12)).eval().requires_grad_(False)
    net = ghost_ops.fuse(copy.deepcopy(plain))
    assert made_class(type(net)) is not None
    x = make_map((2, 8, 9, 7))
    assert_same(torch.jit.script(net)(x), torch.jit.script(plain)(x))


@pytest.mark.parametrize("way", [ghost_ops.fuse, ghost_ops.freeze])
def test_a_sequence(way):
    """TorchScript walks through the items of a Sequential, among which no programs are."""
    plain = randomise(nn.Sequential(zoo.ArticleGhostModule(3, 8), zoo.ArticleGhostModule(8, 12))).eval()
    x = image()
    with torch.no_grad():
        assert_same(recorded("script", way(copy.deepcopy(plain)), x)(x), plain(x))


def test_in_training():
    plain = randomise(nn.Sequential(zoo.ArticleBottleneck(8, 16, 8, 3, 1, True)))
    net = ghost_ops.fuse(copy.deepcopy(plain))
    x = make_map((2, 8, 9, 7))
    assert_same(torch.jit.script(net.train())(x).detach(), plain.train()(x).detach())


def test_a_trace_of_a_frozen_net_says_that_it_has_no_kernels():
    net, _ = made("parted", "frozen")
    with pytest.warns(UserWarning, match=r"recorded in plain PyTorch by torch\.jit\.trace.*torch\.export keeps them"):
        torch.jit.trace(net, image())


def test_a_program_without_plain_modules():
    """A frozen graph module has nothing but its programs: they are recorded as what their steps mean."""
    plain = make("one program")
    net = ghost_ops.freeze(torch.fx.symbolic_trace(plain))
    assert any(isinstance(m, ghost_ops.fused.FrozenProgram) for m in net.modules())
    script = recorded("trace", net, image())
    assert "ghost_ops::" not in str(script.inlined_graph)
    for v in (image(), image(1)):
        assert_same(script(v), plain(v))


def test_changed_weights_are_noticed_here_too():
    net, _ = made("one program", "frozen")
    with torch.no_grad():
        net.stem[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        recorded("trace", net, image())
