"""A frozen net keeps what its source was: class, signature, methods, attributes; what cannot be kept is refused."""

import copy
import gc
import inspect
import io
import pickle
import weakref

import pytest
import torch
from torch import nn

from ghost_ops import FusedGhostModule, explain, freeze, thaw
from ghost_ops.fused.behaviour import Fused
from ghost_ops.fused.frozen_net import Frozen
from ghost_ops.fused.frozen_state import STATE
from ghost_ops.fused.in_place import source_class

from .. import zoo
from ..helpers import make_map, randomise
from .test_freeze import Classifier, Untraceable, _as_with_kernels, huawei, programs, whole_program  # noqa: F401


class Vision(Classifier):
    """A net as libraries make them: a keyword, methods, a property, attributes."""

    num_classes = 5
    main_input_name = "pixel_values"

    def __init__(self):
        super().__init__(*huawei())
        self.default_cfg = {"input_size": (3, 224, 224)}
        self.names = ["a", "b", "c", "d", "e"]

    @property
    def device(self):
        return next(self.parameters()).device

    def forward_features(self, pixel_values):
        return self.squeeze(self.blocks(self.stem(pixel_values)))

    def forward_head(self, x, pre_logits=False):
        x = x.view(x.size(0), -1)
        return x if pre_logits else self.classifier(x)

    def forward(self, pixel_values):
        return self.forward_head(self.forward_features(pixel_values))

    def reset_classifier(self, num_classes):
        self.num_classes = num_classes
        self.classifier = nn.Linear(21, num_classes)


def make_vision():
    return randomise(Vision()).eval()


@pytest.fixture
def x():
    return make_map((2, 3, 33, 31))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# Kept


def test_class_signature_methods_attributes(x):
    net = make_vision()
    frozen = freeze(net)
    whole_program(frozen)
    assert isinstance(frozen, Vision) and type(frozen).__name__ == "FrozenVision"
    assert inspect.signature(frozen.forward) == inspect.signature(net.forward)
    assert (frozen.num_classes, frozen.default_cfg, frozen.names) == (5, net.default_cfg, net.names)
    assert frozen.device == net.device and frozen.main_input_name == "pixel_values"
    with torch.no_grad():
        close(frozen(x), net(x))
        assert torch.equal(frozen(pixel_values=x), frozen(x)) and torch.equal(frozen.forward(x), frozen(x))
        features = frozen.forward_features(x)
        close(features, net.forward_features(x))
        close(frozen.forward_head(features), net(x))
        close(frozen.forward_head(features, pre_logits=True), net.forward_head(net.forward_features(x), True))


def test_parameters_children_and_paths():
    net = make_vision()
    frozen = freeze(net)
    assert [name for name, _ in frozen.named_parameters()] == [name for name, _ in net.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(frozen.parameters(), net.parameters(), strict=True))
    assert not any(p.requires_grad for p in frozen.parameters())
    assert [name for name, _ in frozen.named_children()] == [name for name, _ in net.named_children()]
    own = {name for name, _ in frozen.named_modules()}
    assert own - {name for name, _ in net.named_modules()} == {"frozen_programs", "frozen_programs.0"}
    assert isinstance(frozen.blocks[0].ghost1, Fused)


def test_the_idiom_of_all_children_but_the_last(x):
    net = make_vision()
    head = nn.Sequential(*list(freeze(net).children())[:-1])
    with torch.no_grad():
        close(head(x), net.forward_features(x))


def test_a_sequential_keeps_its_items(x):
    net = randomise(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), zoo.HuaweiBottleneck(8, 16, 8), nn.Tanh())).eval()
    frozen = freeze(net)
    assert len(programs(frozen)) == 1 and isinstance(frozen, nn.Sequential)
    assert len(frozen) == 3 and [type(m).__name__ for m in frozen][::2] == ["Conv2d", "Tanh"]
    assert type(frozen[-1]) is nn.Tanh and isinstance(frozen[:2], nn.Sequential) and len(frozen[:2]) == 2
    with torch.no_grad():
        close(frozen[:2](x), net[:2](x))
        close(frozen(x), net(x))
    for change in (
        lambda: frozen.append(nn.ReLU()),
        lambda: frozen.insert(0, nn.ReLU()),
        lambda: frozen.pop(0),
        lambda: frozen.__setitem__(0, nn.ReLU()),
        lambda: frozen.__delitem__(0),
    ):
        with pytest.raises(ValueError, match="a frozen net keeps its children and parameters"):
            change()
    assert len(frozen) == 3


