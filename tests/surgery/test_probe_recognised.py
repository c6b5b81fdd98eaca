"""Forwards that compute the right thing in unusual words: recognised, with the attributes that they read."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

from ghost_ops.surgery import explain, fuse, survey

from .. import zoo
from .forbidden import KINDS, make

READS = {
    "Ghost module": {("", "oup")},
    "squeeze-and-excite": {("avg_pool", "output_size"), ("avg_pool", "__class__")},
    "Ghost bottleneck": {
        ("ghost1", "oup"),
        ("ghost2", "oup"),
        ("se", "gate_fn"),
        ("se.avg_pool", "output_size"),
        ("se.avg_pool", "__class__"),
    },
}


def found(module):
    """The one finding about the module itself."""
    (finding,) = [f for f in survey(module) if f.module is module]
    assert finding.reason is None and finding.parts is not None
    return finding


class Gate(torch.autograd.Function):
    """A custom function whose gradient is the right one."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Inner(nn.Module):
    scale = 1

    def __init__(self):
        super().__init__()
        self.shift = 0.0

    def forward(self, x):
        return x * self.scale + self.shift


def nothing(self, y):
    return y


def unpacks(self, y):
    b, c, h, w = y.shape
    return y.reshape(b, c, h * w).view(b, c, h, w)


def asks_for_channels(self, y):
    assert y.shape[1] == self.width
    return y


def asks_for_rank(self, y):
    return y if y.dim() == 4 and y.ndim == 4 and torch.is_tensor(y) else y[None]


def keeps_the_layout(self, y):
    return y if y.is_contiguous() else y.contiguous()


def converts_sizes(self, y):
    return y.reshape(int(y.size(0)), len(y[0]), *y.shape[2:])


def drops_nothing(self, y):
    return F.dropout(y, self.drop_rate, self.training)


def checkpoints(self, y):
    return torch.utils.checkpoint.checkpoint(lambda t: t * self.one, y, use_reentrant=False)


def calls_a_function(self, y):
    return Gate.apply(y)


def asks_for_what_is_missing(self, y):
    return y if getattr(self, "nothing_such", None) is None else y * 2


def keeps_for_itself(self, y):
    kept = [y]
    kept.append(y)
    return kept.pop()


def hands_dtype_and_device_on(self, y):
    return y + torch.zeros(1, dtype=y.dtype, device=y.device)


def follows_the_mode(self, y):
    return y if self.training else y.clone()


def scales(self, y):
    return y * self.scales["now"][0]


def calls_an_attribute(self, y):
    return self.identity(y)


STEPS = [
    (nothing, {}, set()),
    (unpacks, {}, set()),
    (asks_for_channels, {"width": {"Ghost module": 5, "squeeze-and-excite": 12, "Ghost bottleneck": 16}}, {"width"}),
    (asks_for_rank, {}, set()),
    (keeps_the_layout, {}, set()),
    (converts_sizes, {}, set()),
    (drops_nothing, {"drop_rate": 0.0}, {"drop_rate"}),
    (checkpoints, {"one": 1.0}, {"one"}),
    (calls_a_function, {}, set()),
    (asks_for_what_is_missing, {}, {"nothing_such"}),
    (keeps_for_itself, {}, set()),
    (hands_dtype_and_device_on, {}, set()),
    (follows_the_mode, {}, set()),
    (scales, {"scales": {"now": [1.0, torch.tensor(2.0)]}}, {"scales"}),
    (calls_an_attribute, {"identity": torch.clone}, {"identity"}),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("function", "attributes", "reads"), STEPS, ids=lambda value: getattr(value, "__name__", ""))
def test_recognised(kind, function, attributes, reads):
    values = {name: value.get(kind, value) if isinstance(value, dict) else value for name, value in attributes.items()}
    finding = found(make(kind, function, **values))
    assert finding.kind == kind
    assert set(finding.reads) == READS[kind] | {("", name) for name in reads}


def test_reads_of_children():
    module = zoo.HuaweiSqueezeExcite(12, 4, Inner())
    module.gate_fn.scale = 1
    finding = [f for f in survey(module) if f.module is module]
    assert finding[0].parts.gate == "identity"
    classes = {("avg_pool", "__class__"), ("gate_fn", "__class__")}
    assert set(finding[0].reads) == {("avg_pool", "output_size"), ("gate_fn", "scale"), ("gate_fn", "shift"), *classes}


def test_reads_of_a_bottleneck():
    reads = set(found(zoo.HuaweiBottleneck(8, 16, 12, stride=2, se=True)).reads)
    assert reads == READS["Ghost bottleneck"] | {("", "stride")}
    assert ("", "se") in found(zoo.HuaweiBottleneck(8, 16, 12)).reads


class Pooled(zoo.ArticleSELayer):
    def squeeze(self, x):
        raise NotImplementedError

    def forward(self, x):
        y = self.fc(self.squeeze(x))
        return x * y.clamp(0, 1)[:, :, None, None].expand_as(x)


