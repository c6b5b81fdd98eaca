import copy
import re

import pytest
import torch
from torch import nn

from ghost_ops.fused import BottleneckParts, GhostParts, SqueezeExciteParts
from ghost_ops.nn import GhostModule, GhostModuleV2, SELayer, SqueezeExcite
from ghost_ops.surgery import fuse, survey
from ghost_ops.surgery._inputs import Inputs
from tests.ops.activation_cases import MODULES

from .. import zoo


def found(module):
    """The one finding about the module itself."""
    (finding,) = [f for f in survey(module) if f.module is module]
    return finding


GHOSTS = {
    "article": (
        lambda: zoo.ArticleGhostModule(6, 10),
        GhostParts(
            "primary_conv.0", "primary_conv.1", "primary_conv.2",
            "cheap_operation.0", "cheap_operation.1", "cheap_operation.2",
        ),
    ),
    "sliced": (
        lambda: zoo.ArticleGhostModule(6, 10, ratio=3, relu=False),
        GhostParts(
            "primary_conv.0", "primary_conv.1", "primary_conv.2",
            "cheap_operation.0", "cheap_operation.1", "cheap_operation.2", 10,
        ),
    ),
    "yolo": (
        lambda: zoo.YoloGhostConv(6, 10, 3, 2),
        GhostParts("cv1.conv", "cv1.bn", "cv1.act", "cv2.conv", "cv2.bn", "cv2.act"),
    ),
    "picodet": (
        lambda: zoo.PicoGhostModule(6, 10, 5),
        GhostParts(
            "primary_conv.0", "primary_conv.1", "primary_conv.2",
            "cheap_operation.0", "cheap_operation.1", "cheap_operation.2",
        ),
    ),
    "ghost-resnet": (
        lambda: zoo.ResNetGhostModule(6, 10, 3, ratio=4, padding=1),
        GhostParts("conv1", None, None, "conv2", None, None, 10),
    ),
    "v3 deployed": (
        lambda: zoo.DeployedV3GhostModule(6, 10),
        GhostParts("primary_conv.0", None, "primary_conv.1", "cheap_operation.0", None, "cheap_operation.1"),
    ),
    "one channel": (
        lambda: zoo.ArticleGhostModule(1, 2),
        GhostParts(
            "primary_conv.0", "primary_conv.1", "primary_conv.2",
            "cheap_operation.0", "cheap_operation.1", "cheap_operation.2",
        ),
    ),
    "ours, ratio 1": (
        lambda: GhostModule(6, 10, ratio=1),
        GhostParts("primary_conv.0", "primary_conv.1", "primary_conv.2"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GHOSTS)
def test_ghost_modules(name):
    make, parts = GHOSTS[name]
    finding = found(make())
    assert (finding.kind, finding.parts, finding.reason) == ("Ghost module", parts, None)


@pytest.mark.parametrize("act", MODULES)
def test_every_activation(act):
    module = zoo.ArticleGhostModule(4, 8, act=lambda inplace: copy.deepcopy(MODULES[act]))
    assert found(module).parts.primary_act == "primary_conv.2"


def test_a_shared_activation_is_found_where_it_is_called():
    module = zoo.YoloGhostConv(4, 8)
    assert module.cv1.act is module.cv2.act
    assert found(module).parts.cheap_act == "cv2.act"


def sync(module):
    return nn.SyncBatchNorm.convert_sync_batchnorm(module)


@pytest.mark.parametrize("state", ["train", "half", "meta", "sync", "no statistics", "frozen"])
def test_whatever_the_state(state):
    module = zoo.ArticleGhostModule(6, 10).eval()
    if state == "train":
        module.train()
    if state == "half":
        module.half()
    if state == "meta":
        module.to("meta")
    if state == "sync":
        module = sync(module)
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        if state == "no statistics":
            norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
        if state == "frozen":
            norm.eval().requires_grad_(False)
    assert found(module).parts is not None


def test_sync_batch_norm_of_many_processes():
    """In training it refuses the CPU as soon as there is a process group."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        module = sync(zoo.ArticleGhostModule(6, 10)).train()
        with pytest.raises(ValueError, match="SyncBatchNorm"):
            module(torch.randn(2, 6, 4, 4))
        assert found(module).parts is not None
    finally:
        torch.distributed.destroy_process_group()


LOOKALIKES = {
    "scaled": (lambda: zoo.ScaledGhostModule(6, 10), "does not compute a Ghost module"),
    "swapped": (lambda: zoo.SwappedGhostModule(6, 10), "its halves in the reverse order"),
    "dropout": (lambda: zoo.DropoutGhostModule(6, 10), "draws random numbers"),
    "layer scale": (lambda: zoo.LayerScaleGhostModule(6, 10), "does not compute a Ghost module"),
    "two inputs": (lambda: TwoInputs(6, 10), "takes more than one input"),
    "unknown activation": (lambda: zoo.ArticleGhostModule(6, 10, act=Softsign), "Softsign, which no operator knows"),
    "parametrised": (lambda: parametrised(zoo.ArticleGhostModule(6, 10)), "'primary_conv.0' is parametrised"),
    "weight norm": (lambda: weight_normed(zoo.ArticleGhostModule(6, 10)), "weight of its child .* is computed"),
    "own forward": (lambda: with_own_forward(zoo.ArticleGhostModule(6, 10)), "forward was replaced"),
    "child's own forward": (
        lambda: with_own_forward(zoo.YoloGhostConv(6, 10), "cv1"), "forward of its child 'cv1' was replaced"
    ),
    "lazy": (lambda: lazy(zoo.ArticleGhostModule(6, 10)), "is not initialised yet"),
}  # fmt: skip


class TwoInputs(zoo.ArticleGhostModule):
    def forward(self, x, skip):
        return super().forward(x) + skip


class Softsign(nn.Softsign):
    def __init__(self, inplace=False):
        super().__init__()


def parametrised(module):
    nn.utils.parametrizations.weight_norm(module.primary_conv[0])
    return module


def weight_normed(module):
    nn.utils.weight_norm(module.cheap_operation[0])
    return module


def with_own_forward(module, path=""):
    child = module.get_submodule(path)
    child.forward = lambda x: type(child).forward(child, x)
    return module


def lazy(module):
    module.primary_conv[1] = nn.LazyBatchNorm2d()
    return module


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", LOOKALIKES)
def test_lookalikes_are_left_alone_with_the_reason(name):
    make, reason = LOOKALIKES[name]
    finding = found(make())
    assert finding.parts is None
    assert re.search(reason, finding.reason), finding.reason


class Separable(nn.Module):
    """A depthwise and a 1x1 convolution in turn: nothing is concatenated."""

    def __init__(self):
        super().__init__()
        self.a, self.b = zoo.conv_bn(6, 6, 3, groups=6), zoo.conv_bn(6, 8, 1)

    def forward(self, x):
        return self.b(self.a(x))


@pytest.mark.parametrize(
    "module",
    [
        Separable(),
        nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 4)),
        nn.TransformerEncoderLayer(8, 2, 16),
        nn.Conv2d(3, 4, 1),
        nn.LSTM(4, 4),
    ],
    ids=lambda module: type(module).__name__,
)
def test_others_are_not_mentioned(module):
    assert survey(module) == []


GATES = [
    (lambda: zoo.ArticleSELayer(16), "clamp", ("avg_pool",)),
    (lambda: zoo.ArticleSELayer(16, gate=nn.Sigmoid()), "sigmoid", ("avg_pool", "fc.3")),
    (lambda: zoo.ArticleSELayer(16, gate=zoo.HardSigmoid()), "hard_sigmoid", ("avg_pool", "fc.3.relu")),
    (lambda: zoo.ArticleSELayer(16, gate=nn.Hardsigmoid()), "hard_sigmoid", ("avg_pool", "fc.3")),
    (lambda: zoo.ArticleSELayer(16, gate=nn.Identity()), "identity", ("avg_pool", "fc.3")),
    (lambda: zoo.HuaweiSqueezeExcite(8, 4), "hard_sigmoid", ("avg_pool",)),
    (lambda: zoo.HuaweiSqueezeExcite(8, 4, torch.sigmoid), "sigmoid", ("avg_pool",)),
    (lambda: zoo.HuaweiSqueezeExcite(2, 1, lambda v: v.clamp(0, 1)), "clamp", ("avg_pool",)),
    (lambda: SELayer(8), "clamp", ("avg_pool",)),
    (lambda: SqueezeExcite(8), "hard_sigmoid", ()),
]


@pytest.mark.parametrize(("make", "gate", "others"), GATES)
def test_gates(make, gate, others):
    finding = found(make())
    assert (finding.kind, finding.reason) == ("squeeze-and-excite", None)
    assert isinstance(finding.parts, SqueezeExciteParts)
    assert (finding.parts.gate, finding.parts.others) == (gate, others)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: zoo.TwiceSELayer(16), "does not compute a squeeze-and-excite"),
        (lambda: zoo.ArticleSELayer(16, gate=nn.Tanh()), "with any of the gates clamp"),
        (lambda: zoo.HuaweiSqueezeExcite(8, 4, torch.exp), "with any of the gates clamp"),
    ],
)
def test_other_gates(make, reason):
    finding = found(make())
    assert finding.parts is None and reason in finding.reason


def test_bottlenecks():
    article = found(zoo.ArticleBottleneck(8, 16, 12, 5, 2, True)).parts
    assert article == BottleneckParts(
        "conv.0", "conv.3", ("conv.1.0", "conv.1.1", "conv.1.2"), "conv.2",
        ("shortcut.0.0", "shortcut.0.1", "shortcut.0.2", "shortcut.1", "shortcut.2"),
    )  # fmt: skip
    huawei = found(zoo.HuaweiBottleneck(8, 16, 12, 5, 2, True)).parts
    shortcut = tuple(f"shortcut.{i}" for i in range(4))
    assert huawei == BottleneckParts("ghost1", "ghost2", ("conv_dw", "bn_dw"), "se", shortcut)
    identity = found(zoo.HuaweiBottleneck(8, 16, 8)).parts
    assert identity == BottleneckParts("ghost1", "ghost2", (), None, ("shortcut",))
    yolo = found(zoo.YoloGhostBottleneck(8, 12, 3, 2)).parts
    assert yolo.depthwise == ("conv.1.conv", "conv.1.bn", "conv.1.act")
    assert (yolo.ghost1, yolo.ghost2, yolo.se) == ("conv.0", "conv.2", None)


def test_a_bottleneck_that_is_none():
    module = zoo.WideBottleneck(8, 16, 12)
    assert "does not compute a Ghost bottleneck" in found(module).reason
    assert [f.name for f in survey(module) if f.parts] == ["ghost1", "ghost2"]


def test_the_innermost_module_is_the_bottleneck():
    block = zoo.HuaweiBottleneck(8, 16, 8)

    class Stage(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block

        def forward(self, x):
            return self.block(x)

    kinds = {f.name: f.kind for f in survey(Stage()) if f.parts}
    assert kinds == {"block.ghost1": "Ghost module", "block.ghost2": "Ghost module", "block": "Ghost bottleneck"}


def test_timm_nets():
    timm = pytest.importorskip("timm")

    def counts(name):
        kinds = [f.kind for f in survey(timm.create_model(name)) if f.parts]
        attention = "Ghost module with DFC attention"
        return [kinds.count(kind) for kind in ("Ghost module", attention, "squeeze-and-excite", "Ghost bottleneck")]

    assert counts("ghostnet_050") == [32, 0, 7, 16]
    assert counts("ghostnetv2_100") == [18, 14, 7, 16]
    assert counts("ghostnetv3_050") == [0, 0, 7, 0]
    assert counts("mobilenetv2_100") == [0, 0, 0, 0]


def test_the_net_is_left_as_it_is():
    net = zoo.Net(zoo.ArticleBottleneck(8, 16, 12, 3, 2, True), zoo.ScaledGhostModule(12, 12)).train()
    net.blocks[0].conv[0].primary_conv[1].eval()
    calls = []
    for module in net.modules():
        module.register_forward_hook(lambda *_: calls.append("hook"))
    before, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    random = torch.get_rng_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert sum(f.parts is not None for f in survey(net)) == 4
    assert not calls
    assert torch.equal(random, torch.get_rng_state())
    assert modes == [m.training for m in net.modules()]
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(p.grad is not None for p in net.parameters())


def test_no_module():
    with pytest.raises(TypeError, match=r"net: expected a torch\.nn\.Module, got int"):
        survey(3)


@pytest.mark.parametrize(("run", "surveys"), [(survey, 1), (fuse, 3)])
def test_a_survey_changes_the_number_of_threads_once(run, surveys, monkeypatch):
    """Each change ends the threads, and starting them again takes longer than the work on small maps."""
    changes, change = [], torch.set_num_threads
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: changes.append(threads) or change(threads))
    change(2)
    net = nn.Sequential(
        *(zoo.HuaweiBottleneck(8, 16, 8) for _ in range(3)), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4), nn.ReLU()
    )
    try:
        assert run(net) is not None
        assert changes == [1, 2] * surveys and torch.get_num_threads() == 2
    finally:
        change(1)


BRANCHING = """
def call(function, net):
    if net is None or len(net._modules) > 1000:
        return None
    return function(net)
"""


def test_the_code_that_asks_for_it_is_not_what_is_looked_at(monkeypatch):
    """Sizes that a forward hands on are followed in the forward's own code, and not in that of fuse's caller: whether
    there are branches in his code changes nothing. In the forward's own it does."""
    tried, others = [], Inputs.others
    monkeypatch.setattr(Inputs, "others", lambda self, branches: tried.append(bool(branches)) or others(self, branches))
    names = {}
    exec(BRANCHING, names)
    names["call"](survey, GhostModuleV2(8, 12))
    assert tried and not any(tried)

    class Branching(GhostModuleV2):
        def forward(self, x):
            height, width = x.shape[-2:]
            return super().forward(x) if x is not None else (height, width)

    tried.clear()
    survey(Branching(8, 12))
    assert any(tried)
