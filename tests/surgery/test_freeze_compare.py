"""A frozen net is compared with its source: what tracing gets wrong goes back to PyTorch, and ``explain`` says so."""

import copy
import itertools
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ghost_ops import explain, freeze
from ghost_ops.fused.frozen_state import STATE
from ghost_ops.surgery.freeze import compare

from .. import zoo
from ..helpers import make_map, randomise
from .test_freeze import Classifier, _as_with_kernels, huawei, programs, whole_program  # noqa: F401


@pytest.fixture
def x():
    return make_map((2, 3, 33, 31))


class Around(nn.Module):
    """A net between two functions of the module and a map."""

    def __init__(self, before=None, after=None):
        super().__init__()
        self.body = randomise(Classifier(*huawei()))
        self.before, self.after = before, after
        self.calls, self.seen, self.total = 0, [], {"images": 0}
        self.register_buffer("count", torch.zeros(1))
        self.offset = torch.tensor(0.5)

    def forward(self, x):
        x = x if self.before is None else self.before(self, x)
        x = self.body(x)
        return x if self.after is None else self.after(self, x)


def count_calls(self, x):
    self.calls += 1
    return x + self.calls


def only_count(self, x):
    self.calls += 1
    return x


def keep_a_list(self, x):
    self.seen.append(tuple(x.shape))
    return x


def keep_a_dict(self, x):
    self.total["images"] = self.total["images"] + 1
    return x


def fill_a_buffer(self, x):
    self.count += 1
    return x


def scaled_by_a_buffer(self, x):
    self.count.add_(1)
    return x * self.count.view(1, 1)


def keep_the_last(self, x):
    self.last = x.mean()
    return x


def as_told(asks, right):
    """What is done to a map depends on what it is asked."""

    def run(self, x):
        return right(x) if asks(x) else x

    return run


# Each: where it stands, and whether running it twice on the same input gives the same
IMPURE = {
    "noise": (None, lambda self, x: x + torch.randn(1), False),
    "small noise": (lambda self, x: x + 1e-4 * torch.randn(1), None, False),
    "noise like": (None, lambda self, x: x + torch.randn_like(x), False),
    "Python's noise": (None, lambda self, x: x * random.random(), False),
    "NumPy's noise": (None, lambda self, x: x * float(np.random.rand()), False),
    "dropout that always drops": (None, lambda self, x: F.dropout(x, 0.5, training=True), False),
    "counted": (None, count_calls, False),
    "counted only": (None, only_count, True),
    "a list": (keep_a_list, None, True),
    "a dictionary": (None, keep_a_dict, True),
    "a buffer": (fill_a_buffer, None, True),
    "scaled by a buffer": (None, scaled_by_a_buffer, False),
    "the last": (None, keep_the_last, True),
    "grad mode": (None, lambda self, x: x + 1 if torch.is_grad_enabled() else x, True),
    "inference mode": (None, lambda self, x: x + 1 if torch.is_inference_mode_enabled() else x, True),
    "isinstance": (as_told(lambda x: isinstance(x, torch.Tensor), lambda x: (x - 0.5) / 0.2), None, True),
    "is_tensor": (as_told(torch.is_tensor, lambda x: (x - 0.5) / 0.2), None, True),
    "type": (as_told(lambda x: type(x) is torch.Tensor, lambda x: x * 2), None, True),
    "hasattr": (as_told(lambda x: hasattr(x, "tensors"), lambda x: x.tensors), None, True),
    "not hasattr": (as_told(lambda x: not hasattr(x, "mask"), lambda x: x * 2), None, True),
    "a constant": (None, lambda self, x: x + torch.arange(5), True),
    "an attribute": (None, lambda self, x: x + self.offset * 2, True),
    "a size": (lambda self, x: x if int(x.shape[2]) < 64 else x[:, :, :64], None, True),
    "a batch": (None, lambda self, x: x if len(x) > 1 else x * 2, True),
    "values": (lambda self, x: x.clamp(-1, 1) if x.max() > 1 else x, None, True),
    "in place": (lambda self, x: x.mul_(2), None, True),
}


def states(net):
    return net.calls, net.seen, net.total, net.count, getattr(net, "last", torch.zeros(()))


