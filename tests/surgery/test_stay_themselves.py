"""A module that was fused is the object that it was: its class's methods, state, attributes and signature all hold."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from torch import nn

from ghost_ops.fused import FusedGhostBottleneck, FusedGhostModule, FusedSELayer
from ghost_ops.surgery import explain, freeze, fuse, revert

from .. import zoo
from ..fused.twins import why
from ..helpers import make_map, randomise


class Own(zoo.ArticleGhostModule):
    """A Ghost module whose class does much besides its forward."""

    kind = "ghost"
    made = 0

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        Own.made += 1

    def __init__(self, inp, oup):
        super().__init__(inp, oup)
        self.rate, self.log = 0.25, []

    def forward(self, pixel_values):
        return super().forward(pixel_values)

    def train(self, mode=True):
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def get_extra_state(self):
        return {"rate": self.rate}

    def set_extra_state(self, state):
        self.rate = state["rate"]

    def _load_from_state_dict(self, state, prefix, *args):
        if f"{prefix}old" in state:
            state[f"{prefix}primary_conv.0.weight"] = state.pop(f"{prefix}old")
        super()._load_from_state_dict(state, prefix, *args)

    def _apply(self, fn, recurse=True):
        self.log.append("applied")
        return super()._apply(fn, recurse)

    @property
    def width(self):
        return self.primary_conv[0].out_channels

    def parts(self):
        return "parts of a car"

    def memory(self):
        return "of an elephant"

    def why(self):
        return "because"

    def build(self):
        return "a house"


def make(inp=8, oup=12):
    return randomise(Own(inp, oup))


@pytest.fixture
def x():
    return make_map((2, 8, 9, 7))


def test_it_is_the_very_object(x):
    module = make().eval()
    net, held = nn.Sequential(module), module
    wanted = module(x)
    assert fuse(net) is net and net[0] is held
    assert isinstance(held, Own) and isinstance(held, zoo.ArticleGhostModule) and isinstance(held, FusedGhostModule)
    assert issubclass(type(held), Own) and type(held).__name__ == "FusedOwn" and type(held).__module__ == Own.__module__
    assert not why(held, x).startswith("plain")
    torch.testing.assert_close(net(x), wanted)
    assert revert(net) is net and type(held) is Own
    assert torch.equal(net(x), wanted)


def test_its_methods_attributes_and_properties():
    module = fuse(make())
    assert (module.kind, module.rate, module.width, module.log) == ("ghost", 0.25, 6, [])
    assert (module.parts(), module.memory(), module.why(), module.build()) == (
        "parts of a car", "of an elephant", "because", "a house",
    )  # fmt: skip
    module.rate = 0.5
    module.note = "said later"
    assert revert(module).rate == 0.5 and module.note == "said later"
    assert set(vars(module)) == set(vars(make())) | {"note"}


def test_its_own_train_runs(x):
    net = fuse(nn.Sequential(make()))
    before = {name: b.clone() for name, b in net.named_buffers()}
    net.train()
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert net[0].training and not any(norm.training for norm in norms)
    net(x).sum().backward()
    assert all(torch.equal(b, before[name]) for name, b in net.named_buffers())


def test_its_extra_state_and_old_checkpoints():
    plain, fused = make(), fuse(make())
    assert list(plain.state_dict()) == list(fused.state_dict()) and "_extra_state" in fused.state_dict()
    state = plain.state_dict()
    state["_extra_state"] = {"rate": 0.75}
    state["old"] = torch.full_like(state.pop("primary_conv.0.weight"), 0.5)
    fused.load_state_dict(state)
    assert fused.rate == 0.75 and bool((fused.primary_conv[0].weight == 0.5).all())


def test_its_apply_runs():
    module = fuse(make())
    module.double()
    assert module.log == ["applied"] and module.primary_conv[0].weight.dtype is torch.float64


def test_another_of_its_class_is_a_plain_one(x):
    """As methods make it that copy the structure of a module."""
    for module in (fuse(make()), freeze(make().eval())):
        twin = type(module)(8, 12)
        assert type(twin) is Own and twin.log == [] and twin.train() is twin
        assert inspect.signature(type(module)) == inspect.signature(Own)
        twin.load_state_dict({k: v for k, v in module.state_dict().items() if "programs" not in k})
        torch.testing.assert_close(twin.eval()(x), module.eval()(x))


def test_a_class_that_registers_its_subclasses_sees_none():
    before = Own.made
    fuse(make())
    assert Own.made == before


def test_calls_by_keyword_and_the_signature(x):
    module = fuse(make().eval())
    assert list(inspect.signature(module.forward).parameters) == ["pixel_values"]
    assert torch.equal(module(pixel_values=x), module(x))
    for call in (lambda: module(input=x), lambda: module(), lambda: module(x, x)):
        with pytest.raises(TypeError, match=r"forward\(\)"):
            call()


def through_pickle(module):
    return pickle.loads(pickle.dumps(module))


def through_a_file(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("how", [copy.deepcopy, copy.copy, through_pickle, through_a_file])
@pytest.mark.parametrize("called_before", [True, False])
def test_copies(how, called_before, x):
    module = fuse(make().eval())
    with torch.no_grad():
        wanted = module(x)
        if not called_before:
            module = fuse(make().eval())
        module.rate = 0.125
        twin = how(module)
        assert type(twin) is type(module) and twin.rate == 0.125 and twin is not module
        assert torch.equal(twin(x), wanted) and not why(twin, x).startswith("plain")
        assert torch.equal(revert(twin)(x), revert(module)(x))
        assert type(twin) is Own


def test_a_class_with_its_own_pickling(x):
    module = fuse(randomise(Pickling(8, 12))).eval()
    twin = pickle.loads(pickle.dumps(module))
    assert isinstance(twin, Pickling) and twin.seen == "through getstate"
    assert torch.equal(twin(x), module(x))
    assert isinstance(copy.deepcopy(module), Pickling)


class Pickling(zoo.ArticleGhostModule):
    def __getstate__(self):
        return {**super().__getstate__(), "seen": "through getstate"}


def test_a_net_loads_in_another_process(tmp_path, x):
    import subprocess
    import sys
    from pathlib import Path

    net = fuse(randomise(nn.Sequential(zoo.HuaweiBottleneck(8, 16, 8, se=True))).eval())
    with torch.no_grad():
        torch.save({"net": net, "x": x, "out": net(x)}, tmp_path / "net.pt")
    code = (
        "import sys, torch, ghost_ops\n"
        "found = torch.load(sys.argv[1], weights_only=False)\n"
        "net = found['net']\n"
        "assert isinstance(net[0], ghost_ops.FusedGhostBottleneck), type(net[0])\n"
        "with torch.no_grad(): assert torch.equal(net(found['x']), found['out'])\n"
        "ghost_ops.revert(net)\n"
        "print(type(net[0]).__name__)\n"
    )
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "net.pt")], cwd=root, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0 and run.stdout.strip() == "HuaweiBottleneck", run.stderr


TOOLS = {
    "torch.compile": lambda m, x: torch.compile(m, fullgraph=True, backend="aot_eager")(x),
    "torch.export": lambda m, x: torch.export.export(m, (x,)).module()(x),
    "torch.export, not strict": lambda m, x: torch.export.export(m, (x,), strict=False).module()(x),
    "fx": lambda m, x: torch.fx.symbolic_trace(m)(x),
    "jit.trace": lambda m, x: torch.jit.trace(m, x)(x),
    "functional_call": lambda m, x: torch.func.functional_call(m, dict(m.named_parameters()), (x,)),
    "functional_call by keyword": lambda m, x: torch.func.functional_call(
        m, dict(m.named_parameters()), (), {"pixel_values": x}
    ),
    "DataParallel's replica": lambda m, x: m._replicate_for_data_parallel()(x),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_tools(tool, x):
    torch._dynamo.reset()
    module = fuse(make().eval()).requires_grad_(False)
    torch.testing.assert_close(TOOLS[tool](module, x), module(x))


def test_blocks_and_their_parts_keep_their_classes(x):
    block = fuse(randomise(zoo.HuaweiBottleneck(8, 16, 8, se=True))).eval()
    for module, kind, fused in (
        (block, zoo.HuaweiBottleneck, FusedGhostBottleneck),
        (block.ghost1, zoo.ArticleGhostModule, FusedGhostModule),
        (block.se, zoo.HuaweiSqueezeExcite, FusedSELayer),
    ):
        assert isinstance(module, kind) and isinstance(module, fused)
    assert next(row.module for row in explain(block, x).rows) == "HuaweiBottleneck"


class Meta(type):
    pass


class WithMeta(zoo.ArticleGhostModule, metaclass=Meta):
    pass


class WithSlots(zoo.ArticleGhostModule):
    __slots__ = ("kept",)


class Final(zoo.ArticleGhostModule):
    def __init_subclass__(cls, **kwargs):
        raise TypeError("this class is final")


@pytest.mark.parametrize("kind", [WithMeta, WithSlots, Final])
def test_unusual_classes(kind, x):
    module = randomise(kind(8, 12)).eval()
    wanted = module(x)
    assert isinstance(fuse(module), kind)
    torch.testing.assert_close(module(x), wanted)
    assert type(revert(module)) is kind


class Gated(zoo.ArticleGhostModule):
    """Reads plain attributes that decide what it computes."""

    shift = 0.0

    def __init__(self, inp, oup):
        super().__init__(inp, oup)
        self.scale = 1.0

    def forward(self, x):
        out = super().forward(x)
        return out if self.scale == 1.0 and not self.shift else out * self.scale + self.shift


class Dropping(zoo.HuaweiBottleneck):
    """Leaves its branch out in training, by a rate that schedules change."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.drop_path = 0.0

    def forward(self, x):
        if self.training and self.drop_path:
            return self.shortcut(x) + 0 * super().forward(x)
        return super().forward(x)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("attribute, value, before", [("scale", 2.0, 1.0), ("shift", 3.0, 0.0)])