def test_timm(x):
    timm = pytest.importorskip("timm")
    net = randomise(timm.create_model("ghostnet_100", num_classes=11)).eval()
    frozen = freeze(net)
    whole_program(frozen)
    assert isinstance(frozen, type(net)) and frozen.num_classes == 11 and frozen.default_cfg == net.default_cfg
    with torch.no_grad():
        features = net.forward_features(x)
        close(frozen.forward_features(x), features)
        close(frozen.forward_head(features), net.forward_head(features))
        close(frozen(x), net(x))
    before = dict(frozen.__dict__), list(frozen._modules.items())
    with pytest.raises(ValueError, match=r"GhostNet \(frozen\): reset_classifier: a frozen net keeps its children"):
        frozen.reset_classifier(7)
    assert frozen.num_classes == 11 and (dict(frozen.__dict__), list(frozen._modules.items())) == before


class Layered(nn.Module):
    """As yolov5's: each layer has attributes, which the loop of the net reads."""

    def __init__(self):
        super().__init__()
        layers = nn.Conv2d(3, 8, 3, 2, 1), zoo.YoloGhostConv(8, 8), zoo.YoloGhostBottleneck(8, 8), Concat()
        self.model, self.save = nn.Sequential(*layers, nn.Conv2d(16, 4, 1)), [1, 2]
        for i, (layer, source) in enumerate(zip(self.model, (-1, -1, -1, [-1, 1], -1), strict=True)):
            layer.i, layer.f, layer.type = i, source, type(layer).__name__

    def forward(self, x, augment=False):
        if augment:
            return self._once(x) + 1
        return self._once(x)

    def _once(self, x):
        y = []
        for m in self.model:
            if m.f != -1:
                x = y[m.f] if isinstance(m.f, int) else [x if j == -1 else y[j] for j in m.f]
            x = m(x)
            y.append(x if m.i in self.save else None)
            assert m.type
        return x


class Concat(nn.Module):
    def forward(self, x):
        return torch.cat(x, 1)


class Careful(Layered):
    """The same, whose forward depends on values."""

    def forward(self, x, augment=False):
        return super().forward(x, augment) if x.isfinite().all() else x


@pytest.mark.parametrize("cls", [Layered, Careful])
def test_layers_keep_their_attributes(cls, x):
    net = randomise(cls()).eval()
    frozen = freeze(net)
    assert len(programs(frozen)) == (1 if cls is Layered else 2)
    with torch.no_grad():
        close(frozen(x), net(x))
        close(frozen(x, True), net(x, True))
        close(frozen(x, augment=True), net(x, augment=True))
        assert torch.equal(frozen(x, augment=False), frozen(x))
    for ours, theirs in zip(frozen.model, net.model, strict=True):
        assert (ours.i, ours.f, ours.type) == (theirs.i, theirs.f, theirs.type)
        assert isinstance(ours, (source_class(theirs), Fused))


def test_optional_arguments_stand_for_their_defaults(x):
    class Options(Vision):
        def forward(self, pixel_values=None, labels=None, return_dict=False):
            out = super().forward(pixel_values)
            out = out if labels is None else out + labels
            return {"logits": out} if return_dict else out

    net = randomise(Options()).eval()
    frozen = freeze(net)
    whole_program(frozen)
    with torch.no_grad():
        close(frozen(pixel_values=x), net(x))
        close(frozen(x, labels=None), net(x))
        close(frozen(x, torch.ones(5)), net(x, torch.ones(5)))
        close(frozen(x, return_dict=True)["logits"], net(x))
    for wrong in ({"pixel": x}, {"pixel_values": x, "more": 1}):
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            frozen(**wrong)
    with pytest.raises(TypeError, match="positional arguments"):
        frozen(x, None, False, 3)


