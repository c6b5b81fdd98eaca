"""``profile``: what it counts, names and says of a net. No test looks at how long something took."""

import copy
import json
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import ghost_ops
from ghost_ops import surgery
from ghost_ops.backends import native
from ghost_ops.bench.cases import draw_map, randomise
from ghost_ops.dispatch import PLAIN_PYTORCH
from ghost_ops.fused import FrozenProgram
from ghost_ops.nn import GhostBottleneck, GhostModule
from ghost_ops.profiling import STEPS, Profile, profile
from ghost_ops.profiling.plot import plot

from .conftest import LIMITS

needs_kernels = pytest.mark.skipif(not native.available(), reason="programs need the native library")


class Net(nn.Module):
    """A small GhostNet: a stem, two bottlenecks, a head."""

    def __init__(self):
        super().__init__()
        self.conv_stem, self.bn1, self.act1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.blocks = nn.Sequential(GhostBottleneck(8, 16, 8), GhostBottleneck(8, 24, 12, 5, 2, se_ratio=0.25))
        self.conv_head, self.act2 = nn.Conv2d(12, 16, 1), nn.ReLU()
        self.dropout, self.classifier = nn.Dropout(0.2), nn.Linear(16, 10)

    def forward(self, x):
        x = self.blocks(self.act1(self.bn1(self.conv_stem(x)))).mean((2, 3), keepdim=True)
        return self.classifier(self.dropout(self.act2(self.conv_head(x)).flatten(1)))


def make_net():
    return randomise(Net()).eval()


def flops_of(net, *args):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(*args)
    return counter.get_total_flops()


def programs(net):
    return [module for module in net.modules() if isinstance(module, FrozenProgram)]


@pytest.fixture(scope="module")
def x():
    return draw_map(2, 3, 32)


@pytest.fixture(scope="module")
def report(x):
    return profile(make_net(), x, rounds=2)


def test_the_parts_of_a_net_in_their_order(report):
    names = [row.name for row in report.modules]
    assert names == ["conv_stem to act1", "blocks.0", "blocks.1", "conv_head to act2", "dropout to classifier"]
    stem, first = report.modules[:2]
    assert stem.kind == "Conv2d, BatchNorm2d, ReLU" and first.kind == "GhostBottleneck"
    assert (stem.input, first.input) == ("float32 2 x 3 x 32 x 32", "float32 2 x 8 x 16 x 16")
    assert (report.model, report.net.kind, report.input) == ("Net", "Net", stem.input)
    assert {row.calls for row in report.modules} == {1} and report.rounds == 2 and report.threads == 1


def test_multiply_adds_are_those_of_the_counter(report, x):
    net = make_net()
    assert report.net.multiply_adds * 2 == flops_of(net, x)
    assert sum(row.multiply_adds for row in report.modules) + report.between.multiply_adds == report.net.multiply_adds
    with torch.no_grad():
        y = net.act1(net.bn1(net.conv_stem(x)))
    assert report.modules[0].multiply_adds * 2 == flops_of(net.conv_stem, x)
    assert report.modules[1].multiply_adds * 2 == flops_of(net.blocks[0], y)


def test_bytes_and_the_roof(report, x):
    net = make_net()
    with torch.no_grad():
        y = net.act1(net.bn1(net.conv_stem(x)))
        z, out = net.blocks[0](y), net(x)
    parameters = lambda module: sum(p.numel() for p in module.parameters())
    assert report.modules[1].least_bytes == 4 * (y.numel() + z.numel() + parameters(net.blocks[0]))
    assert report.net.least_bytes == 4 * (x.numel() + out.numel() + parameters(net))
    for row in (*report.modules, report.net):
        assert row.roof == LIMITS.roof(2 * row.multiply_adds, row.least_bytes)
        for way in row.ways.values():
            assert way.seconds is None or way.share == row.roof / way.seconds
    assert report.net.plain.bytes > report.net.least_bytes
    for way in ("plain", "fused"):
        inside = sum(row.ways[way].bytes for row in report.modules)
        assert inside + getattr(report.between, way).bytes == report.net.ways[way].bytes


@needs_kernels
def test_what_programs_move(report, x):
    """A program reads its input and its weights, and writes its output."""
    net = make_net()
    (whole,) = programs(surgery.freeze(net))
    assert report.net.frozen.bytes == 4 * (x.numel() + whole.packed.numel() + 20)
    with torch.no_grad():
        y = net.act1(net.bn1(net.conv_stem(x)))
        z = net.blocks[0](y)
    (block,) = programs(surgery.freeze(net.blocks[0]))
    assert report.modules[1].frozen.bytes == 4 * (y.numel() + block.packed.numel() + z.numel())
    assert report.modules[1].fused.bytes < report.modules[1].plain.bytes


