"""Inverted residuals: one program in eval, in training as without the block."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import ghost_ops
from ghost_ops.dispatch import use_backend
from ghost_ops.fused import InvertedResidualParts, registered_blocks
from ghost_ops.fused.behaviour import block_of, is_fused
from ghost_ops.fused.inverted_residual import InvertedResidualBlock
from ghost_ops.fused.registry import _blocks
from ghost_ops.surgery import explain, fuse, revert
from ghost_ops.surgery.recognise import survey, survey_open
from ghost_ops.surgery.tally import tally

from ..helpers import assert_as_accurate, make_map, randomise
from .inverted import MODULES, Block, drawn, input_channels, large_from, layer, mobilenet_v1
from .twins import assert_agree, plain_twin, run, why

PROGRAM = "program_eval on native"
FORMS = pytest.mark.parametrize("name", MODULES)


def fused(name, training=False):
    module = fuse(randomise(MODULES[name]()).train(training))
    assert isinstance(block_of(module), InvertedResidualBlock)
    return module


def map_of(module, shape=(3, 9, 11), **options):
    return make_map((shape[0], input_channels(module), *shape[1:]), **options)


@FORMS
def test_eval(name):
    module = fused(name)
    for layout in ("nchw", "channels_last"):
        x = map_of(module, layout=layout)
        assert_agree(module, x, backward=False)
        with torch.no_grad():
            assert why(module, x) == PROGRAM
    assert_agree(module, x)
    assert why(module, x) == "its parts in turn: gradients are wanted"


@pytest.mark.parametrize("seed", range(12))
def test_drawn(seed):
    module = fuse(randomise(drawn(seed)).eval())
    shape = (1 + seed % 3, 5 + seed, 16 - seed)
    with torch.no_grad():
        assert why(module, map_of(module, shape)) == PROGRAM
    assert_agree(module, map_of(module, shape, layout="channels_last" if seed % 2 else "nchw"), backward=False)


@FORMS
@pytest.mark.parametrize("large", [False, True])
def test_training_is_as_without_the_block(name, large, monkeypatch):
    source = randomise(MODULES[name]()).train()
    module = fuse(copy.deepcopy(source))
    monkeypatch.setattr("ghost_ops.fused.registry._blocks", [b for b in _blocks if b is not InvertedResidualBlock])
    without = fuse(source)
    if large:
        large_from(monkeypatch)
    x = map_of(module)
    seen = [
        {(row.name, row.runs, row.why, row.saved) for row in explain(m, x).rows if row.name} for m in (module, without)
    ]
    assert seen[0] == seen[1]
    assert why(module, x) == "its parts in turn: it is in training mode"
    assert not isinstance(block_of(without), InvertedResidualBlock)
    for _ in range(2):
        ours, theirs = run(module, x, True), run(without, x, True)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert_agree(module, x, calls=2)


@FORMS
def test_stays_itself(name):
    source = randomise(MODULES[name]()).eval()
    own, kinds = type(source), [type(m) for m in source.modules()]
    state = {key: t.clone() for key, t in source.state_dict().items()}
    module, x = fuse(source), map_of(source)
    assert module is source and isinstance(module, own) and list(module.state_dict()) == list(state)
    with torch.no_grad():
        expected = module(x)
        for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), fuse(module)):
            assert why(again, x) == PROGRAM and torch.equal(again(x), expected)
        module.load_state_dict({key: 0 * t for key, t in state.items()})
        assert not torch.equal(module(x), expected)
        module.load_state_dict(state)
        assert torch.equal(module(x), expected)
    assert [type(m) for m in revert(module).modules()] == kinds


@FORMS
def test_hooks_run(name):
    module = fused(name)
    x, seen = map_of(module), []
    hook = lambda m, i, out: seen.append(m) or out * 2
    with torch.no_grad():
        module(x)
        for path, child in module.named_modules():
            if not path or any(
                child is not m and child in set(m.modules()) for m in module.modules() if m is not module
            ):
                continue
            handle = child.register_forward_hook(hook)
            result, wanted = module(x), plain_twin(module)(x)
            handle.remove()
            if seen:
                assert torch.equal(result, wanted) and len(seen) == 2, path
            else:  # its forward does not call it
                torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-5)
            seen.clear()
            assert why(module, x) == PROGRAM


@pytest.mark.parametrize("path", ["block.0.0", "block.1.1", "block.1.2", "block.2", "block.2.fc1", "block.3.1"])
def test_hooks_inside_are_named(path):
    module = fused("torchvision's V3")
    module.get_submodule(path).register_forward_hook(lambda m, i, out: out + 1)
    x = map_of(module)
    with torch.no_grad():
        assert "hooks" in why(module, x)
        torch.testing.assert_close(module(x), plain_twin(module)(x))


def test_a_changed_attribute_and_swapped_children():
    module = fused("timm's")
    x = map_of(module)
    with torch.no_grad():
        module(x)
        module.has_skip = False
        assert_agree(module, x, backward=False)
        assert why(module, x) == PROGRAM
        module.conv_dw = nn.Conv2d(24, 24, 3, 1, 1, groups=24)
        assert_agree(module, x, backward=False)
        module.drop_path = nn.Dropout(0.5)
        assert_agree(module, x, backward=False)
        module.aa = nn.Softplus()
        assert_agree(module, x, backward=False)
        assert why(module, x).startswith("its parts in turn: ")


def test_a_longer_container_is_noticed():
    module = fused("torchvision's V2")
    x = map_of(module)
    with torch.no_grad():
        module(x)
        module.conv[0].append(nn.Softplus())
        torch.testing.assert_close(module(x), plain_twin(module)(x))


def test_batch_statistics_and_other_parts_in_training():
    module = fused("stride 2, excited")
    x = map_of(module)
    with torch.no_grad():
        module.depthwise.train()
        assert_agree(module, x, backward=False, calls=2)
        assert why(module, x) == "its parts in turn: one of its BatchNorms uses batch statistics"


def test_other_channels_and_kinds_of_input():
    module = fused("separable")
    with torch.no_grad():
        for x in (torch.randn(2, 5, 6, 6), torch.randn(8, 6, 6)):
            ours, theirs = [], []
            for m, found in ((module, ours), (plain_twin(module), theirs)):
                try:
                    found.append(m(x))
                except (RuntimeError, ValueError) as error:
                    found.append(str(error))
            assert str(ours) == str(theirs)
        with use_backend("reference"):
            x = map_of(module)
            assert torch.equal(module(x), plain_twin(module)(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    module = fused("torchvision's V3").to(dtype)
    assert_agree(module, map_of(module, dtype=dtype), backward=False)


def test_autocast():
    module = fused("timm's, excited, stride 2")
    plain, x = plain_twin(module), map_of(module)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for v in (x, x.bfloat16()):
            ours, eager = module(v), plain(v)
            with torch.autocast("cpu", enabled=False):
                exact = plain_twin(module).double()(v.double())
            assert_as_accurate(ours, eager, exact)


@pytest.mark.parametrize("training", [False, True])
def test_compiles_as_one_graph(training):
    module = fused("torchvision's V3", training)
    x = map_of(module)
    expected = run(copy.deepcopy(module), x, True)
    compiled = run(torch.compile(module, backend="aot_eager", fullgraph=True), x, True)
    for name in ("output", "gradient of the input"):
        torch.testing.assert_close(compiled[name], expected[name])


@FORMS
def test_freezes_as_without_the_block(name):
    source = randomise(MODULES[name]()).eval()
    x = map_of(source)
    plain = ghost_ops.freeze(source)
    frozen = ghost_ops.freeze(fuse(source))
    with torch.no_grad():
        assert torch.equal(frozen(x), plain(x))
    assert str(explain(frozen, x)) == str(explain(plain, x))


def test_graphs_are_those_of_what_is_inside():
    module = fuse(randomise(MODULES["stride 2, excited"]()), cuda_graph=True)
    assert block_of(module).graphs is None and block_of(module.se).graphs is not None


# Which modules are blocks


class DropPath(nn.Module):
    def forward(self, x):
        return x * (torch.rand(len(x), 1, 1, 1) < 0.5) if self.training else x


class Dropped(Block):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.drop_path = DropPath()

    def forward(self, x):
        return x + self.drop_path(self.project(self.depthwise(self.expand(x))))


class Gated(Block):
    def forward(self, x):
        return self.project(self.depthwise(self.expand(x))) * x


class Inside(nn.Module):
    """A block within something else that looks like one."""

    def __init__(self):
        super().__init__()
        self.block = Block(8, 24, 8)

    def forward(self, x):
        return 2 * self.block(x)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Dropped(8, 24, 8), "its forward draws random numbers"),
        (lambda: Gated(8, 24, 8), "it does not compute its convolutions one after the other"),
        (lambda: Block(8, 24, 8, act=nn.Softplus), "it also calls 'expand.2', a Softplus"),
    ],
)
def test_left_as_it_is(make, reason):
    module = randomise(make()).eval()
    x = map_of(module)
    with torch.no_grad():
        expected = copy.deepcopy(module)(x)
        assert torch.equal(fuse(module)(x), expected)
    assert not is_fused(module)
    row = explain(module, x).rows[0]
    assert (row.name, row.fused) == ("", False) and row.why.startswith(reason)
    assert str(tally(module)).startswith("0 of 1 inverted residuals") and not is_fused(module)


def test_what_is_inside_of_one_that_is_left_is_fused(monkeypatch):
    large_from(monkeypatch)
    module = fuse(randomise(Dropped(8, 24, 8)).train())
    assert {type(block_of(child)).__name__ for child in module.children() if is_fused(child)} == {"ConvLayerBlock"}


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8)),
        lambda: nn.Sequential(nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1)),
        lambda: nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(16, 8, 1)),
        lambda: nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1)),
        lambda: nn.Sequential(*[mobilenet_v1(8, 8, 1) for _ in range(4)]),
        lambda: nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1)),
    ],
)
def test_not_nominated(make):
    module = make()
    assert [found.name for found in survey_open(module, survey(module)) if found.name == ""] == []


def test_the_outermost_that_is_one():
    net = fuse(randomise(nn.Sequential(Inside(), Block(8, 24, 8), layer(8, 4))).eval())
    assert [name for name, m in net.named_modules() if isinstance(block_of(m), InvertedResidualBlock)] == [
        "0.block",
        "1",
    ]
    assert all(row.why == "" or row.fused for row in explain(net, make_map((1, 8, 6, 6))).rows)


def test_the_parts():
    (found,) = survey_open(timm := MODULES["timm's, excited, stride 2"](), survey(timm))
    assert found.parts == InvertedResidualParts(
        ("conv_pw", "conv_dw", "conv_pwl"), ("bn1", "bn2", "bn3"), ("bn1.act", "bn2.act", None), "se", 2,
        ("bn1.drop", "bn2.drop", "aa", "bn3.drop", "bn3.act"), False,
    )  # fmt: skip
    assert InvertedResidualBlock in registered_blocks(is_open=True)
    assert InvertedResidualBlock not in registered_blocks(is_open=False)


@pytest.mark.parametrize(("name", "count"), [("mobilenetv3_small_050", 11), ("mobilenetv2_050", 17)])
def test_nets_of_timm(name, count):
    timm = pytest.importorskip("timm")
    net, x = randomise(timm.create_model(name)).eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = net(x)
        rows = {row.name: row for row in explain(fuse(net), x).rows}
        torch.testing.assert_close(net(x), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    blocks = [name for name, m in net.named_modules() if isinstance(block_of(m), InvertedResidualBlock)]
    assert len(blocks) == count and all(rows[name].runs == PROGRAM for name in blocks)
    assert str(explain(net, x).tally).startswith(f"{count} of {count} inverted residuals")
