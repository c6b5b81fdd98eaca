import gc
import weakref

import pytest
import torch
from torch import nn

from ghost_ops import use_backend
from ghost_ops.fused import block
from ghost_ops.surgery import Row, explain, freeze, fuse
from ghost_ops.surgery.saved import saved_bytes

from .. import zoo
from ..helpers import make_map, randomise


def make_net():
    blocks = zoo.HuaweiBottleneck(8, 16, 8, se=True), zoo.ScaledGhostModule(8, 8), zoo.YoloGhostConv(8, 12)
    return randomise(zoo.Net(*blocks))


@pytest.fixture
def x():
    return make_map((2, 3, 17, 17))


def by_name(net, x):
    return {row.name: row for row in explain(net, x).rows}


def test_eval(x):
    rows = by_name(fuse(make_net()).eval(), x)
    assert list(rows) == [
        "blocks.0", "blocks.0.ghost1", "blocks.0.se", "blocks.0.ghost2", "blocks.1", "blocks.2",
    ]  # fmt: skip
    block = rows["blocks.0"]
    assert (block.module, block.input, block.fused) == ("HuaweiBottleneck", "2 x 8 x 9 x 9 float32", True)
    assert block.runs.startswith("as one block") and block.why == ""
    assert rows["blocks.0.se"].runs == "within blocks.0"
    assert rows["blocks.1"] == Row(
        "blocks.1", "ScaledGhostModule", "", "plain PyTorch",
        "it does not compute a Ghost module: its results differ from those of its two convolutions; its forward also "
        "calls mul", False,
    )  # fmt: skip
    assert rows["blocks.2"].runs == "program_eval on native"


def test_bytes_kept_for_the_backward():
    x = make_map((4, 8, 12, 12))
    saved = {}
    for memory in ("balanced", "low"):
        net = fuse(randomise(nn.Sequential(zoo.HuaweiBottleneck(8, 20, 8), nn.ReLU())), memory=memory)
        row = next(row for row in explain(net.train(), x).rows if row.name == "0")
        assert f"{row.saved / 2**20:.2f} MiB" in str(explain(net, x))
        assert all(row.saved is None for row in explain(net.eval(), x).rows)
        saved[memory] = row.saved
    maps = 4 * x.numel(), 4 * x.numel() * 20 // 8  # the input; ghost1's output, which ghost2 keeps
    vectors = 4 * 2 * (20 + 8)
    assert maps[0] <= saved["low"] <= maps[0] + vectors
    assert sum(maps) <= saved["balanced"] <= sum(maps) + vectors


def test_training_step(x):
    net = fuse(make_net()).train()
    net.blocks.append(nn.Dropout(0.5))
    before = {name: b.clone() for name, b in net.named_buffers()}
    random = torch.get_rng_state()
    rows = by_name(net, x)
    assert rows["blocks.0"].runs == "its parts in turn" and "training" in rows["blocks.0"].why
    for name in ("blocks.0.ghost1", "blocks.0.ghost2", "blocks.2"):
        assert rows[name].runs == "ghost_module_train on native", name
    assert rows["blocks.0.se"].runs == "squeeze_excite on native"
    assert all(torch.equal(b, before[name]) for name, b in net.named_buffers())
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in net.parameters())


def test_reasons(x):
    net = fuse(make_net()).eval()
    net.blocks[0].ghost1.primary_conv[1].register_forward_hook(lambda *_: None)
    rows = by_name(net, x)
    assert rows["blocks.0"].runs == "its parts in turn" and "'primary_conv.1' carries hooks" in rows["blocks.0"].why
    assert rows["blocks.0.ghost1"].runs == "plain PyTorch" and "hooks" in rows["blocks.0.ghost1"].why
    assert rows["blocks.0.ghost2"].runs == "program_eval on native"
    net.blocks[0].ghost1.register_forward_hook(lambda *_: None)
    rows = by_name(net, x)
    assert rows["blocks.0"].runs == "its parts in turn" and "'ghost1' carries hooks" in rows["blocks.0"].why
    assert rows["blocks.0.ghost1"].runs == "plain PyTorch" and "hooks" in rows["blocks.0.ghost1"].why
    assert rows["blocks.0.ghost2"].runs == "program_eval on native"
    rows = by_name(fuse(make_net()).eval().double(), x.double())
    assert rows["blocks.2"].runs == "plain PyTorch"
    assert rows["blocks.2"].input == "2 x 8 x 9 x 9 float64"


def test_why_not_native(x, monkeypatch):
    monkeypatch.undo()  # the backends as they are
    with use_backend("reference"):
        row = by_name(fuse(make_net()).eval(), x)["blocks.2"]
    assert row.runs == "plain PyTorch" and "the reference backend was asked for" in row.why