@pytest.mark.parametrize("name", IMPURE)
def test_impure_forwards(name, x):
    before, after, same = IMPURE[name]
    net = Around(before, after).eval()
    untouched = copy.deepcopy(net)
    frozen = freeze(net)
    assert all(map(torch.equal, net.state_dict().values(), untouched.state_dict().values()))
    assert str(states(net)) == str(states(untouched)) and len(programs(frozen)) == 1
    for mode, seed in itertools.product((torch.no_grad, torch.enable_grad, torch.inference_mode), range(3)):
        for v in (x, make_map((1, 3, 70, 40))):
            results = []
            for m in (net, frozen):
                for generator in (torch.manual_seed, random.seed, np.random.seed):
                    generator(seed)
                with mode():
                    results.append(m(v.clone()))
            torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)
            for ours, theirs in zip(states(frozen), states(net), strict=True):
                if isinstance(ours, torch.Tensor):
                    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
                else:
                    assert ours == theirs
    if not same:
        torch.manual_seed(1)
        first = frozen(x)
        assert not torch.equal(frozen(x), first)


def test_explain_and_warning_say_why(x):
    frozen = freeze(Around(None, only_count).eval())
    rows = {row.name: row for row in explain(frozen, x).rows}
    assert rows[""].why == "a call changes 'calls', which the frozen one would not" and not rows[""].fused
    assert rows["body"].runs.startswith("program on ") and rows["body"].module == "Classifier"
    assert frozen.__dict__[STATE].left == (("", rows[""].why),)
    for net, why in (
        (Around(None, lambda self, x: x + torch.randn(1)), "reads what is made outside of a program"),
        (
            Around(None, lambda self, x: x + 1 if torch.is_grad_enabled() else x),
            "not be that of its source with gradients enabled: off by 1",
        ),
        (Around(lambda self, x: x if x.max() > 1 else -x), "cannot be traced"),
    ):
        assert why in dict(freeze(net.eval()).__dict__[STATE].left)[""]


def test_what_went_back_is_named():
    class Noisy(zoo.ArticleGhostModule):
        def forward(self, x, scale=1.0):
            self.scale = scale
            return super().forward(x) * scale + torch.rand(1)

    left = freeze(nn.Sequential(Noisy(3, 8), nn.ReLU()).eval()).__dict__[STATE].left
    assert "0" in dict(left), left


# What stands before a net


def test_torchvision_normalize(x):
    transforms = pytest.importorskip("torchvision.transforms.v2")
    normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    net = nn.Sequential(normalize, randomise(Classifier(*huawei()))).eval()
    frozen = freeze(net)
    assert len(programs(frozen)) == 1 and type(frozen[0]) is type(normalize)
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), net(x), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(frozen(x), frozen[1](x), rtol=0.1)


class Normalize(nn.Module):
    """As torchvision's: what is not a tensor passes by."""

    def forward(self, *inputs):
        outputs = [self.transform(v) if isinstance(v, torch.Tensor) else v for v in inputs]
        return outputs[0] if len(outputs) == 1 else outputs

    def transform(self, v):
        return (v - 0.5) / 0.25


class Checked(nn.Module):
    def forward(self, x):
        return (x - 0.5) / 0.25 if torch.is_tensor(x) else x


@pytest.mark.parametrize("first", [Normalize, Checked])
def test_what_holds_no_ghost_module_is_called_as_it_is(first, x):
    blocks = zoo.HuaweiBottleneck(8, 16, 8), zoo.YoloGhostConv(8, 12)
    net = randomise(nn.Sequential(first(), zoo.conv_bn(3, 8, 3, 2), *blocks, nn.AdaptiveAvgPool2d(1))).eval()
    frozen = freeze(net)
    assert len(programs(frozen)) == 1 and type(frozen[0]) is first, "the rest is one program"
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), net(x), rtol=1e-4, atol=1e-4)
    reasons = [why for path, why in frozen.__dict__[STATE].left if path == ""]
    assert any("is called as it is: " in why for why in reasons), reasons


