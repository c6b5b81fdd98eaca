"""``memory="low"`` as an ordinary autograd function: hooks, functional calls and replaced weights see what PyTorch's
see."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from ghost_ops import use_backend
from ghost_ops.fused import FusedGhostBottleneck

from ..helpers import randomise
from .test_bottleneck import ALL, map_for
from .test_recompute import AGAIN, BLOCKS, low
from .twins import plain_twin, why

MODES = pytest.mark.parametrize("mode", ["train", "frozen norms"])


def pair(name, mode):
    """A block that computes again, its plain twin, and inputs for both."""
    block = low(name)
    if mode == "frozen norms":
        for module in block.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    x = map_for(name)
    assert why(block, x).startswith(AGAIN)
    return (block, x.clone().requires_grad_()), (plain_twin(block), x.clone().requires_grad_())


def loss_of(out):
    weights = torch.linspace(0.5, 1.5, out.numel()).view_as(out)
    return (out * weights).sum()


def assert_same(ours, theirs):
    """Equal up to the rounding of float32 sums in another order.

    A shift before a BatchNorm over batch statistics has a gradient that is rounding only, of the size of the others.
    """
    assert ours.keys() == theirs.keys()
    largest = max(float(value.abs().max()) for value in theirs.values() if value is not None)
    for name, value in ours.items():
        if theirs[name] is None:
            assert value is None, name
            continue
        assert value is not None, name
        scale = max(float(theirs[name].abs().max()), 1e-3 * largest)
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-4 * scale, msg=name)


def gradients(module, x):
    return {"x": x.grad, **{name: p.grad for name, p in module.named_parameters()}}


@ALL
@MODES
def test_hooks_on_parameters_run_once_with_the_true_gradient(name, mode):
    found = []
    for module, x in pair(name, mode):
        calls = {}

        def halve(g, key, calls=calls):
            calls.setdefault(key, []).append(g.clone())
            return g * 0.5

        for key, p in module.named_parameters():
            p.register_hook(lambda g, key=key, halve=halve: halve(g, key))
        accumulated = []
        for p in module.parameters():
            p.register_post_accumulate_grad_hook(lambda p, accumulated=accumulated: accumulated.append(p))
        loss_of(module(x)).backward()
        assert all(len(seen) == 1 for seen in calls.values()) and calls
        assert len(accumulated) == len(calls)
        found.append((gradients(module, x), {key: seen[0] for key, seen in calls.items()}))
    assert_same(found[0][0], found[1][0])
    assert_same(found[0][1], found[1][1])


def test_multi_grad_hooks_run_once():
    for module, x in pair("stride 2, SE", "train"):
        calls = []
        torch.autograd.graph.register_multi_grad_hook(tuple(module.parameters()), calls.append)
        loss_of(module(x)).backward()
        assert len(calls) == 1 and all(g is not None for g in calls[0])


@MODES
def test_parameters_frozen_between_forward_and_backward(mode):
    found = []
    for module, x in pair("stride 2, SE", mode):
        loss = loss_of(module(x))
        frozen = [p for name, p in module.named_parameters() if name.startswith(("ghost1", "shortcut"))]
        for p in frozen:
            p.requires_grad_(False)
        loss.backward()
        assert all(p.grad is None for p in frozen)
        found.append(gradients(module, x))
    assert_same(*found)


def test_toggled_optimizers_of_a_gan():
    """Lightning's toggle_optimizer: everything is frozen after the forward, and thawed after the backward."""
    found = []
    for module, x in pair("SE", "train"):
        loss = loss_of(module(x))
        module.requires_grad_(False)
        loss.backward()
        module.requires_grad_(True)
        found.append(gradients(module, x))
    assert found[0]["x"] is not None
    assert_same(*found)


@ALL
@MODES
def test_functional_call(name, mode):
    found = []
    for module, x in pair(name, mode):
        generator = torch.Generator().manual_seed(3)
        weights = {
            key: (p.detach() * 0.8 + 0.05 * torch.randn(p.shape, generator=generator)).requires_grad_()
            for key, p in module.named_parameters()
        }
        loss_of(functional_call(module, weights, (x,))).backward()
        assert all(p.grad is None for p in module.parameters())
        found.append({"x": x.grad, **{key: w.grad for key, w in weights.items()}})
    assert all(g is not None for g in found[0].values())
    assert_same(*found)


def test_parameters_that_another_net_has_computed():
    found = []
    for module, x in pair("SE", "train"):
        scale = torch.full((1,), 0.7, requires_grad=True)
        weights = {key: p.detach() * scale for key, p in module.named_parameters()}
        loss_of(functional_call(module, weights, (x,))).backward()
        found.append({"scale": scale.grad, "x": x.grad})
    assert found[0]["scale"] is not None
    assert_same(*found)


