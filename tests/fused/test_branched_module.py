"""Ghost modules whose convolutions are sums of branches, as RepGhost's and GhostNetV3's in training."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ghost_ops.fused import FrozenProgram
from ghost_ops.fused.behaviour import block_of
from ghost_ops.surgery import explain, freeze, fuse, revert
from ghost_ops.surgery.recognise import survey

from ..helpers import assert_as_accurate, make_map, randomise
from .twins import assert_agree, plain_twin, why

TRAINS = "branched_module_train on native"
KIND = "Ghost module with branches"


def conv_bn(inp, out, kernel, groups=1, bias=False):
    conv = nn.Conv2d(inp, out, kernel, padding=kernel // 2, groups=groups, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(out))


class RepGhost(nn.Module):
    """As RepGhostModule of its authors and of timm."""

    def __init__(self, inp, out, relu=True) -> None:
        super().__init__()
        self.primary_conv = nn.Sequential(*conv_bn(inp, out, 1), nn.ReLU(inplace=True) if relu else nn.Identity())
        self.fusion_conv = nn.Sequential(nn.Identity())
        self.fusion_bn = nn.Sequential(nn.BatchNorm2d(out))
        self.cheap_operation = conv_bn(out, out, 3, out)
        self.relu = nn.ReLU(inplace=False) if relu else nn.Identity()

    def forward(self, x):
        x1 = self.primary_conv(x)
        x2 = self.cheap_operation(x1)
        for conv, bn in zip(self.fusion_conv, self.fusion_bn):
            x2 = x2 + bn(conv(x1))
        return self.relu(x2)


class ConvBnAct(nn.Module):
    """As timm's: its BatchNorm derives from PyTorch's and applies an activation, here none."""

    class Norm(nn.BatchNorm2d):
        def __init__(self, channels) -> None:
            super().__init__(channels)
            self.drop, self.act = nn.Identity(), nn.Identity()

        def forward(self, x):
            running = self.running_mean, self.running_var
            if self.training:
                self.num_batches_tracked.add_(1)
            x = F.batch_norm(x, *running, self.weight, self.bias, self.training, self.momentum, self.eps)
            return self.act(self.drop(x))

    def __init__(self, inp, out, kernel, groups=1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inp, out, kernel, padding=kernel // 2, groups=groups, bias=False)
        self.bn1 = self.Norm(out)

    def forward(self, x):
        return self.bn1(self.conv(x))


class V3(nn.Module):
    """As GhostModuleV3 of timm, and of Huawei with ``layer=conv_bn``."""

    def __init__(self, inp, out, act=nn.ReLU, shortcut=False, layer=ConvBnAct) -> None:
        super().__init__()
        init = -(-out // 2)
        self.gate_fn, self.out_chs, self.mode = nn.Sigmoid(), out, "shortcut" if shortcut else "original"
        self.primary_conv, self.cheap_operation = nn.Identity(), nn.Identity()
        self.primary_rpr_conv = nn.ModuleList(layer(inp, init, 1) for _ in range(3))
        self.primary_activation = act()
        self.cheap_rpr_skip = nn.BatchNorm2d(init)
        self.cheap_rpr_conv = nn.ModuleList(layer(init, init, 3, init) for _ in range(3))
        self.cheap_rpr_scale = layer(init, init, 1, init)
        self.cheap_activation = act()
        self.short_conv = nn.Identity()
        if shortcut:
            along = [
                nn.Conv2d(out, out, k, padding=(k[0] // 2, k[1] // 2), groups=out, bias=False) for k in ((1, 5), (5, 1))
            ]
            norms = [nn.BatchNorm2d(out) for _ in range(3)]
            first = nn.Conv2d(inp, out, 1, bias=False)
            self.short_conv = nn.Sequential(first, norms[0], along[0], norms[1], along[1], norms[2])

    def forward(self, x):
        x1 = 0
        for conv in self.primary_rpr_conv:
            x1 += conv(x)
        x1 = self.primary_activation(x1)
        x2 = self.cheap_rpr_scale(x1) + self.cheap_rpr_skip(x1)
        for conv in self.cheap_rpr_conv:
            x2 += conv(x1)
        out = torch.cat([x1, self.cheap_activation(x2)], 1)
        if self.mode not in ["shortcut"]:
            return out
        res = self.short_conv(F.avg_pool2d(x, kernel_size=2, stride=2))
        up = F.interpolate(self.gate_fn(res), size=(out.shape[-2], out.shape[-1]), mode="nearest")
        return out[:, : self.out_chs, :, :] * up


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.primary = nn.ModuleList(conv_bn(6, 10, 1) for _ in range(2))
        self.cheap = nn.ModuleList(conv_bn(10, 10, 3, 10) for _ in range(2))

    def forward(self, x):
        y = F.relu(sum(branch(x) for branch in self.primary))
        return torch.cat([y, F.relu(sum(branch(y) for branch in self.cheap))], 1)


FORMS = {
    "RepGhost": lambda: RepGhost(6, 20),
    "RepGhost without activations": lambda: RepGhost(6, 12, relu=False),
    "V3": lambda: V3(6, 20),
    "V3 without activations": lambda: V3(40, 16, act=nn.Identity),
    "V3 with attention": lambda: V3(6, 23, shortcut=True),
    "Huawei's V3": lambda: V3(6, 20, shortcut=True, layer=conv_bn),
    "V3 with SiLU": lambda: V3(6, 20, act=nn.SiLU, layer=conv_bn),
    "functions": Functional,
}


def module(form="V3", training=True):
    return fuse(randomise(FORMS[form]()).train(training))


def map_of(fused, side=(9, 11), **options):
    return make_map((3, block_of(fused).channels(fused), *side), **options)


@pytest.mark.parametrize("form", FORMS)
def test_training(form):
    fused = module(form)
    x = map_of(fused, layout="channels_last")
    trains = f"{TRAINS}, dfc_gate_train on native" if "short_conv.0.weight" in fused.state_dict() else TRAINS
    assert block_of(fused).kind == KIND and why(fused, x) == trains
    assert_agree(fused, x, calls=2)


@pytest.mark.parametrize("form", FORMS)
def test_eval_is_one_program(form):
    fused = module(form, training=False)
    x = map_of(fused, layout="channels_last")
    with torch.no_grad():
        assert why(fused, x).startswith("program_eval on native")
        assert_agree(fused, x, backward=False)
    assert "gradients are wanted" in why(fused, x)
    assert torch.equal(fused(x), plain_twin(fused)(x))


def test_eval_follows_its_parameters():
    """A change that no version counts too, and one of a number."""
    fused = module("V3 with attention", training=False)
    x = map_of(fused)
    with torch.no_grad():
        before = fused(x)
        fused.cheap_rpr_scale.conv.weight.data.mul_(2)
        fused.primary_rpr_conv[1].bn1.running_var.data.mul_(3)
        assert_agree(fused, x, backward=False)
        for conv in fused.primary_rpr_conv:
            conv.bn1.eps = 0.5
        fused.cheap_rpr_skip.weight = nn.Parameter(torch.full_like(fused.cheap_rpr_skip.weight, 4.0))
        assert_agree(fused, x, backward=False)
        assert why(fused, x).startswith("program_eval on native") and not torch.allclose(fused(x), before, atol=1e-2)


def test_eval_over_batch_statistics():
    fused = module(training=False)
    x = map_of(fused)
    fused.cheap_rpr_skip.train()
    with torch.no_grad():
        assert "batch statistics" in why(fused, x)
        assert torch.equal(fused(x), plain_twin(fused)(x))


def test_eval_of_a_weight_that_would_be_broadcast():
    fused = module(training=False)
    x, conv = map_of(fused), fused.primary_rpr_conv[1].conv
    conv.weight = nn.Parameter(conv.weight[:, :1].detach())
    with torch.no_grad():
        assert "does not have its shape" in why(fused, x)
        with pytest.raises(RuntimeError, match="channels"):
            fused(x)


def test_statistics_of_its_own():
    fused = module()
    x = map_of(fused)
    fused.cheap_rpr_skip.momentum = None
    fused.primary_rpr_conv[1].bn1.momentum = 0.3
    assert_agree(fused, x, calls=3)
    fused.cheap_rpr_conv[0].bn1.eval()
    assert "running statistics" in why(fused, x)
    assert torch.equal(fused(x), plain_twin(fused)(x))


def test_stays_itself():
    source = randomise(V3(6, 20)).train()
    keys, x = source.state_dict().keys(), make_map((2, 6, 8, 8))
    fused = fuse(source)
    assert isinstance(fused, V3) and fused.state_dict().keys() == keys
    expected = copy.deepcopy(fused)(x)
    buffer = io.BytesIO()
    torch.save(fused, buffer)
    buffer.seek(0)
    for again in (copy.deepcopy(fused), torch.load(buffer, weights_only=False)):
        assert why(again, x) == TRAINS and torch.equal(again(x), expected)
    assert type(revert(copy.deepcopy(fused))) is V3
    assert [row.runs for row in explain(fused, x).rows][:1] == [TRAINS]


@pytest.mark.parametrize("path", ["primary_rpr_conv.1", "primary_rpr_conv.1.bn1.drop", "cheap_rpr_skip", "gate_fn"])
def test_hooks_run(path):
    fused, seen = module("V3 with attention"), []
    x = map_of(fused)
    fused(x)
    hook = lambda m, i, out: seen.append(path) or out * 2
    handle = fused.get_submodule(path).register_forward_hook(hook)
    plain = plain_twin(fused)
    assert "hooks" in why(fused, x)
    assert torch.equal(fused(x), plain(x)) and len(seen) == 2
    handle.remove()
    assert why(fused, x).startswith(TRAINS)


def test_a_changed_attribute_is_seen():
    fused = module("V3 with attention")
    x = map_of(fused)
    fused(x)
    fused.mode = "original"
    assert torch.equal(fused(x), plain_twin(fused)(x))


def test_gradients_of_some():
    fused = module()
    for name, p in fused.named_parameters():
        p.requires_grad_("cheap" not in name)
    assert_agree(fused, map_of(fused))
    assert_agree(fused, map_of(fused), of_input=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    fused = module("RepGhost").to(dtype)
    x = map_of(fused).to(dtype)
    if dtype is torch.bfloat16:
        assert_agree(fused, x)
    else:
        assert torch.equal(fused(x), plain_twin(fused)(x)) and "float64" in why(fused, x)


def test_autocast():
    fused = module("RepGhost")
    x = map_of(fused)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = fused(x), plain_twin(fused)(x)
        assert why(fused, x) == TRAINS
    assert_as_accurate(ours, theirs, plain_twin(fused).double()(x.double()))


def test_what_pytorch_refuses():
    fused = module("RepGhost")
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fused(map_of(fused, (1, 1))[:1])
    with pytest.raises(RuntimeError, match="channels"):
        fused(torch.randn(2, 5, 8, 8))


def altered(change):
    made = V3(6, 20, layer=conv_bn)
    change(made)
    return made


LEFT = {
    "biases": (
        lambda: altered(lambda m: setattr(m.primary_rpr_conv[0], "0", nn.Conv2d(6, 10, 1))),
        "has a bias beside its BatchNorm",
    ),
    "several eps": (lambda: altered(lambda m: setattr(m.cheap_rpr_skip, "eps", 0.1)), "different eps"),
    "a PReLU": (lambda: altered(lambda m: setattr(m, "cheap_activation", nn.PReLU())), "a PReLU"),
    "BatchNorms without weights": (
        lambda: altered(lambda m: setattr(m, "cheap_rpr_skip", nn.BatchNorm2d(10, affine=False))),
        "have weights and others have none",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_left_with_a_reason(name):
    build, reason = LEFT[name]
    (finding,) = survey(randomise(build()))
    assert finding.parts is None and reason in finding.reason


@pytest.mark.parametrize(
    "form, steps",
    [("RepGhost", "1 ghost, 1 depthwise"), ("V3 with attention", "1 multiply"), ("V3 with SiLU", "1 ghost")],
)
def test_frozen_branches_are_merged(form, steps):
    """Into one program, which notices a change of what was merged."""
    source = randomise(FORMS[form]()).eval()
    frozen, x = freeze(source), make_map((2, 6, 9, 11))
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), source(x), rtol=1e-4, atol=1e-5)
        (program,) = [m for m in frozen.modules() if isinstance(m, FrozenProgram)]
        assert steps in str(program) and "add" not in str(program) and "concat" not in str(program)
        assert torch.equal(freeze(nn.Sequential(source).eval())(x), frozen(x))
        next(m for m in frozen.modules() if isinstance(m, nn.BatchNorm2d)).weight.mul_(2)
        with pytest.raises(RuntimeError, match="in place"):
            frozen(x)