def test_an_attribute_that_the_forward_reads(attribute, value, before, compiled, x):
    torch._dynamo.reset()
    plain = randomise(Gated(8, 12)).eval().requires_grad_(False)
    fused = fuse(copy.deepcopy(plain))
    call = torch.compile(fused, backend="aot_eager") if compiled else fused
    assert not why(fused, x).startswith("plain")
    for now in (before, value, before, value):
        setattr(plain, attribute, now), setattr(fused, attribute, now)
        torch.testing.assert_close(call(x), plain(x))
        if not compiled:
            assert why(fused, x).startswith("plain") == (now == value), why(fused, x)
            assert now == before or f"{attribute!r} has changed" in why(fused, x)


def test_channels_that_are_kept(x):
    plain = randomise(zoo.ArticleGhostModule(8, 12)).eval()
    fused = fuse(copy.deepcopy(plain))
    with torch.no_grad():
        for oup in (12, 9, 7, 12):
            plain.oup = fused.oup = oup
            torch.testing.assert_close(fused(x), plain(x))
            assert fused(x).shape[1] == oup and not why(fused, x).startswith("plain")


def test_a_rate_of_stochastic_depth(x):
    plain = randomise(Dropping(8, 16, 8)).train()
    fused = fuse(copy.deepcopy(plain))
    assert isinstance(fused, FusedGhostBottleneck)
    for rate in (0.0, 0.9, 0.0):
        plain.drop_path = fused.drop_path = rate
        torch.testing.assert_close(fused(x), plain(x), rtol=1e-4, atol=1e-4)
        assert ("'drop_path' has changed" in why(fused, x)) == bool(rate)
    twin = copy.deepcopy(fused)
    twin.drop_path = plain.drop_path = 0.9
    torch.testing.assert_close(twin(x), plain(x), rtol=1e-4, atol=1e-4)