def test_hooks_of_the_net_run(x):
    net = make_vision()
    seen = []
    net.register_forward_hook(lambda module, args, out: seen.append(out.shape) or out * 2)
    frozen = freeze(net)
    assert not seen, "hooks that are functions are the user's own"
    with torch.no_grad():
        close(frozen(x), net(x))
        assert len(seen) == 2
        handle = frozen.register_forward_pre_hook(lambda module, args: (args[0] * 0,))
        zeros = frozen(x)
        handle.remove()
        close(zeros, net(x * 0))
        close(frozen(x), net(x))


def test_global_hooks_run(x):
    frozen, seen = freeze(make_vision()), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        frozen(x)
    finally:
        handle.remove()
    assert frozen in seen


def test_built_fused(x):
    net = randomise(FusedGhostModule(3, 8)).eval()
    frozen = freeze(net)
    whole_program(frozen)
    assert isinstance(frozen, FusedGhostModule)
    with torch.no_grad():
        close(frozen(x), net(x))
        close(thaw(frozen)(x), net(x))


# Refused


REFUSED = {
    "train": (lambda net: net.train(), "train: a frozen net stays in eval mode"),
    "gradients": (lambda net: net.requires_grad_(), "requires_grad_: a frozen net has no gradients"),
    "a child": (lambda net: setattr(net, "classifier", nn.Linear(21, 2)), "classifier: a frozen net keeps its"),
    "another child": (lambda net: setattr(net, "more", nn.Linear(21, 2)), "more: a frozen net keeps its children"),
    "no child": (lambda net: setattr(net, "classifier", None), "classifier: a frozen net keeps its"),
    "a parameter": (lambda net: setattr(net, "scale", nn.Parameter(torch.ones(1))), "scale: a frozen net keeps"),
    "added": (lambda net: net.add_module("more", nn.ReLU()), "more: a frozen net keeps"),
    "registered": (lambda net: net.register_parameter("scale", None), "scale: a frozen net keeps"),
    "deleted": (lambda net: delattr(net, "classifier"), "classifier: a frozen net keeps"),
    "plain state": (lambda net: net.load_state_dict(make_vision().state_dict()), "load_state_dict: expected the state"),
    "plain state, not strict": (
        lambda net: net.load_state_dict(make_vision().state_dict(), strict=False), "load it into the net",
    ),
    "within": (lambda net: nn.Sequential(net).load_state_dict({"0.x": torch.ones(1)}), "freeze again"),
    "rebuilt": (lambda net: net.reset_classifier(2), "reset_classifier: a frozen net keeps"),
}  # fmt: skip


@pytest.mark.parametrize("make", [make_vision, lambda: randomise(Careful()).eval()], ids=["whole", "parted"])
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, make, x):
    change, message = REFUSED[name]
    if make is not make_vision and name in ("a child", "no child", "deleted", "rebuilt"):
        change = {
            "deleted": lambda net: delattr(net, "model"),
        }.get(name, lambda net: setattr(net, "model", None))
        message = "model: a frozen net keeps"
    frozen = freeze(make())
    state, want = {k: v.clone() for k, v in frozen.state_dict().items()}, frozen(x)
    with pytest.raises(ValueError, match=message) as raised:
        change(frozen)
    assert "\n" not in str(raised.value) and "(frozen): " in str(raised.value)
    assert all(torch.equal(v, state[k]) for k, v in frozen.state_dict().items())
    assert torch.equal(frozen(x), want) and not frozen.training
    assert frozen.eval() is frozen and frozen.train(False) is frozen and frozen.requires_grad_(False) is frozen


CHANGES = {
    "a weight": lambda net: net.blocks[0].ghost1.primary_conv[0].weight.zero_(),
    "a bias": lambda net: net.classifier[-1].bias.add_(1),
    "statistics": lambda net: net.stem[1].running_mean.add_(1),
    "a moving average": lambda net: [p.lerp_(torch.zeros_like(p), 0.1) for p in net.parameters()],
    "an initialisation": lambda net: nn.init.zeros_(net.classifier[-1].weight),
    "a child's state": lambda net: net.classifier.load_state_dict(net.classifier.state_dict()),
}


@pytest.mark.parametrize("moved", [lambda net: net, copy.deepcopy, lambda net: net.double().float()])
@pytest.mark.parametrize("name", CHANGES)
def test_changes_in_place_are_noticed(name, moved, x):
    frozen = moved(freeze(make_vision()))
    frozen(x)
    with torch.no_grad():
        CHANGES[name](frozen)
    for _ in range(2):
        with pytest.raises(
            RuntimeError, match=r"Vision \(frozen\): a parameter or buffer was changed in place: change"
        ):
            frozen(x)
    with pytest.raises(RuntimeError, match="changed in place"):
        frozen.forward(x)


