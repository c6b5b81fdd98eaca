"""A fused module through what nets go through: copies, pickles, dtypes, checkpointing, compilation, wrapping."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import ghost_ops
from ghost_ops import fused as gfused
from ghost_ops import nn as gnn
from ghost_ops.backends import native
from ghost_ops.fused import FusedGhostModule, GhostParts
from ghost_ops.fused.behaviour import block_of, plain_forward
from ghost_ops.models import GhostNet
from ghost_ops.nn import GhostModule
from ghost_ops.surgery import revert

from .. import zoo
from ..helpers import LAYOUTS, make_map, randomise
from .twins import assert_agree, plain_twin, why

X = (2, 6, 5, 5)


class Foreign(nn.Module):
    """A Ghost module in the manner of YOLO's: other names, an attribute that the net reads, nothing cut."""

    class Conv(nn.Module):
        def __init__(self, c1, c2, k, groups):
            super().__init__()
            self.conv = nn.Conv2d(c1, c2, k, padding=k // 2, groups=groups, bias=False)
            self.bn = nn.BatchNorm2d(c2)
            self.act = nn.SiLU()

        def forward(self, x):
            return self.act(self.bn(self.conv(x)))

    def __init__(self):
        super().__init__()
        self.cv1, self.cv2, self.f = self.Conv(6, 6, 1, 1), self.Conv(6, 6, 5, 6), -1

    def forward(self, x):
        y = self.cv1(x)
        return torch.cat((y, self.cv2(y)), 1)


PARTS = GhostParts("cv1.conv", "cv1.bn", "cv1.act", "cv2.conv", "cv2.bn", "cv2.act")


def made(kind):
    """``strided``: PyTorch computes the primary convolution."""
    if kind == "wrapped":
        return randomise(FusedGhostModule.wrap(Foreign(), PARTS))
    more = {"kernel_size": 3, "stride": 2} if kind == "strided" else {}
    return randomise(FusedGhostModule(6, 12, **more))


KINDS = pytest.mark.parametrize("kind", ["constructed", "wrapped"])
COMPUTED = pytest.mark.parametrize("kind", ["constructed", "wrapped", "strided"])
COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save": lambda m: torch.load(io.BytesIO(_saved(m)), weights_only=False),
}


def _saved(module):
    torch.save(module, buffer := io.BytesIO())
    return buffer.getvalue()


@KINDS
@pytest.mark.parametrize("way", COPIES)
def test_copies_are_independent_and_stay_fused(kind, way):
    module, x = made(kind), make_map(X)
    module(x)
    twin = COPIES[way](module)
    assert {k: v.tolist() for k, v in twin.state_dict().items()} == {
        k: v.tolist() for k, v in module.state_dict().items()
    }
    assert not why(twin, x).startswith("plain")
    before = module(x)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    torch.testing.assert_close(module(x), before)
    assert not twin(x).any()
    assert_agree(randomise(twin.train()), x)
    path = block_of(twin).parts_of(twin).primary_conv
    handle = twin.get_submodule(path).register_forward_hook(lambda m, i, out: out + 1)
    assert why(twin, x).startswith("plain")
    handle.remove()
    assert not why(twin, x).startswith("plain")
    assert revert(twin) is twin and type(twin) is (GhostModule if kind == "constructed" else Foreign)
    assert set(vars(twin)) == set(vars(GhostModule(6, 12) if kind == "constructed" else Foreign()))


def test_a_wrapped_module_stays_the_object_that_it_was():
    source = randomise(Foreign())
    keys, children = list(source.state_dict()), dict(source.named_modules())
    calls = []
    source.register_forward_hook(lambda m, i, out: calls.append(m))
    x = make_map(X)
    wanted = source(x)
    fused = FusedGhostModule.wrap(source, PARTS)
    assert fused is source and isinstance(fused, Foreign) and isinstance(fused, FusedGhostModule)
    assert not isinstance(fused, GhostModule) and type(fused).__name__ == "FusedForeign"
    assert list(fused.state_dict()) == keys and fused.f == -1
    assert dict(fused.named_modules()) == children
    torch.testing.assert_close(fused(x), wanted)
    assert calls == [source, source]
    fused.eval()
    fused.f = 7
    fused.cv1 = nn.Identity()
    fused.register_forward_hook(lambda m, i, out: out * 0)
    assert why(fused, x).startswith("plain")
    assert revert(fused) is source and type(source) is Foreign
    assert not source.training and source.f == 7 and isinstance(source.cv1, nn.Identity)
    assert not source(x).any()


def test_unwrapping_a_constructed_module():
    fused, x = made("constructed").eval(), make_map(X)
    wanted, child = fused(x), fused.primary_conv
    plain = fused.unwrap()
    assert plain is fused and type(plain) is GhostModule and plain.primary_conv is child and not plain.training
    torch.testing.assert_close(plain(x), wanted)