def test_a_container_of_another_class_is_noticed(x):
    class Reversed(nn.Module):
        """Holds what a YOLO convolution holds, and computes something else."""

        def __init__(self, conv):
            super().__init__()
            self.conv, self.bn, self.act = conv.conv, conv.bn, conv.act

        def forward(self, x):
            return self.bn(self.act(self.conv(x)))

    plain = randomise(zoo.YoloGhostConv(8, 12)).eval()
    fused = fuse(copy.deepcopy(plain))
    with torch.no_grad():
        torch.testing.assert_close(fused(x), plain(x))
        plain.cv1, fused.cv1 = Reversed(plain.cv1), Reversed(fused.cv1)
        torch.testing.assert_close(fused(x), plain(x))


INTS = {
    "stride": lambda net: setattr(net.conv_dw, "stride", 2) if isinstance(net.conv_dw, nn.Conv2d) else None,
    "dilation": lambda net: setattr(net.conv_dw, "dilation", 1) if isinstance(net.conv_dw, nn.Conv2d) else None,
    "padding": lambda net: setattr(net.conv_dw, "padding", 1) if isinstance(net.conv_dw, nn.Conv2d) else None,
    "stride of a 1x1": lambda net: setattr(net.ghost1.primary_conv[0], "stride", 1),
    "dilation of the cheap one": lambda net: setattr(net.ghost1.cheap_operation[0], "dilation", 1),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", INTS)
@pytest.mark.parametrize("training", [True, False])
def test_sizes_that_are_ints(name, when, training, x):
    plain = randomise(zoo.HuaweiBottleneck(8, 16, 12, 3, 2, True)).train(training)
    fused = copy.deepcopy(plain)
    if when == "before":
        INTS[name](fused)
        fuse(fused)
    else:
        fuse(fused)
        fused(x)
        INTS[name](fused)
    INTS[name](plain)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), plain(x), rtol=1e-4, atol=1e-4)
    assert isinstance(fused, FusedGhostBottleneck)


