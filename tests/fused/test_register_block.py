"""Blocks of one's own: the example of the documentation, blocks of blocks, and the messages of what is refused."""

from __future__ import annotations

import copy
import io
import re
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import ghost_ops
from ghost_ops.fused import FrozenProgram, registered_blocks, unregister_block
from ghost_ops.fused.behaviour import block_of
from ghost_ops.surgery import explain, freeze, fuse, revert

from ..helpers import randomise
from .twins import assert_agree

PAGE = Path(__file__).parents[2] / "docs" / "blocks.md"


@pytest.fixture(autouse=True)
def _as_before():
    """Blocks that a test registers are forgotten afterwards."""
    before = set(registered_blocks())
    yield
    for block in set(registered_blocks()) - before:
        unregister_block(block)


@pytest.fixture
def page():
    """The page's code up to the net, as a module that pickles find."""
    module = types.ModuleType("page_of_blocks")
    sys.modules[module.__name__] = module
    *definitions, use = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    for code in definitions:
        exec(compile(code, PAGE.name, "exec"), module.__dict__)
    module.use = use
    yield module
    del sys.modules[module.__name__]


def net_of(page: types.ModuleType) -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), page.InvertedResidual(8, 3), page.InvertedResidual(8))
    return randomise(net).eval()


def test_the_page_runs(page, capsys):
    exec(compile(page.use, PAGE.name, "exec"), page.__dict__)
    assert "FrozenProgram" in str(ghost_ops.explain(page.frozen, page.images)) or "program" in capsys.readouterr().out
    assert sum(isinstance(m, FrozenProgram) for m in page.frozen.modules()) == 1


@pytest.mark.parametrize("training", [False, True])
def test_agrees_with_pytorch(page, training):
    net = fuse(net_of(page)).train(training)
    assert [block_of(m).kind for m in net[1:]] == ["inverted residual block"] * 2
    assert_agree(net, torch.randn(3, 3, 17, 19), backward=True)
    if not training:
        assert_agree(net, torch.randn(1, 3, 16, 16), backward=False)


def test_stays_itself(page):
    net = net_of(page)
    x, state = torch.randn(2, 3, 16, 16), net.state_dict()
    with torch.no_grad():
        fused = fuse(net)
        expected = fused(x)
        assert type(net[1]).forward is not page.InvertedResidual.forward and isinstance(net[1], page.InvertedResidual)
        buffer = io.BytesIO()
        torch.save(fused, buffer)
        buffer.seek(0)
        for again in (copy.deepcopy(fused), torch.load(buffer, weights_only=False)):
            assert torch.equal(again(x), expected)
            assert [row.runs for row in explain(again, x).rows] == [row.runs for row in explain(fused, x).rows]
        assert fused.state_dict().keys() == state.keys()
        assert type(revert(net)[1]) is page.InvertedResidual
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)


def test_a_hook_sends_it_back_to_pytorch(page):
    net, x, seen = fuse(net_of(page)), torch.randn(1, 3, 8, 8), []
    handle = net[1].depthwise[0].register_forward_hook(lambda *call: seen.append(call))
    with torch.no_grad():
        net(x)
        assert len(seen) == 1
        handle.remove()
        net(x)
        assert len(seen) == 1
        assert "program" in str(block_of(net[1]).decide(net[1], torch.randn(1, 8, 4, 4)))


# A block of Ghost modules


class TwoGhosts(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ghost_ops.GhostModule(channels, 2 * channels)
        self.last = ghost_ops.GhostModule(2 * channels, channels, relu=False)
        self.shortcut = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1, groups=channels), nn.BatchNorm2d(channels))

    def forward(self, x):
        return self.last(self.first(x)) + self.shortcut(x)


@dataclass(frozen=True)
class TwoGhostsParts:
    first: str
    last: str
    shortcut: tuple[str, ...]


class TwoGhostsBlock(ghost_ops.LayerBlock):
    kind = "two Ghost modules"
    Parts = TwoGhostsParts
    holds_blocks = True
    priority = 1

    @classmethod
    def find(cls, module):
        return TwoGhostsParts("first", "last", ("shortcut",)) if isinstance(module, TwoGhosts) else None

    def read(self, structure, parts):
        return structure.find(parts.first), structure.find(parts.last), *structure.conv_bn_acts(parts.shortcut)

    def in_channels(self, layers):
        return layers[2].conv.in_channels

    def compute(self, layers, x):
        first, last, shortcut = layers
        return self.call(last, self.call(first, x)) + self.call(shortcut, x)

    def lower(self, layers, builder, source):
        first, last, shortcut = layers
        inner, residual = self.lower_child(first, builder, source), builder.chain([shortcut], source)
        out = self.lower_child(last, builder, inner, residual=residual)
        builder.release(inner, residual)
        return out