def test_a_swapped_child_of_a_wrapped_module_is_seen():
    fused, x = made("wrapped").eval(), make_map(X)
    with torch.no_grad():
        fused(x)
        fused.cv2 = Foreign.Conv(6, 6, 5, 6).eval()
        assert torch.equal(plain_forward(fused, x)[:, 6:], fused.cv2(fused.cv1(x)))
        torch.testing.assert_close(fused(x), plain_forward(fused, x))


@pytest.mark.parametrize(
    "source, parts, error, message",
    [
        (Foreign(), GhostParts("cv1.convolution"), ValueError, "parts: expected paths inside a Foreign, got 'cv1.conv"),
        ("net", PARTS, TypeError, "source: expected a plain module, got str"),
        (FusedGhostModule(6, 12), PARTS, TypeError, "source: expected a plain module, got FusedGhostModule"),
        (Foreign(), ("cv1",), TypeError, "parts: expected GhostParts, got tuple"),
    ],
)
def test_bad_wraps(source, parts, error, message):
    with pytest.raises(error, match=message):
        FusedGhostModule.wrap(source, parts)


def test_bad_wrap_of_a_replaced_forward_and_of_a_gate():
    source = Foreign()
    source.forward = lambda x: x
    with pytest.raises(ValueError, match="forward"):
        FusedGhostModule.wrap(source, PARTS)
    parts = gfused.SqueezeExciteParts("fc.0", "fc.2", gate="tanh")
    with pytest.raises(ValueError, match=r"gate: expected one of clamp, .*, got 'tanh'"):
        gfused.FusedSELayer.wrap(gnn.SELayer(8), parts)


@KINDS
def test_state_dict_round_trips(kind):
    module, x = made(kind).eval(), make_map(X)
    with torch.no_grad():
        module(x)
    for assign in (False, True):
        other = randomise(made(kind), seed=9).eval()
        state = copy.deepcopy(other.state_dict())
        module.load_state_dict(state, strict=True, assign=assign)
        with torch.no_grad():
            torch.testing.assert_close(module(x), other(x))
    assert plain_twin(module).load_state_dict(module.state_dict(), strict=True)


@KINDS
def test_dtype_changes(kind):
    module = made(kind).eval()
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float32):
        module.to(dtype)
        x = make_map(X, dtype)
        if dtype != torch.bfloat16:
            assert_agree(module, x)
        assert_agree(module, x, backward=False)
        assert module(x).dtype == dtype
    module.to(memory_format=torch.channels_last)
    assert_agree(module, make_map(X, layout="channels_last"))


@COMPUTED
def test_train_and_eval_in_turn(kind):
    module, x = made(kind), make_map(X)
    for mode in (True, False, True, False):
        module.train(mode)
        assert_agree(module, x)
    assert revert(module).training is False


@COMPUTED
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_checkpointing(kind, use_reentrant, training):
    module = made(kind).train(training)
    plain, direct = plain_twin(module), plain_twin(module)
    results = []
    for m in (module, plain):
        x = make_map(X, requires_grad=True)
        out = checkpoint(m, x, use_reentrant=use_reentrant)
        out.square().sum().backward()
        results.append([out, x.grad, *(p.grad for p in m.parameters())])
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4)
    direct(make_map(X))
    for name, ours in module.named_buffers():  # updated once, as without checkpointing, or twice, as PyTorch does
        once, twice = direct.get_buffer(name), plain.get_buffer(name)
        assert torch.allclose(ours, once, rtol=1e-4) or torch.allclose(ours, twice, rtol=1e-4), name


@COMPUTED
@pytest.mark.parametrize("training", [True, False])
def test_functional_call(kind, training):
    module, x = made(kind).train(training), make_map(X)
    plain = plain_twin(module)
    swapped = {n: p.detach() * 0.5 + 0.1 for n, p in module.named_parameters()}
    assert not why(module, x).startswith("plain")
    with torch.no_grad():
        ours, eager = (torch.func.functional_call(m, swapped, (x,)) for m in (module, plain))
    torch.testing.assert_close(ours, eager)
    assert not torch.allclose(ours, module(x))


def test_exponential_moving_average_and_update_bn():
    net = nn.Sequential(made("constructed"), FusedGhostModule(12, 4))
    average = torch.optim.swa_utils.AveragedModel(net)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1)
    average.update_parameters(net)
    plain = copy.deepcopy(average)
    revert(plain)
    for m in (average, plain):
        torch.optim.swa_utils.update_bn([make_map(X, seed=s) for s in range(3)], m)
    for ours, eager in zip(average.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, eager)


