"""What acts when a child is called must act in a fused module too: hooks, parametrisations, swaps, transforms."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from ghost_ops import fused as gfused
from ghost_ops.fused import FusedGhostBottleneck, FusedGhostModule

from ..helpers import make_map, randomise
from .twins import assert_agree, plain_twin, why

X = (2, 6, 5, 5)
CHILDREN = ["primary_conv", "primary_conv.0", "primary_conv.1", "primary_conv.2", "cheap_operation",
            "cheap_operation.0", "cheap_operation.1", "cheap_operation.2"]  # fmt: skip


def ghost(training=False, **arguments):
    return randomise(FusedGhostModule(6, 12, **arguments)).train(training)


def warm(module):
    """Fused calls, so that a cached plan is there to become stale."""
    assert not why(module, make_map(X)).startswith("plain"), why(module, make_map(X))
    with torch.no_grad():
        module(make_map(X))
    return module


@pytest.mark.parametrize("training, kernel", [(True, 1), (False, 1), (True, 3)])
@pytest.mark.parametrize("path", CHILDREN)
def test_hooks_that_change_the_result(path, training, kernel):
    module, x = warm(ghost(training, kernel_size=kernel)), make_map(X)
    plain = plain_twin(module)
    child = module.get_submodule(path)
    handle = child.register_forward_hook(lambda m, i, out: out * 2 + 1)
    plain.get_submodule(path).register_forward_hook(lambda m, i, out: out * 2 + 1)
    assert "hooks" in why(module, x) and path in why(module, x)
    assert torch.equal(module(x), plain(x))
    handle.remove()
    assert not why(module, x).startswith("plain")
    pre = child.register_forward_pre_hook(lambda m, i: (i[0] - 1,))
    assert "hooks" in why(module, x)
    pre.remove()
    seen = []
    for half in (module.primary_conv, module.cheap_operation):
        half[2].inplace = False  # which PyTorch does not allow beside backward hooks
    for register in (child.register_full_backward_hook, child.register_full_backward_pre_hook):
        handle = register(lambda *args: seen.append(1))
        module(make_map(X, requires_grad=True)).sum().backward()
        handle.remove()
    assert len(seen) == 2


def test_hooks_on_the_module_itself_run_and_it_stays_fused():
    module, x = ghost(), make_map(X)
    expected = module(x)
    module.register_forward_pre_hook(lambda m, i: (i[0] * 1,))
    module.register_forward_hook(lambda m, i, out: out + 1)
    assert not why(module, x).startswith("plain")
    assert torch.equal(module(x), expected + 1)


def test_global_hooks():
    module, x, seen = ghost(), make_map(X), []
    handle = nn.modules.module.register_module_forward_hook(lambda m, i, out: seen.append(type(m)))
    try:
        module(x)
        assert "global" in why(module, x)
    finally:
        handle.remove()
    assert seen.count(nn.Conv2d) == 2
    assert not why(module, x).startswith("plain")


CHANGES = {
    "weight_norm": lambda m: parametrizations.weight_norm(m.primary_conv[0]),
    "old weight_norm": lambda m: nn.utils.weight_norm(m.cheap_operation[0]),
    "spectral_norm": lambda m: parametrizations.spectral_norm(m.primary_conv[0]),
    "pruning": lambda m: prune.l1_unstructured(m.primary_conv[0], "weight", 0.5),
    "parametrised BatchNorm": lambda m: nn.utils.parametrize.register_parametrization(
        m.primary_conv[1], "weight", nn.Softplus()
    ),
    "unknown activation": lambda m: m.primary_conv.__setitem__(2, nn.Softplus()),
    "unknown norm": lambda m: m.cheap_operation.__setitem__(1, nn.InstanceNorm2d(6, affine=True)),
    "container swapped": lambda m: setattr(m, "primary_conv", nn.Sequential(nn.Conv2d(6, 6, 1), nn.Tanh())),
    "container extended": lambda m: m.cheap_operation.append(nn.Tanh()),
    "container of another class": lambda m: setattr(m, "cheap_operation", nn.Conv2d(6, 6, 3, padding=1)),
    "forward replaced": lambda m: setattr(m.primary_conv[0], "forward", lambda x: torch.cat([x] * 1, 1) * 2),
    "padding mode": lambda m: m.cheap_operation.__setitem__(
        0, nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect", groups=6)
    ),
    "cheap convolution not depthwise": lambda m: m.cheap_operation.__setitem__(0, nn.Conv2d(6, 6, 3, padding=1)),
    "cheap convolution dilated": lambda m: setattr(m.cheap_operation[0], "dilation", (2, 2))
    or setattr(m.cheap_operation[0], "padding", (2, 2)),
    "subclass": lambda m: setattr(
        m.primary_conv[0], "__class__", type("Doubled", (nn.Conv2d,), {"forward": lambda s, x: x * 2})
    ),
    "buffer as parameter": lambda m: m.primary_conv[0]._parameters.pop("weight")
    is None or setattr(m.primary_conv[0], "weight", torch.ones(6, 6, 1, 1)),
    "BatchNorm weight as attribute": lambda m: m.primary_conv[1]._parameters.pop("weight")
    is None or setattr(m.primary_conv[1], "weight", torch.full((6,), 3.0)),
    "one BatchNorm frozen": lambda m: m.primary_conv[1].train(not m.training),
    "one running statistic": lambda m: m.primary_conv[1].eval() and setattr(m.primary_conv[1], "running_var", None),
}  # fmt: skip


@pytest.mark.parametrize("training, kernel", [(True, 1), (False, 1), (True, 3)])
@pytest.mark.parametrize("name", CHANGES)
def test_changes_inside_run_as_plain_modules_do(name, training, kernel):
    module, x = warm(ghost(training, kernel_size=kernel)), make_map(X)
    plain = plain_twin(module)
    for m in (module, plain):
        torch.manual_seed(3)
        CHANGES[name](m)
    reason = why(module, x)
    assert reason.startswith("plain PyTorch: ") and len(reason) > 30, reason
    if name == "one running statistic":
        for m in (module, plain):
            with pytest.raises(RuntimeError):
                m(x)
        return
    for _ in range(2):
        assert torch.equal(module(x), plain(x))
    with torch.no_grad():
        assert torch.equal(module(x), plain(x))


def test_changes_that_stay_fused_take_effect():
    module, x = warm(ghost()), make_map(X)
    changes = [
        lambda m: setattr(m.primary_conv[1], "eps", 0.5),
        lambda m: m.primary_conv.__setitem__(2, nn.LeakyReLU(0.3)),
        lambda m: setattr(m.primary_conv[2], "negative_slope", 0.7),
        lambda m: setattr(m.primary_conv[0], "weight", nn.Parameter(torch.ones(6, 6, 1, 1))),
        lambda m: m.cheap_operation[0].weight.data.mul_(2),
        lambda m: m.primary_conv.__setitem__(0, randomise(nn.Conv2d(6, 6, 1), 5)),
        lambda m: setattr(m.primary_conv[0], "stride", (2, 2)),
        lambda m: m.cheap_operation.__setitem__(2, nn.Identity()),
    ]
    with torch.no_grad():
        for change in changes:
            before = module(x)
            change(module)
            assert not why(module, x).startswith("plain")
            assert_agree(module, x, backward=False)
            assert before.shape != module(x).shape or not torch.equal(before, module(x))


def test_changes_inside_a_block_take_effect():
    block, x = randomise(FusedGhostBottleneck(6, 10, 6, se_ratio=0.25)).eval(), make_map(X)
    changes = [
        lambda b: setattr(b.ghost1.primary_conv[1], "eps", 0.5),
        lambda b: b.ghost1.cheap_operation.__setitem__(2, nn.LeakyReLU(0.3)),
        lambda b: setattr(b.ghost1.cheap_operation[2], "negative_slope", 0.7),
        lambda b: b.ghost2.cheap_operation[0].weight.data.mul_(2),
    ]
    with torch.no_grad():
        for change in changes:
            before = block(x)
            change(block)
            assert why(block, x).startswith("as one block")
            assert_agree(block, x, backward=False)
            assert not torch.equal(before, block(x))


def test_sync_batch_norm():
    module = nn.SyncBatchNorm.convert_sync_batchnorm(ghost())
    assert why(module, make_map(X)).startswith("ghost_module")
    assert_agree(module, make_map(X))
    assert "SyncBatchNorm" in why(module.train(), make_map(X))


def test_tensor_subclasses_and_transforms_run_plain():
    module = ghost().requires_grad_(False)
    plain, x = plain_twin(module), make_map(X)

    class Tagged(torch.Tensor):
        pass

    assert type(module(x.as_subclass(Tagged))) is Tagged
    batch = torch.stack([x, x + 1])
    torch.testing.assert_close(torch.vmap(module)(batch), torch.vmap(plain)(batch))
    ours, eager = (torch.func.jvp(m, (x,), (torch.ones_like(x),)) for m in (module, plain))
    torch.testing.assert_close(ours, eager)
    ours, eager = (torch.func.grad(lambda v, m=m: m(v).square().sum())(x) for m in (module, plain))
    torch.testing.assert_close(ours, eager)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        tangents = [torch.autograd.forward_ad.unpack_dual(m(dual)).tangent for m in (module, plain)]
    torch.testing.assert_close(*tangents)


def test_per_sample_gradients():
    module = ghost()
    plain, x = plain_twin(module), make_map(X)

    def gradients(m):
        state = {n: p.detach() for n, p in m.named_parameters()}

        def loss(parameters, sample):
            return torch.func.functional_call(m, parameters, (sample[None],)).square().sum()

        return torch.func.vmap(torch.func.grad(loss), (None, 0))(state, x)

    ours, eager = gradients(module), gradients(plain)
    for name in ours:
        torch.testing.assert_close(ours[name], eager[name])


def test_jit_trace():
    module, x = ghost().requires_grad_(False), make_map(X)
    traced = torch.jit.trace(module, x)
    assert "ghost_ops::" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x), module(x))


@pytest.mark.parametrize("kind", [gfused.FusedSELayer, gfused.FusedSqueezeExcite])
def test_squeeze_excite_honours_hooks_and_parametrisations(kind):
    module, x = randomise(kind(8)), make_map((2, 8, 5, 5))
    first = "fc.0" if kind is gfused.FusedSELayer else "conv_reduce"
    assert why(module, x).startswith("squeeze_excite on")
    for change in (
        lambda m: m.get_submodule(first).register_forward_hook(lambda m, i, out: out * 3),
        lambda m: parametrizations.weight_norm(m.get_submodule(first)),
    ):
        ours, plain = copy.deepcopy(module), plain_twin(module)
        change(ours), change(plain)
        assert why(ours, x).startswith("plain PyTorch")
        assert torch.equal(ours(x), plain(x))