@pytest.mark.parametrize("training", [False, True])
def test_a_block_of_blocks(training):
    ghost_ops.register_block(TwoGhostsBlock)
    net = fuse(randomise(nn.Sequential(TwoGhosts(6), TwoGhosts(6))).train(training))
    assert [block_of(m).kind for m in net] == ["two Ghost modules"] * 2
    assert {block_of(m.first).kind for m in net} == {"Ghost module"}
    assert_agree(net, torch.randn(3, 6, 9, 8), backward=True)
    if not training:
        assert_agree(net, torch.randn(3, 6, 9, 8), backward=False)
        (program,) = (m for m in freeze(net).modules() if isinstance(m, FrozenProgram))
        assert program.parts == ("0", "1")


def test_changed_weights_and_children_of_inner_blocks_are_seen():
    ghost_ops.register_block(TwoGhostsBlock)
    net, x = fuse(randomise(nn.Sequential(TwoGhosts(4))).eval()), torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        before = net(x)
        net[0].first.primary_conv[1].eps = 0.5
        after = net(x)
        assert not torch.allclose(before, after)
        torch.testing.assert_close(after, revert(copy.deepcopy(net))(x), rtol=1e-4, atol=1e-4)


class Scaled(nn.Module):
    """Its forward reads a number, which the block's program does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.factor = nn.Conv2d(4, 4, 1), 1.0

    def forward(self, x):
        return self.conv(x) * self.factor


@dataclass(frozen=True)
class ScaledParts:
    conv: str
    factor: float


class ScaledBlock(ghost_ops.LayerBlock):
    kind = "scaled convolution"
    Parts = ScaledParts

    @classmethod
    def find(cls, module):
        return ScaledParts("conv", module.factor) if isinstance(module, Scaled) else None

    def read(self, structure, parts):
        return structure.conv_bn_act(parts.conv, None, None), parts.factor

    def compute(self, layers, x):
        return self.call(layers[0], x) * layers[1]

    def lower(self, layers, builder, source):
        return builder.conv(layers[0], source)


def test_a_changed_attribute_is_held_against_the_program_again():
    ghost_ops.register_block(ScaledBlock)
    net, x = fuse(randomise(nn.Sequential(Scaled())).eval()), torch.randn(2, 4, 6, 5)
    with torch.no_grad():
        net(x)
        assert "program" in str(block_of(net[0]).decide(net[0], x))
        net[0].factor = 3.0
        torch.testing.assert_close(net(x), 3 * net[0].conv(x))
    assert "the program of ScaledBlock computes something else" in str(block_of(net[0]).decide(net[0], x))


@pytest.mark.parametrize("training", [False, True])
def test_compiles_as_one_graph(page, training):
    net, x = fuse(net_of(page)).train(training), torch.randn(2, 3, 9, 9)
    plain = revert(copy.deepcopy(net))
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), plain(x), rtol=1e-4, atol=1e-4)


# What is refused


def with_method(page: types.ModuleType, **body: object) -> type:
    return type("Other", (page.InvertedResidualBlock,), {"kind": "other", "priority": 1, **body})


def test_another_computation_is_left_alone(page):
    block = with_method(page, compute=lambda self, layers, x: x + 0.5 * self.call(layers.expand, x)[:, : x.shape[1]])
    unregister_block(page.InvertedResidualBlock)
    ghost_ops.register_block(block)
    net, x = net_of(page), torch.randn(1, 3, 8, 8)
    with pytest.warns(UserWarning, match=r"0 of 2 others run fused.*Other\.compute computes something else"):
        fuse(net)
    why = r"Other\.compute computes something else: it is off by [0-9.]+ where values reach [0-9.]+"
    assert all(re.fullmatch(why, row.why) for row in explain(net, x).rows) and len(explain(net, x).rows) == 2


def wrong_layer(self, layers, builder, source):
    return builder.conv(layers.project, builder.chain([layers.expand, layers.depthwise], source))


def too_few_channels(self, layers, builder, source):
    return builder.conv(layers.expand, source)


def fails(self, layers, builder, source):
    return builder.conv(layers.nothing, source)


def no_slot(self, layers, builder, source):
    builder.conv(layers.project, builder.chain([layers.expand, layers.depthwise], source), residual=source)


@pytest.mark.parametrize(
    "lower, difference",
    [
        (wrong_layer, r"the program of Other computes something else: it is off by [0-9.]+ where values reach [0-9.]+"),
        (
            too_few_channels,
            r"the program of Other computes something else: it makes \(2, 24, 19, 17\) where the module makes \(2, 8,",
        ),
        (fails, r"Other\.lower failed \(AttributeError: 'Layers' object has no attribute 'nothing'\)"),
        (no_slot, r"Other\.lower: expected the slot of its output, got None"),
    ],
)
def test_another_program_is_refused_with_the_difference(page, lower, difference):
    unregister_block(page.InvertedResidualBlock)
    ghost_ops.register_block(with_method(page, lower=lower))
    net = nn.Sequential(net_of(page)[1], ghost_ops.GhostModule(8, 8))
    with pytest.warns(UserWarning, match=rf"fuse: 0 was left as it is: {difference}"):
        fuse(net)
    assert block_of(net[0]) is None and block_of(net[1]) is not None


def test_without_a_program(page):
    unregister_block(page.InvertedResidualBlock)
    ghost_ops.register_block(with_method(page, lower=ghost_ops.LayerBlock.lower))
    net, x = fuse(net_of(page)), torch.randn(2, 3, 9, 9)
    assert_agree(net, x, backward=False)
    decision = block_of(net[1]).decide(net[1], torch.randn(2, 8, 9, 9))
    assert (decision.runs, decision.why) == ("its layers in turn", "a other has no program")
    frozen = freeze(net)
    left = [row for row in ghost_ops.explain(frozen, x).rows if row.name.partition(".")[0] == "1"]
    assert not any(row.runs.startswith("program on") for row in left), left
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), net(x), rtol=1e-4, atol=1e-4)


BAD = {
    "no class": (lambda page: nn.ReLU(), TypeError, "block: expected a class that derives from LayerBlock, got ReLU()"),
    "another class": (lambda page: nn.ReLU, TypeError, "expected a class that derives from LayerBlock, got <class"),
    "no kind": (
        lambda page: with_method(page, kind=""),
        ValueError,
        "Other.kind: expected what explain calls such a module, got ''",
    ),
    "a known kind": (
        lambda page: with_method(page, kind="Ghost module"),
        ValueError,
        "Other.kind: expected one that no other block has, got 'Ghost module'",
    ),
    "no parts": (
        lambda page: with_method(page, Parts=dict),
        TypeError,
        "Other.Parts: expected a dataclass of paths, got <class 'dict'>",
    ),
    "no compute": (
        lambda page: with_method(page, compute=ghost_ops.LayerBlock.compute),
        TypeError,
        "Other.compute: expected a method that takes (layers, x), found none",
    ),
    "no find": (
        lambda page: with_method(page, find=vars(ghost_ops.LayerBlock)["find"]),
        TypeError,
        "Other.find: expected a method that takes (module), found none",
    ),
    "compute of other arguments": (
        lambda page: with_method(page, compute=lambda self, x: x),
        TypeError,
        "Other.compute: expected a method that takes (layers, x), got compute(self, x)",
    ),
    "lower of other arguments": (
        lambda page: with_method(page, lower=lambda self, layers, builder: 0),
        TypeError,
        "Other.lower: expected a method that takes (layers, builder, source), got lower(self, layers, builder)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_blocks_are_refused_when_registered(page, name):
    make, error, message = BAD[name]
    before = registered_blocks()
    with pytest.raises(error, match=re.escape(message)):
        ghost_ops.register_block(make(page))
    assert registered_blocks() == before


def test_parts_of_another_class(page):
    unregister_block(page.InvertedResidualBlock)
    ghost_ops.register_block(with_method(page, find=classmethod(lambda cls, module: ("expand",))))
    with pytest.raises(TypeError, match=r"Other\.find: expected InvertedResidualParts or None, got \('expand',\)"):
        fuse(net_of(page))


def test_registered_twice_is_once_and_unknown_ones_are_not_taken_back(page):
    before = registered_blocks()
    assert ghost_ops.register_block(page.InvertedResidualBlock) is page.InvertedResidualBlock
    assert registered_blocks() == before
    unregister_block(page.InvertedResidualBlock)
    with pytest.raises(ValueError, match="unregister_block: block: expected a registered one"):
        unregister_block(page.InvertedResidualBlock)