@KINDS
def test_data_parallel_replicas_run_plain_with_their_own_children(kind):
    module, x = made(kind).eval(), make_map(X)
    module(x)
    replica = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        replica._modules[name] = randomise(copy.deepcopy(child), seed=5)
    expected = copy.deepcopy(module)
    for name in module._modules:
        expected._modules[name] = replica._modules[name]
    torch.testing.assert_close(plain_forward(replica, x), plain_forward(expected, x))
    torch.testing.assert_close(replica(x), expected(x))


def test_training_steps_follow_the_plain_module():
    module = made("constructed")
    plain = plain_twin(module)
    losses = []
    for m in (module, plain):
        optimiser = torch.optim.SGD(m.parameters(), 0.05, momentum=0.9)
        for _ in range(5):
            optimiser.zero_grad()
            loss = (m(make_map(X)) - 1).square().mean()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    assert losses[:5] == pytest.approx(losses[5:], rel=1e-4)
    assert losses[4] < losses[0]


def compiled_agrees(module, layout, shapes, dynamic=None, backward=True):
    torch._dynamo.reset()
    plain = plain_twin(module)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for seed, shape in enumerate(shapes):
        results = []
        for m, call in ((module, compiled), (plain, plain)):
            m.zero_grad()
            x = make_map(shape, layout=layout, seed=seed, requires_grad=backward)
            with torch.set_grad_enabled(backward):
                out = call(x)
            if backward:
                out.square().sum().backward()
            results.append([out.detach(), x.grad, *(p.grad for p in m.parameters()), *m.buffers()])
        for ours, eager in zip(*results, strict=True):
            torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4)
        assert results[0][0].is_contiguous(memory_format=LAYOUTS[layout]) or not native.available()


@KINDS
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("training", [True, False])
def test_compiles_as_one_graph(kind, layout, training):
    compiled_agrees(made(kind).train(training), layout, [X])


@pytest.mark.parametrize("kind", ["constructed", "strided"])
@pytest.mark.parametrize("training", [True, False])
def test_compiles_with_dynamic_shapes(training, kind):
    compiled_agrees(made(kind).train(training), "nchw", [X, (3, 6, 7, 4)], dynamic=True)


def test_compiles_without_gradients_and_by_inductor():
    module, x = made("wrapped").eval(), make_map(X)
    compiled_agrees(module, "channels_last", [X], backward=False)
    torch._dynamo.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(module, fullgraph=True)(x), module(x))


def test_a_compiled_module_notices_a_hook():
    torch._dynamo.reset()
    module, x = made("constructed").eval(), make_map(X)
    compiled = torch.compile(module, backend="aot_eager")
    with torch.no_grad():
        compiled(x)
        module.primary_conv[0].register_forward_hook(lambda m, i, out: out * 2)
        torch._dynamo.reset()  # as documented by PyTorch: hooks added after compilation need it
        torch.testing.assert_close(compiled(x), plain_twin(module)(x))


def test_export():
    module, x = made("constructed").eval().requires_grad_(False), make_map(X)
    program = torch.export.export(module, (x,))
    torch.testing.assert_close(program.module()(x), module(x))


def test_what_version_0_1_has_pickled_loads():
    """There a fused module stood in the place of another, ``_source``, and shared its dictionaries."""
    source, x = randomise(Foreign()).eval(), make_map(X)
    wanted = source(x)
    loaded = FusedGhostModule.__new__(FusedGhostModule)
    loaded.__setstate__({**vars(source), "_source": source, "_source_parts": PARTS})
    assert isinstance(loaded, Foreign) and isinstance(loaded, FusedGhostModule) and loaded.f == -1
    assert not why(loaded, x).startswith("plain")
    torch.testing.assert_close(loaded(x), wanted)
    assert type(revert(loaded)) is Foreign and set(vars(loaded)) == set(vars(Foreign()))
    built = made("constructed").eval()
    state = {name: value for name, value in vars(built).items() if name != "_ghost_ops"}
    loaded = FusedGhostModule.__new__(FusedGhostModule)
    loaded.__setstate__(state)
    torch.testing.assert_close(loaded(x), built(x))


FREED = {
    "bottleneck": lambda: zoo.ArticleBottleneck(3, 16, 8, 3, 2, True),
    "convolution layer": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
    "net": lambda: GhostNet(0.5, num_classes=3),
}


@pytest.mark.parametrize("name", FREED)
@pytest.mark.parametrize("make", [ghost_ops.fuse, lambda net: ghost_ops.freeze(net.eval())], ids=["fused", "frozen"])
def test_freed_without_the_garbage_collector(name, make):
    """What a module remembers does not hold it: else its memory, a GPU's too, would stay for some time after it."""
    net, x = make(FREED[name]()), torch.randn(2, 3, 32, 32)
    for trains in (True, False) if make is ghost_ops.fuse else (False,):
        net.train(trains)(x).sum()
    seen = [weakref.ref(module) for module in net.modules()]
    gc.collect()
    gc.disable()
    try:
        del net
        assert not any(ref() is not None for ref in seen)
    finally:
        gc.enable()