SQUEEZES = {
    "mean": lambda self, x: x.mean((2, 3)),
    "mean twice": lambda self, x: x.mean(-1).mean(-1),
    "sum": lambda self, x: x.sum((2, 3)) / (x.shape[2] * x.shape[3]),
    "flat": lambda self, x: x.flatten(2).mean(2),
    "view": lambda self, x: x.view(x.size(0), x.size(1), -1).mean(dim=2),
    "adaptive": lambda self, x: F.adaptive_avg_pool2d(x, 1).flatten(1),
    "average": lambda self, x: F.avg_pool2d(x, x.size()[2:]).squeeze(3).squeeze(2),
    "sizes": lambda self, x: F.avg_pool2d(x, (int(x.shape[2]), int(x.shape[3]))).view(len(x), -1),
    "einsum": lambda self, x: torch.einsum("nchw->nc", x) / float(x[0, 0].numel()),
}


@pytest.mark.parametrize("name", SQUEEZES)
def test_squeezes(name):
    cls = type("Squeeze", (Pooled,), {"squeeze": SQUEEZES[name], "__module__": __name__})
    assert found(cls(12)).parts.gate == "clamp"


def test_state_of_an_earlier_call_does_no_harm():
    module = zoo.ArticleGhostModule(6, 10)
    out = module(torch.randn(2, 6, 8, 8))
    module.last, module.maps = out, [out, {"of": out}]
    found(module)


def test_overridden_train_is_not_called():
    calls = []

    class Frozen(zoo.ArticleGhostModule):
        def train(self, mode=True):
            calls.append(mode)
            return super().train(mode)

    found(Frozen(6, 10))
    assert not calls


def test_subclasses_are_not_announced():
    known = []

    class Registered(zoo.ArticleGhostModule):
        def __init_subclass__(cls, **kwargs):
            known.append(cls)

    module = Registered(6, 10)
    found(module)
    assert not known and type(module) is Registered


@pytest.mark.parametrize("net", ["ghostnet_050", "ghostnet_100", "ghostnet_130"])
def test_timm(net):
    timm = pytest.importorskip("timm")
    findings = survey(timm.create_model(net))
    assert all(f.reason is None for f in findings)
    kinds = [f.kind for f in findings]
    assert [kinds.count(kind) for kind in KINDS] == [32, 7, 16]
    for f in findings:
        for path, name in f.reads:
            getattr(f.module.get_submodule(path), name)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_default_device(device):
    with torch.device("cpu"):
        net = zoo.Net(zoo.HuaweiBottleneck(8, 16, 12, stride=2, se=True), zoo.YoloGhostConv(12, 12)).eval()
        plain, x = copy.deepcopy(net), torch.randn(1, 3, 16, 16)
    torch.set_default_device(device)
    try:
        assert all(f.parts is not None for f in survey(net))
        fused = fuse(net)
        rows = explain(fused, x).rows
    finally:
        torch.set_default_device(None)
    assert len(rows) == 5 and all(row.fused for row in rows)
    torch.testing.assert_close(fused(x), plain(x))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu")])
def test_surroundings(mode):
    with mode():
        found(zoo.HuaweiBottleneck(8, 16, 12, stride=2, se=True))


SCRIPTED = {
    "stem": lambda net: setattr(net, "stem", torch.jit.script(net.stem)),
    "block": lambda net: net.blocks.__setitem__(0, torch.jit.trace(net.blocks[0], torch.randn(1, 8, 8, 8))),
    "ghost": lambda net: setattr(
        net.blocks[0], "ghost1", torch.jit.trace(net.blocks[0].ghost1, torch.randn(1, 8, 8, 8))
    ),
    "cheap": lambda net: setattr(
        net.blocks[0].ghost1, "cheap_operation", torch.jit.script(net.blocks[0].ghost1.cheap_operation)
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("place", SCRIPTED)
def test_scripted_children_are_left_alone(place):
    net = zoo.Net(zoo.HuaweiBottleneck(8, 16, 12, se=True), zoo.HuaweiBottleneck(12, 16, 12)).eval()
    SCRIPTED[place](net)
    x = torch.randn(1, 3, 16, 16)
    wanted, scripted = net(x), [m for m in net.modules() if isinstance(m, torch.jit.ScriptModule)]
    reasons = {f.name: f.reason for f in survey(net) if f.parts is None}
    assert reasons == (
        {"blocks.0.ghost1": "its child 'cheap_operation' was compiled by torch.jit"} if place == "cheap" else {}
    )
    torch.testing.assert_close(fuse(net)(x), wanted)
    assert [m for m in net.modules() if isinstance(m, torch.jit.ScriptModule)] == scripted
    assert {"blocks.1", "blocks.1.ghost1"} <= {row.name for row in explain(net, x).rows if row.fused}
