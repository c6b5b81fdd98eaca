"""Ghost modules with DFC attention, fused, in training and in eval, and bottlenecks of them."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import ghost_ops
from ghost_ops.dispatch import plain, select
from ghost_ops.fused import dfc_attention
from ghost_ops.fused.behaviour import block_of
from ghost_ops.ops import ghost_module_train
from ghost_ops.surgery import explain, fuse, revert

from ..helpers import assert_as_accurate, make_map, randomise
from .dfc_modules import FORMS, KIND, HuaweiModule, map_of, module
from .twins import assert_agree, plain_twin, run, why

TRAINS = "ghost_module_train on native, dfc_gate_train on native"


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("form", FORMS)
def test_training(form, layout):
    fused = module(form)
    x = map_of(fused, layout=layout)
    assert block_of(fused).kind == KIND and why(fused, x) == TRAINS
    assert_agree(fused, x, calls=2)


@pytest.mark.parametrize("form", FORMS)
def test_eval(form):
    fused = module(form, training=False)
    x = map_of(fused)
    assert_agree(fused, x)
    assert_agree(fused, x, backward=False)
    with torch.no_grad():
        assert why(fused, x) == "program_eval on native"


def test_deployed():
    """Convolutions with biases and no BatchNorms, as after BatchNorms were folded."""
    for relu in (True, False):
        fused = fuse(randomise(HuaweiModule(6, 20, bias=True, relu=relu)))
        assert block_of(fused).kind == KIND
        for training in (True, False):
            assert_agree(fused.train(training), map_of(fused))
        assert_agree(fused, map_of(fused), backward=False)


def test_a_gate_of_3_by_3_for_7_by_7():
    fused = module()
    for side in ((7, 7), (2, 6), (3, 14), (15, 8)):
        assert_agree(fused, map_of(fused, side))


def test_a_gate_of_one_pixel():
    """Each of its BatchNorms takes away the scale of the one before: gradients of scales are nothing but rounding."""
    fused, what = module(), "gradient of the input"
    x, plain = map_of(fused, (2, 2)), plain_twin(fused)
    assert_agree(fused, x, backward=False)
    exact = run(copy.deepcopy(plain).double(), x.double(), True)[what]
    assert_as_accurate(run(fused, x, True)[what], run(plain, x, True)[what], exact, what=what)


def test_frozen_statistics_and_some_of_them():
    fused = module()
    x = map_of(fused)
    for norm in fused.short_conv[1::2]:
        norm.eval()
    assert_agree(fused, x, calls=2)
    assert "a gate of its layers in turn" in why(fused, x)
    fused.train().short_conv[3].eval()
    assert_agree(fused, x, calls=2)
    fused.eval().short_conv.train()
    assert_agree(fused, x, calls=2)
    fused.train().short_conv[1].momentum = None
    assert_agree(fused, x, calls=3)


def test_what_pytorch_refuses():
    fused = module()
    plain = plain_twin(fused)
    for side, error in (((1, 6), RuntimeError), ((0, 6), RuntimeError)):
        with pytest.raises(error) as theirs:
            plain(map_of(fused, side))
        with pytest.raises(error) as ours:
            fused(map_of(fused, side))
        assert str(ours.value) == str(theirs.value)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fused(map_of(fused, (2, 2))[:1])
    wrong = torch.randn(2, 5, 8, 8)
    with pytest.raises(RuntimeError, match="channels"):
        fused(wrong)


def test_stays_itself():
    source = randomise(HuaweiModule(6, 20)).train()
    state, x = source.state_dict(), make_map((2, 6, 8, 8))
    fused = fuse(source)
    assert isinstance(fused, HuaweiModule) and fused.state_dict().keys() == state.keys()
    expected = copy.deepcopy(fused)(x)
    buffer = io.BytesIO()
    torch.save(fused, buffer)
    buffer.seek(0)
    for again in (copy.deepcopy(fused), torch.load(buffer, weights_only=False)):
        assert why(again, x) == TRAINS and torch.equal(again(x), expected)
    assert type(revert(copy.deepcopy(fused))) is HuaweiModule
    assert [row.runs for row in explain(fused, x).rows] == [TRAINS]


@pytest.mark.parametrize(
    "path", ["short_conv", "short_conv.0", "short_conv.3", "short_conv.4", "gate_fn", "primary_conv.1"]
)
def test_hooks_run(path):
    fused, seen = module(), []
    x = map_of(fused)
    fused(x)
    plain = plain_twin(fused)
    hook = lambda m, i, out: seen.append(path) or out * 2
    handle = fused.get_submodule(path).register_forward_hook(hook)
    plain.get_submodule(path).register_forward_hook(hook)
    assert "hooks" in why(fused, x)
    assert torch.equal(fused(x), plain(x)) and len(seen) == 2
    handle.remove()
    assert why(fused, x) == TRAINS


def test_a_changed_attribute_is_seen():
    fused = module("a scale of 1")
    x = map_of(fused)
    fused(x)
    fused.scale = 2.0
    plain = plain_twin(fused)
    assert torch.equal(fused(x), plain(x)) and "scale" in why(fused, x)
    fused.scale, fused.inter_mode = 1.0, "nearest-exact"
    assert torch.equal(fused(x), plain_twin(fused)(x))


def test_functional_call_and_swapped_parameters():
    fused = module()
    x = map_of(fused)
    new = {name: torch.randn_like(p, requires_grad=True) for name, p in fused.named_parameters()}
    plain = plain_twin(fused)
    outs = [torch.func.functional_call(m, new, (x,)) for m in (fused, plain)]
    torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-5)
    grads = [torch.autograd.grad(out.square().mean(), list(new.values())) for out in outs]
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-5)
    fused.short_conv[2] = nn.Conv2d(20, 20, (1, 3), padding=(0, 1), groups=20, bias=False)
    assert_agree(fused, x)
    fused.short_conv[2] = nn.Conv2d(20, 20, (1, 4), padding=(0, 2), groups=20, bias=False)
    assert why(fused, x).startswith("plain")


def test_gradients_of_some():
    fused = module()
    x = map_of(fused)
    for name, p in fused.named_parameters():
        p.requires_grad_("short_conv" not in name)
    assert_agree(fused, x)
    for p in fused.parameters():
        p.requires_grad_(not p.requires_grad)
    assert_agree(fused, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    fused = module().to(dtype)
    x = map_of(fused).to(dtype)
    if dtype is torch.bfloat16:
        assert_agree(fused, x)
    else:
        assert torch.equal(fused(x), plain_twin(fused)(x))


def test_autocast():
    fused = module()
    x = map_of(fused)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = fused(x), plain_twin(fused)(x)
        assert why(fused, x) == TRAINS
    assert_as_accurate(ours, theirs, plain_twin(fused).double()(x.double()))


def test_double_backward_is_refused():
    fused = module()
    x = map_of(fused, requires_grad=True)
    (grad,) = torch.autograd.grad(fused(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("training", [True, False])
def test_compiles_as_one_graph(training):
    fused = module(training=training)
    x = map_of(fused)
    expected = run(copy.deepcopy(fused), x, True)
    compiled = run(torch.compile(fused, backend="aot_eager", fullgraph=True), x, True)
    for name in ("output", "gradient of the input"):
        torch.testing.assert_close(compiled[name], expected[name])


def test_another_gate_in_its_place_is_noticed():
    fused, x = module("functions", training=False), make_map((3, 7, 9, 11))
    before = fused(x)
    fused.gate_fn.shift = 2
    wanted = plain_twin(fused)(x)
    assert not torch.allclose(wanted, before)
    torch.testing.assert_close(fused(x), wanted)


# In a bottleneck


@pytest.mark.parametrize("memory", ["balanced", "low"])
@pytest.mark.parametrize("strided", [False, True])
def test_bottlenecks_of_timm(strided, memory):
    ghostnet = pytest.importorskip("timm.models.ghostnet")
    options = {"stride": 2, "se_ratio": 0.25} if strided else {}
    source = ghostnet.GhostBottleneck(6, 18, 10 if strided else 6, mode="attn", **options)
    fused = fuse(randomise(source).train(), memory=memory)
    assert block_of(fused).kind == "Ghost bottleneck" and block_of(fused.ghost1).kind == KIND
    x = make_map((3, 6, 9, 7))
    assert ("computed again" in why(fused, x)) == (memory == "low")
    assert_agree(fused, x, calls=2)
    for norm in fused.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    assert_agree(fused, x)
    assert_agree(fused.eval(), x)
    assert_agree(fused, x, backward=False)


def test_what_a_low_bottleneck_saves():
    ghostnet = pytest.importorskip("timm.models.ghostnet")
    fused = fuse(randomise(ghostnet.GhostBottleneck(6, 18, 6, mode="attn")).train(), memory="low")
    x, sizes = make_map((3, 6, 16, 16), requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.shape) or t, lambda t: t):
        out = fused(x)
    maps = [tuple(size) for size in sizes if len(size) == 4 and size[2:].numel() > 9]
    assert out.requires_grad and maps == [(3, 6, 16, 16)]


def test_a_frozen_net_of_them():
    fused = nn.Sequential(HuaweiModule(6, 12), HuaweiModule(12, 8))
    randomise(fused).eval()
    frozen, x = ghost_ops.freeze(fused), make_map((2, 6, 8, 8))
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), fused(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory", ["balanced", "low"])
def test_as_where_only_the_ghost_module_has_kernels(memory, monkeypatch):
    """As on a GPU: the gate is made by its layers, and PyTorch multiplies."""
    ghostnet = pytest.importorskip("timm.models.ghostnet")
    own = ("ghost_module_train_gated", "dfc_gate_train")

    def without(operator, *args):
        return plain("there is no such kernel") if operator in own else select(operator, *args)

    for module_with_it in (dfc_attention, ghost_module_train):
        monkeypatch.setattr(module_with_it, "select", without)
    fused = fuse(randomise(ghostnet.GhostBottleneck(6, 18, 6, mode="attn")).train(), memory=memory)
    x = make_map((3, 6, 9, 7))
    assert why(fused.ghost1, x) == "ghost_module_train on native, a gate of its layers in turn"
    assert_agree(fused, x, calls=2)