def test_a_child_at_a_path_that_is_a_method(x):
    """A pooling module called "mean" is no mean: it keeps both dimensions."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.ghost, self.mean = zoo.ArticleGhostModule(3, 12), nn.AdaptiveAvgPool2d(1)
            self.view, self.flatten, self.size = nn.Hardswish(), nn.Identity(), nn.Conv2d(12, 5, 1)

        def forward(self, x):
            return self.size(self.flatten(self.view(self.mean(self.ghost(x)))))

    net = randomise(Net()).eval()
    frozen = freeze(net)
    assert frozen(x).shape == net(x).shape == (2, 5, 1, 1)
    torch.testing.assert_close(frozen(x), net(x).detach(), rtol=1e-4, atol=1e-4)

    class Pooled(Net):
        def forward(self, x):
            return self.mean(self.ghost(x))

    net = randomise(Pooled()).eval()
    frozen = freeze(net)
    assert frozen(x).shape == net(x).shape and len(programs(frozen)) == 1
    torch.testing.assert_close(frozen(x), net(x).detach(), rtol=1e-4, atol=1e-4)


def test_what_is_wrong_in_one_child_leaves_the_others(x):
    class Bad(nn.Module):
        def __init__(self):
            super().__init__()
            self.ghost, self.calls = zoo.ArticleGhostModule(8, 8), 0

        def forward(self, x):
            self.calls += 1
            return self.ghost(x) * self.calls

    net = randomise(
        nn.Sequential(zoo.conv_bn(3, 8, 3, 2), zoo.HuaweiBottleneck(8, 16, 8), Bad(), zoo.YoloGhostConv(8, 8))
    )
    frozen = freeze(net.eval())
    assert len(programs(frozen)) == 4 and {path for path, _ in frozen.__dict__[STATE].left} == {"", "2"}
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(frozen(x), net(x), rtol=1e-4, atol=1e-4)
    assert frozen[2].calls == net[2].calls == 3


def test_a_wrong_program_is_noticed(x, monkeypatch):
    """Whatever tracing or packing gets wrong."""
    from ghost_ops.fused import frozen_net
    from ghost_ops.surgery.freeze import regions

    right = regions.FrozenProgram.of

    def wrong(built, parts=(), dtype=None):
        program = right(built, parts, dtype)
        program.packed.mul_(1.01)
        return program

    monkeypatch.setattr(regions.FrozenProgram, "of", wrong)
    with pytest.warns(UserWarning, match="its result would not be that of its source: off by"):
        frozen = freeze(randomise(Classifier(*huawei())).eval())
    assert not programs(frozen) and not isinstance(frozen, frozen_net.Frozen)
    with pytest.warns(UserWarning, match="nothing of this Classifier was frozen"):
        freeze(randomise(Classifier(*huawei())).eval(), torch.bfloat16)


# What is left alone by comparing


def test_random_generators_stay():
    net = Around(None, lambda self, x: x + torch.randn(1) * random.random() * float(np.random.rand())).eval()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    freeze(net)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_default_devices(device, x):
    timm = pytest.importorskip("timm")
    nets = randomise(timm.create_model("ghostnet_050", num_classes=5)).eval(), Around(count_calls).eval()
    for net in nets:
        torch.set_default_device(device)
        try:
            frozen = freeze(net)
            assert len(programs(frozen)) == 1
        finally:
            torch.set_default_device(None)
        with torch.no_grad():
            torch.testing.assert_close(frozen(x), net(x), rtol=1e-4, atol=1e-4)


def test_within_modes(x):
    net = randomise(Classifier(*huawei())).eval()
    for mode in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with mode:
            frozen = freeze(net)
        whole_program(frozen)
        with torch.no_grad():
            torch.testing.assert_close(frozen(x), net(x), rtol=1e-4, atol=1e-4)
        assert not any(t.is_inference() for t in frozen.state_dict().values())


# The comparison itself


def test_differences():
    x = torch.randn(3, 4)
    for ours, theirs, why in (
        (x, x + 1e-5, None),
        (x, x * 1.01, "off by"),
        (x, x[:2], "of shape"),
        (x, x.double(), "float64"),
        ((x, x), [x, x], "instead of"),
        ((x, x), (x,), "structure"),
        ({"a": x}, {"b": x}, "structure"),
        (x, 3, "instead of"),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "other values"),
        (torch.tensor([torch.nan, 1]), torch.tensor([torch.nan, 1]), None),
        (torch.tensor([torch.nan, 1]), torch.tensor([torch.inf, 1]), "not finite"),
        (torch.zeros(2), torch.zeros(2), None),
        (torch.tensor([1e-9]), torch.zeros(1), "off by"),
        (None, None, None),
        ("a", "b", "'a' instead of 'b'"),
        (torch.zeros(0), torch.zeros(0), None),
    ):
        found = compare._different(ours, theirs)
        assert (found is None) if why is None else (why in found), (ours, theirs, found)


@pytest.mark.parametrize("how", [torch.jit.script, lambda m: torch.jit.trace(m, make_map((1, 3, 32, 32)))])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_children_stay_between_programs(how):
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
    net = randomise(nn.Sequential(stem, zoo.HuaweiBottleneck(8, 16, 8, se=True), zoo.ArticleGhostModule(8, 12))).eval()
    net[0] = how(stem.eval())
    x = make_map((2, 3, 32, 32))
    with torch.no_grad():
        wanted = net(x)
        frozen = freeze(net)
        assert len(programs(frozen)) == 1 and isinstance(frozen[0], torch.jit.ScriptModule)
        torch.testing.assert_close(frozen(x), wanted, rtol=1e-4, atol=1e-4)
        assert {row.name for row in explain(frozen, x).rows if row.fused}