@needs_kernels
def test_how_it_runs_and_how_far_it_is_from_float64(report, x):
    said = {row.name: row for row in surgery.explain(surgery.fuse(make_net()), x).rows}
    assert report.modules[-1].frozen.seconds is None and "nothing of this Sequential" in report.modules[-1].frozen.why
    for row in report.modules[:-1]:
        assert row.plain.runs == PLAIN_PYTORCH and row.frozen.seconds > 0 and row.plain.seconds > 0
        assert row.fused.runs == (said[row.name].runs if row.name in said else PLAIN_PYTORCH)
        assert row.frozen.error < 1e-5 and row.frozen.runs == "a program of its own"
    assert "program_eval on native" in report.modules[1].fused.runs
    assert all(way.seconds > 0 and way.error < 1e-5 for way in report.net.ways.values())
    assert report.between.frozen.seconds is None and report.between.plain.seconds is not None
    assert "2 of 2 Ghost bottlenecks" in report.tally


def test_the_net_stays_as_it_was(x):
    net = make_net().train()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    profile(net, x, rounds=1)
    assert net.training and type(net) is Net and not net._forward_hooks
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks or "_ghost_ops" in vars(m) for m in net.modules())
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("change", [surgery.fuse, surgery.freeze])
def test_a_net_that_is_fused_or_frozen_is_taken_as_it_was(change, report, x):
    found = profile(change(make_net()), x, rounds=1)
    assert [row.name for row in found.modules] == [row.name for row in report.modules]
    assert found.net.plain.bytes == report.net.plain.bytes
    assert found.net.multiply_adds == report.net.multiply_adds and found.model == "Net"