def test_not_fused_yet(x):
    rows = by_name(make_net(), x)
    assert rows["blocks.2"].why == "it could be fused: ghost_ops.fuse(net)"
    assert not any(row.fused for row in rows.values())


def test_several_inputs_and_calls():
    ghost = fuse(zoo.ArticleGhostModule(8, 8)).eval()

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.ghost, self.idle = ghost, fuse(zoo.ArticleGhostModule(8, 8))

        def forward(self, x, *, again):
            return self.ghost(self.ghost(x)), self.ghost(again.to(memory_format=torch.channels_last))

    example = {"x": make_map((1, 8, 4, 4)), "again": make_map((1, 8, 6, 6))}
    first, second, idle = explain(Twice().eval(), example).rows
    assert (first.input, first.calls) == ("1 x 8 x 4 x 4 float32", 2)
    assert (second.input, second.calls) == ("1 x 8 x 6 x 6 float32 channels_last", 1)
    assert (idle.name, idle.runs, idle.input) == ("idle", "was not called", "")


def test_text(x):
    text = str(explain(fuse(make_net()).eval(), x))
    assert "blocks.0.ghost2" in text and "ScaledGhostModule" in text and "why not faster" in text
    assert max(map(len, text.splitlines())) <= 160
    assert "nor anything that looks like one" in str(explain(nn.ReLU(), x))


def test_tuple_of_arguments():
    (row,) = explain(fuse(zoo.ArticleGhostModule(8, 8)).eval(), (make_map((1, 8, 4, 4)),)).rows
    assert row.name == "" and row.calls == 1


def test_leaves_no_trace(x):
    net = fuse(make_net()).eval()
    forwards = {type(m): type(m).forward for m in net.modules()}
    attributes = [set(vars(m)) for m in net.modules()]
    modules = list(net.modules())
    explain(net, x)
    with pytest.raises(RuntimeError):
        explain(net, torch.ones(2, 5, 17, 17))
    assert all(cls.forward is forward for cls, forward in forwards.items())
    assert [set(vars(m)) for m in net.modules()] == attributes and not block._observers
    assert all(a is b for a, b in zip(net.modules(), modules, strict=True))


def test_no_module(x):
    with pytest.raises(TypeError, match=r"net: expected a torch\.nn\.Module, got Tensor"):
        explain(x, x)


def test_a_subclass_that_inherits_its_forward_is_counted_once(x):
    """FSDP2 gives a module such a class; the others keep theirs."""
    net = fuse(randomise(zoo.Net(*(zoo.YoloGhostConv(8, 8) for _ in range(7)), out=8)))
    for inner in net.blocks[1:]:
        inner.__class__ = type("Sharded", (type(inner),), {})
    assert [row.calls for row in explain(net, x).rows] == [1] * 7


class Split(nn.Module):
    """Blocks on both sides of what no program computes; the last has a primary convolution that is not 1x1."""

    def __init__(self):
        super().__init__()
        self.block, self.ghost = zoo.HuaweiBottleneck(8, 16, 8, se=True), zoo.ArticleGhostModule(8, 8)
        self.opened = zoo.ArticleGhostModule(8, 8, kernel_size=3)

    def forward(self, x):
        return self.opened(nn.functional.softplus(self.ghost(self.block(x))))


def test_parts_of_programs():
    """They do not run fused, and are not said to be."""
    explanation = explain(freeze(randomise(Split()).eval()), make_map((1, 8, 9, 9)))
    rows = {row.name: row for row in explanation.rows}
    assert list(rows) == ["", "block", "ghost", "opened", "frozen_programs.0", "frozen_programs.1"]
    for name, index in (("block", 0), ("ghost", 0), ("opened", 1)):
        assert rows[name].runs == f"as a part of frozen_programs.{index}" and rows[name].why == ""
    assert not explanation.tally.fused
    assert explanation.tally.frozen == {"Ghost bottleneck": 1, "Ghost module": 4, "squeeze-and-excite": 1}
    assert "1 Ghost bottleneck, 4 Ghost modules, 1 squeeze-and-excite in programs" in str(explanation)
    (row,) = explain(freeze(randomise(Split().opened).eval()), make_map((1, 8, 9, 9))).rows
    assert row.name == "" and row.runs.startswith("program on native")


def test_what_autograd_saved_is_freed():
    """An operation that saves its own result, such as exp, holds it while it is counted and no longer."""
    seen = []

    class Exponential(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            out = self.conv(x).exp()
            seen.append(weakref.ref(out))
            return out * 2

    net, x = Exponential(), torch.randn(2, 3, 8, 8)
    assert saved_bytes(lambda: net(x), net) == (x.numel() + 2 * 4 * 64) * 4
    explain(net, x)
    gc.collect()
    assert len(seen) >= 2 and not any(ref() is not None for ref in seen)