def test_changes_in_place_of_parts_are_noticed(x):
    frozen = freeze(randomise(Careful()).eval())
    with torch.no_grad():
        frozen.model[4].weight.zero_()  # not in a program
        assert not frozen(x).std((2, 3)).any()
        frozen.model[1].cv1.conv.weight.zero_()
    with pytest.raises(RuntimeError, match=r"YoloGhostConv \(frozen\): a parameter or buffer was changed in place"):
        frozen(x)


def test_a_change_of_a_copy_is_not_one_of_the_net(x):
    frozen = freeze(make_vision())
    with torch.no_grad():
        want, twin = frozen(x), copy.deepcopy(frozen)
        for p in twin.parameters():
            p.zero_()
        assert torch.equal(frozen(x), want)


# Life


def test_the_state_of_a_twin_loads(x):
    frozen, other = freeze(make_vision()), freeze(randomise(Vision(), seed=5).eval())
    with torch.no_grad():
        assert not torch.equal(other(x), frozen(x))
        assert other.load_state_dict(frozen.state_dict()).missing_keys == []
        assert torch.equal(other(x), frozen(x)) and torch.equal(other.forward_features(x), frozen.forward_features(x))
        assert torch.equal(other(x), frozen(x))
        nn.Sequential(other).load_state_dict(nn.Sequential(frozen).state_dict())
        assert torch.equal(other(x), frozen(x))
        other.load_state_dict(frozen.state_dict())
        other.stem[0].weight.zero_()
    with pytest.raises(RuntimeError, match="changed in place"):
        other(x)


def saved(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net)), saved])
@pytest.mark.parametrize("make", [make_vision, lambda: randomise(Careful()).eval()], ids=["whole", "parted"])
def test_copies_keep_the_class(make, how, x):
    frozen = freeze(make())
    twin = how(frozen)
    assert type(twin) is type(frozen) and twin.__dict__[STATE] is not frozen.__dict__[STATE]
    with torch.no_grad():
        assert torch.equal(twin(x), frozen(x))
    with pytest.raises(ValueError, match="train"):
        twin.train()
    with torch.no_grad():
        next(p for p in twin.parameters() if p.dim() == 4 and p.shape[1] > 3).zero_()
    with pytest.raises(RuntimeError, match="changed in place"):
        twin(x)


def test_explain_twice(x):
    """It leaves no trace that the net would take for a change."""
    frozen = freeze(make_vision())
    want = frozen(x)
    assert explain(frozen, x) == explain(copy.deepcopy(frozen), x) == explain(frozen, x)
    assert torch.equal(frozen(x), want)


def test_frozen_within_a_plain_net(x):
    larger = nn.Sequential(freeze(make_vision()), nn.Softmax(1)).eval()
    again = freeze(larger)
    with torch.no_grad():
        assert torch.equal(again(x), larger(x)) and torch.equal(copy.deepcopy(larger)(x), larger(x))
    assert len(programs(again)) == 1


def test_nothing_keeps_a_net_that_nobody_has():
    """Neither its state nor the comparison: large nets are freed at once, not when Python looks for cycles."""
    gc.collect()
    gc.disable()
    try:
        net = make_vision()
        frozen = freeze(net)
        frozen(make_map((1, 3, 9, 9)))
        references = [weakref.ref(m) for m in (net, frozen, frozen.frozen_programs[0])]
        del net, frozen
        assert [reference() for reference in references] == [None] * 3
    finally:
        gc.enable()


def test_untraceable_nets_keep_their_class(x):
    net = randomise(Untraceable("called")).eval()
    frozen = freeze(net)
    assert isinstance(frozen, Frozen) and isinstance(frozen.blocks, Frozen) and frozen.how == "called"
    rows = {row.name: row for row in explain(frozen, make_map((2, 8, 9, 7))).rows}
    assert rows["blocks"].runs.startswith("program on") and rows["blocks"].module == "Sequential"
    assert rows[""].runs == "plain PyTorch" and rows[""].why.startswith("its forward cannot be traced (TraceError: ")