class Shared(nn.Module):
    """Calls a convolution twice, a module with two arguments, and computes something itself."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.add = Add()
        self.weight = nn.Parameter(torch.randn(2, 4, 1, 1))

    def forward(self, x):
        return F.conv2d(self.add(self.conv(x), self.conv(2 * x)), self.weight)


class Add(nn.Module):
    def forward(self, a, b):
        return a + b


def test_modules_called_twice_and_what_forwards_compute():
    x = torch.randn(1, 4, 8, 6)
    found = profile(Shared(), x, rounds=1)
    conv, add = found.modules
    elements, weight = 4 * 8 * 6, 4 * 4 * 9 + 4
    assert (conv.name, conv.calls, conv.input) == ("conv", 2, "") and conv.frozen.seconds is None
    assert conv.frozen.why == "it is called 2 times"
    assert conv.multiply_adds == 2 * elements * 4 * 9
    assert conv.least_bytes == 4 * (4 * elements + weight)
    assert conv.plain.bytes == 2 * 4 * (2 * elements + weight)
    assert add.plain.bytes == 4 * 3 * elements and add.multiply_adds == 0
    assert found.between.multiply_adds == 2 * elements
    assert found.between.plain.bytes == 4 * (2 * elements) + 4 * (
        elements + 8 + elements // 2
    )  # 2 * x, the convolution
    assert "no time frozen: conv: it is called 2 times" in str(found)


def test_layers_are_joined_where_each_gets_what_the_one_before_returns():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
            self.one, self.two = nn.Conv2d(8, 8, 1), nn.ReLU()
            self.never = nn.Conv2d(8, 8, 1)

        def forward(self, x):
            x = self.stem(x)
            return self.two(self.one(x) + x)

    found = profile(Net(), torch.randn(1, 3, 9, 9), rounds=1)
    assert [row.name for row in found.modules] == ["stem", "one", "two"]
    assert found.modules[0].kind == "Conv2d, BatchNorm2d, ReLU"
    frozen = found.modules[0].frozen
    assert frozen.why == "" if native.available() else frozen.seconds is None


def test_what_was_not_fused_or_frozen_and_why(x):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.ghost, self.other = GhostModule(3, 8), GhostModule(8, 8)
            self.ghost.primary_conv.register_forward_hook(lambda module, args, out: out * 1.0)

        def forward(self, x):
            return self.other(self.ghost(x) * torch.rand(()).add(1e-6).sign())

    net = Noisy().eval()
    found = profile(net, x, rounds=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fused = surgery.fuse(copy.deepcopy(net))
        made = {"fuse": fused, "freeze": surgery.freeze(fused)}
    for by, changed in made.items():
        rows = [row for row in surgery.explain(changed, x).rows if row.runs == PLAIN_PYTORCH and row.why]
        assert [(left.name, left.kind, left.why) for left in found.left if left.by == by] == [
            (row.name, row.module, row.why) for row in rows
        ]
    assert any(left.by == "fuse" and left.name == "ghost" and left.why for left in found.left)
    assert "not fused: ghost (GhostModule)" in str(found)


def test_what_is_wrong_has_no_time(monkeypatch, x):
    right = surgery.freeze

    def wrong(net, *args, **kwargs):
        frozen = right(net, *args, **kwargs)
        if isinstance(net, Net):
            for program in programs(frozen):
                program.packed.mul_(1.5)
        return frozen

    monkeypatch.setattr(surgery, "freeze", wrong)
    found = profile(make_net(), x, rounds=1)
    if native.available():
        assert found.net.frozen.seconds is None and "differs from float64 by" in found.net.frozen.why
        assert "no time frozen: its result differs" in str(found)
    assert found.net.fused.seconds > 0 and found.modules[2].plain.seconds > 0


def test_a_net_of_which_nothing_is_fused_or_frozen():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU())
    found = profile(net, torch.randn(3, 3, 2, 2), rounds=1)
    assert [row.name for row in found.modules] == ["0 to 2"] and found.net.multiply_adds == 3 * 12 * 4
    assert found.net.frozen.seconds is None and found.net.frozen.why
    assert found.modules[0].frozen.seconds is None and found.tally == ""


def test_bfloat16(x):
    found = profile(make_net(), x, dtype=torch.bfloat16, rounds=1)
    assert found.dtype == "bfloat16" and found.input == "bfloat16 2 x 3 x 32 x 32"
    assert found.net.plain.error > 1e-4
    assert found.net.least_bytes * 2 == profile(make_net(), x, rounds=1).net.least_bytes
    assert found.net.multiply_adds * 2 == flops_of(make_net(), x)


def test_an_input_is_drawn():
    net = nn.Sequential(nn.Conv2d(5, 4, 3, stride=4))
    assert profile(net, rounds=1).input == "float32 1 x 5 x 224 x 224"


def test_several_arguments():
    found = profile(Add(), (torch.ones(1, 2, 3, 3), torch.ones(1, 2, 3, 3)), rounds=1)
    assert found.input == "float32 1 x 2 x 3 x 3, float32 1 x 2 x 3 x 3"
    assert profile(Add(), {"a": torch.ones(2), "b": torch.ones(2)}, rounds=1).input == "a=float32 2, b=float32 2"


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"net": 3}, TypeError, "net: expected a torch.nn.Module, got int"),
        ({"threads": 0}, ValueError, "threads: expected at least 1, got 0"),
        ({"rounds": 0}, ValueError, "rounds: expected at least 1, got 0"),
        ({"rounds": True}, ValueError, "rounds: expected at least 1, got True"),
        ({"dtype": torch.float16}, ValueError, "dtype: expected torch.float32 or torch.bfloat16, got torch.float16"),
        ({"x": None, "net": nn.Linear(3, 3)}, ValueError, "x: expected an input"),
        ({"net": nn.Conv2d(3, 3, 1, device="meta")}, ValueError, "net: expected a net on the CPU, got one on meta"),
        ({"x": torch.ones(1, 7, 3, 3)}, RuntimeError, "expected input"),
    ],
)
def test_bad_arguments(arguments, error, message):
    given = {"net": nn.Conv2d(3, 4, 1), "x": torch.ones(1, 3, 4, 4)} | arguments
    with pytest.raises(error, match=re.escape(message)):
        profile(given.pop("net"), given.pop("x"), **given)


def test_the_report_as_text_json_and_picture(report, tmp_path):
    text = str(report)
    for words in ("Net, float32 2 x 3 x 32 x 32, 1 thread", "conv_stem to act1", "between the modules", "the net"):
        assert words in text
    found = json.loads(json.dumps(report.as_dict()))
    assert found["net"]["multiply_adds"] == report.net.multiply_adds and len(found["modules"]) == len(report.modules)
    assert set(found) == set(Profile.__dataclass_fields__) and found["limits"]["source"] == "made up"
    pytest.importorskip("matplotlib")
    plot(report, tmp_path / "profile.png", top=2)
    assert (tmp_path / "profile.png").read_bytes().startswith(b"\x89PNG")


def test_the_slowest_modules(report):
    assert report.slowest(None) == report.modules and len(report.slowest(100)) == len(report.modules)
    kept = report.slowest(2)
    least = min(row.plain.seconds for row in kept)
    assert len(kept) == 2 and all(row.plain.seconds <= least for row in report.modules if row not in kept)
    names = [row.name for row in report.modules]
    assert [row.name for row in kept] == sorted((row.name for row in kept), key=names.index)


def test_it_is_public():
    assert ghost_ops.profile is profile and "profile" in ghost_ops.__all__
    with pytest.raises(AttributeError, match="has no attribute 'profiles'"):
        ghost_ops.profiles  # noqa: B018


def test_every_step_is_told_once(x):
    told = []
    profile(nn.Sequential(nn.Conv2d(3, 4, 1)), x, rounds=1, on_step=told.append)
    assert told == list(STEPS)