def test_a_refusal_ends_with_its_cause(x):
    """Recalibration of BatchNorms, as AdaBN and TENT do: training norms inside a net in eval."""
    block = fuse(randomise(zoo.HuaweiBottleneck(8, 16, 8, se=True))).eval()
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        assert why(block, x).startswith("as one block")
        for norm in norms:
            norm.train()
        block(x)
        assert "batch statistics" in why(block, x)
        block.eval()
        assert why(block, x) == "as one block, by program_eval on native"


def test_a_parameter_that_was_away_for_a_while(x):
    module = fuse(make().eval())
    conv = module.primary_conv[0]
    with torch.no_grad():
        wanted = module(x)
        weight = conv._parameters.pop("weight")
        conv.weight = weight.data.clone()
        assert torch.equal(module(x), revert(copy.deepcopy(module))(x)) and why(module, x).startswith("plain")
        del conv.weight
        conv._parameters["weight"] = weight
        assert torch.equal(module(x), wanted) and not why(module, x).startswith("plain")


def test_a_watched_child_that_goes_away(x):
    """The module is still a Ghost module then, written in another way."""

    class Switched(zoo.ArticleGhostModule):
        def __init__(self, inp, oup):
            super().__init__(inp, oup)
            self.switch = nn.Module()
            self.switch.on = True

        def forward(self, x):
            if "switch" in self._modules and not self.switch.on:
                return super().forward(x) * 2
            return super().forward(x)

    plain = randomise(Switched(8, 12)).eval()
    fused = fuse(copy.deepcopy(plain))
    with torch.no_grad():
        for change in (lambda m: None, lambda m: setattr(m.switch, "on", False), lambda m: delattr(m, "switch")):
            change(plain), change(fused)
            torch.testing.assert_close(fused(x), plain(x))
        assert not why(fused, x).startswith("plain")