def test_meta_learning():
    """An inner step of gradient descent, whose result is used once more."""
    found = []
    for module, x in pair("SE", "frozen norms"):
        weights = {key: p.detach().clone().requires_grad_() for key, p in module.named_parameters()}
        inner = loss_of(functional_call(module, weights, (x,)))
        grads = torch.autograd.grad(inner, list(weights.values()))
        stepped = {key: w - 1e-3 * g for (key, w), g in zip(weights.items(), grads, strict=True)}
        loss_of(functional_call(module, stepped, (x,))).backward()
        found.append({key: w.grad for key, w in weights.items()})
    assert_same(*found)


@MODES
def test_weights_replaced_before_the_backward(mode):
    found = []
    for module, x in pair("stride 2, SE", mode):
        first = dict(module.named_parameters())
        loss = loss_of(module(x))
        state = {key: t * 0.5 for key, t in module.state_dict().items()}
        module.load_state_dict(state, assign=True)
        loss.backward()
        assert all(p.grad is None for p in module.parameters())
        found.append({"x": x.grad, **{key: p.grad for key, p in first.items()}})
    assert found[0]["ghost1.primary_conv.0.weight"] is not None
    assert_same(*found)


def test_new_running_statistics_before_the_backward():
    found = []
    for module, x in pair("stride 2, SE", "frozen norms"):
        loss = loss_of(module(x))
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean = norm.running_mean + 1
                norm.running_var = norm.running_var * 4
        loss.backward()
        found.append(gradients(module, x))
    assert_same(*found)


def test_running_statistics_written_in_place_are_pytorchs_error():
    for module, x in pair("stride 2, SE", "frozen norms"):
        loss = loss_of(module(x))
        with torch.no_grad():
            for norm in module.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    norm.running_var.mul_(4)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_constants_changed_before_the_backward():
    found = []
    for module, x in pair("stride 2, SE", "train"):
        loss = loss_of(module(x))
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.eps = 0.5
        loss.backward()
        found.append(gradients(module, x))
    assert_same(*found)


AROUND = {
    "reference backend": lambda module: use_backend("reference"),
    "FLOP counter": lambda module: FlopCounterMode(display=False),
}


@pytest.mark.parametrize("name", AROUND)
@MODES
def test_active_around_the_backward_only(name, mode):
    found = []
    for module, x in pair("stride 2, SE", mode):
        loss = loss_of(module(x))
        with AROUND[name](module):
            loss.backward()
        found.append(gradients(module, x))
    assert_same(*found)


def test_a_hook_on_a_child_around_the_backward_only():
    found = []
    for module, x in pair("stride 2, SE", "train"):
        loss = loss_of(module(x))
        handle = module.ghost1.primary_conv[0].register_forward_hook(lambda m, i, out: out * 2)
        loss.backward()
        handle.remove()
        found.append(gradients(module, x))
    assert_same(*found)


def test_two_forwards_before_the_backward():
    found = []
    for module, x in pair("stride 2, SE", "train"):
        (loss_of(module(x)) + loss_of(module(x * 0.5))).backward()
        found.append(gradients(module, x))
    assert_same(*found)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_gives_every_parameter_its_gradient(use_reentrant):
    found = []
    for module, x in pair("stride 2, SE", "train"):
        out = torch.utils.checkpoint.checkpoint(module, x, use_reentrant=use_reentrant)
        loss_of(out).backward()
        found.append(gradients(module, x))
    assert all(g is not None for g in found[0].values())
    assert_same(*found)


def test_shared_parameters_add_up():
    found = []
    for module, x in pair("SE", "train"):
        shared = module.ghost1.primary_conv[1]
        module.ghost1.cheap_operation[1].weight = shared.weight
        loss_of(module(x)).backward()
        found.append(gradients(module, x))
    assert_same(*found)


def test_an_input_that_is_a_view_and_one_without_gradient():
    for grad in (True, False):
        found = []
        for module, x in pair("SE", "train"):
            base = torch.cat([x.detach(), x.detach()]).requires_grad_(grad)
            loss_of(module(base[: x.shape[0]])).backward()
            found.append({**gradients(module, x), "x": base.grad})
        assert_same(*found)


def test_a_copy_counts_for_itself():
    block = low("SE")
    twin = copy.deepcopy(block)
    assert twin.memory == "low" and randomise(FusedGhostBottleneck(**BLOCKS["SE"])).memory == "balanced"
    x = map_for("SE")
    loss_of(twin(x)).backward()
    assert all(p.grad is None for p in block.parameters())
    assert all(p.grad is not None for p in twin.parameters())
