"""FLOPs by PyTorch's counter: frozen and fused nets count what their source counts, and so does every operator."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import ghost_ops
from ghost_ops import functional
from ghost_ops import program as s
from ghost_ops.backends.registry import SCHEMAS
from ghost_ops.models import GhostNet
from ghost_ops.ops._library import overload
from ghost_ops.ops.flops import FORMULAS


def flops(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def of_operators(call) -> dict[str, int]:
    """The FLOPs of a call by operator; of ours only the names."""
    with FlopCounterMode(display=False) as counter:
        call()
    found = counter.get_flop_counts()["Global"]
    assert all("ghost_ops" in str(operator) for operator in found), f"counted twice: {found}"
    return {str(operator).removeprefix("ghost_ops."): count for operator, count in found.items()}


def r(*shape):
    return torch.randn(shape, requires_grad=True)


def weights():
    """x, primary and cheap weight: 6 to 5 channels, of which 10 more are made."""
    return r(2, 6, 5, 7), r(5, 6, 1, 1), r(10, 1, 3, 3)


def plain_module(x, w1, w2):
    y = F.conv2d(x, w1)
    return torch.cat([y, F.conv2d(y, w2, padding=1, groups=5)], 1)


PRIMARY, CHEAP = 2 * 2 * 35 * 5 * 6, 2 * 2 * 35 * 10 * 9  # two for each multiply-add, two images of 35 pixels


def test_every_operator_has_a_formula():
    assert set(FORMULAS) == set(SCHEMAS)
    counted = torch.utils.flop_counter.flop_registry
    assert all(
        getattr(torch.ops.ghost_ops, f"{name}{twin}") in counted for name in SCHEMAS for twin in ("", "_reference")
    )


@pytest.mark.parametrize("width", [0.5, 1.0])
def test_a_frozen_net_counts_what_its_source_counts(width):
    net = GhostNet(width, num_classes=10).eval()
    frozen = ghost_ops.freeze(net)
    x = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        expected = flops(lambda: net(x))
        assert expected > 1e6
        assert of_operators(lambda: frozen(x)) == {"program": expected}
        assert of_operators(lambda: frozen.to(torch.bfloat16)(x.bfloat16())) == {"program": expected}


def test_exported_and_compiled_frozen_nets():
    net = GhostNet(0.5, num_classes=10).eval()
    x = torch.randn(2, 3, 64, 64)
    frozen = ghost_ops.freeze(net)
    with torch.no_grad():
        expected = flops(lambda: net(x))
        exported = torch.export.export(frozen, (x,)).module()
        assert of_operators(lambda: exported(x)) == {"program": expected}
        compiled = torch.compile(frozen)
        compiled(x)
        with pytest.warns(UserWarning, match="global hooks"):  # those of the counter
            assert of_operators(lambda: compiled(x)) == {"program": expected}


@pytest.mark.parametrize("training", [False, True])
def test_a_fused_net_runs_plainly_under_the_counter(training):
    """Its global hooks are those that fused modules honour by calling their children."""
    net = GhostNet(0.5, num_classes=10, dropout=0.0).train(training)
    fused = ghost_ops.fuse(copy.deepcopy(net))
    x = torch.randn(2, 3, 64, 64)

    def step(net):
        return net(x).sum().backward() if training else net(x)

    assert flops(lambda: step(fused)) == flops(lambda: step(net)) > 1e6
    with FlopCounterMode(display=False) as counter:
        fused(x)
    assert not any("ghost_ops" in str(operator) for operator in counter.get_flop_counts()["Global"])


def test_by_module():
    """The counter's table has a frozen net beside other modules."""
    net = nn.Sequential(nn.Conv2d(3, 3, 1), ghost_ops.freeze(GhostNet(0.5, num_classes=10).eval()))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.randn(1, 3, 32, 32))
    counts = counter.get_flop_counts()
    assert sum(counts["Sequential.0"].values()) == 2 * 9 * 32 * 32
    assert sum(counts["Sequential.0"].values()) + sum(counts["Sequential.1"].values()) == counter.get_total_flops()


def test_ghost_module():
    x, w1, w2 = weights()
    run = lambda **more: functional.ghost_module(x, w1, None, w2, None, out_channels=13, **more)
    assert of_operators(run) == {"ghost_module": PRIMARY + CHEAP}
    assert of_operators(lambda: run(return_squeeze=True, residual=r(2, 13, 5, 7))) == {"ghost_module": PRIMARY + CHEAP}
    assert flops(lambda: plain_module(x, w1, w2)) == PRIMARY + CHEAP
    assert of_operators(lambda: functional.ghost_module(x, w1, None, None, None)) == {"ghost_module": PRIMARY}
    out, expected = run(), flops(lambda: plain_module(x, w1, w2).sum().backward()) - PRIMARY - CHEAP
    assert of_operators(lambda: out.sum().backward()) == {"ghost_module_backward": expected}


def test_ghost_module_of_one_ratio_backward():
    x, w1, _ = weights()
    out = functional.ghost_module(x, w1, None, None, None)
    assert of_operators(lambda: out.sum().backward()) == {"ghost_module_backward": 2 * PRIMARY}


def test_ghost_module_in_training_and_inference():
    x, w1, w2 = weights()
    out = functional.ghost_module_train(x, w1, None, None, None, w2, None, None, None).out
    expected = flops(lambda: plain_module(x, w1, w2).sum().backward()) - PRIMARY - CHEAP
    assert of_operators(lambda: out.sum().backward()) == {"ghost_module_train_backward": expected}
    run = lambda: functional.ghost_module_train(x, w1, None, None, None, w2, None, None, None)
    assert of_operators(run) == {"ghost_module_train": PRIMARY + CHEAP}
    mean1, mean2 = torch.zeros(5), torch.zeros(10)
    run = lambda: functional.ghost_module_eval(
        x, w1, None, None, None, mean1, mean1 + 1, w2, None, None, None, mean2, mean2 + 1
    )
    assert of_operators(run) == {"ghost_module_eval": PRIMARY + CHEAP}
    with ghost_ops.use_backend("reference"):
        assert flops(run) == PRIMARY + CHEAP


def test_cheap_concat():
    z, w = r(2, 5, 5, 7), r(10, 1, 3, 3)
    out = functional.cheap_concat(z, w, None, out_channels=12)
    assert of_operators(lambda: functional.cheap_concat(z, w, None, out_channels=12)) == {"cheap_concat": CHEAP}
    expected = flops(lambda: F.conv2d(z, w, padding=1, groups=5).sum().backward()) - CHEAP
    assert of_operators(lambda: out.sum().backward()) == {"cheap_concat_backward": expected}
    running = lambda: functional.cheap_concat_eval(z, *(None,) * 5, w, *(None,) * 5, out_channels=12)
    assert of_operators(running) == {"cheap_concat_eval": CHEAP}
    train = lambda: functional.cheap_concat_train(z, None, None, None, w, None, None, None).out
    assert of_operators(train) == {"cheap_concat_train": CHEAP}
    out = train()
    assert of_operators(lambda: out.sum().backward()) == {"cheap_concat_train_backward": expected}


@pytest.mark.parametrize("conv", [False, True])
def test_squeeze_excite(conv):
    x, w3, w4 = r(2, 6, 5, 7), r(3, 6), r(6, 3)
    if conv:
        w3, w4 = (w.detach()[:, :, None, None].requires_grad_() for w in (w3, w4))
    once = 2 * 2 * 2 * 6 * 3
    out = functional.squeeze_excite(x, w3, None, w4, None)
    assert of_operators(lambda: functional.squeeze_excite(x, w3, None, w4, None)) == {"squeeze_excite": once}
    assert of_operators(lambda: out.sum().backward()) == {"squeeze_excite_backward": 2 * once}
    assert of_operators(lambda: functional.excite(x.mean((2, 3)), w3, None, w4, None)) == {"excite": once}

    def plain():
        squeeze = x.mean((2, 3), keepdim=conv)
        apply = F.conv2d if conv else F.linear
        return x * apply(apply(squeeze, w3).relu(), w4).sigmoid().reshape(2, 6, 1, 1)

    assert flops(plain) == once and flops(lambda: plain().sum().backward()) == 3 * once


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_depthwise(stride):
    x, w = r(2, 6, 5, 7), r(6, 1, 5, 5)
    plain = lambda: F.conv2d(x, w, None, stride, 2, groups=6)
    step = lambda call: call().sum().backward()
    out, once = functional.depthwise(x, w, stride=stride), flops(plain)
    assert once == 2 * out.numel() * 25
    assert of_operators(lambda: functional.depthwise(x, w, stride=stride)) == {"depthwise": once}
    assert of_operators(lambda: out.sum().backward()) == {"depthwise_backward": flops(lambda: step(plain)) - once}
    for leaf in (x, w):  # only one of the gradients
        leaf.requires_grad_(False)
        out = functional.depthwise(x, w, stride=stride)
        assert of_operators(lambda out=out: out.sum().backward()) == {
            "depthwise_backward": flops(lambda: step(plain)) - once
        }
        leaf.requires_grad_()


def test_by_name():
    x, _, _ = weights()
    run = lambda: torch.ops.ghost_ops.depthwise(x=x, weight=r(6, 1, 3, 3), bias=None, stride=1)
    assert of_operators(run) == {"depthwise": 2 * x.numel() * 9}


def test_programs():
    """Convolution, Ghost module, depthwise, excitation, 1x1 convolution, pooling, linear layer; and a map as result."""
    none = s.Layer()
    steps = [
        s.Conv(-1, 0, -1, False, False, 3, 8, (3, 3), (2, 2), (1, 1), (1, 1), 1, none),
        s.Ghost(0, 1, -1, False, False, 8, 5, 10, 13, 5, none, none),
        s.Depthwise.same(1, 0, True, 13, 3, 2, none),
        s.Excite(13, 4, 1, none, none),
        s.Ghost(0, 1, -1, True, True, 13, 6, 0, 6, 1, none, None),
        s.Pool(6),
        s.Linear(6, 7, none),
    ]
    code = s.encode(steps, 2)
    shapes = [shape for step in steps for _, shape in step.layers()]
    parameters = [torch.randn(shape) for shape in shapes]
    x = torch.randn(2, 3, 9, 12)

    def plain():
        w = iter(parameters)
        y = F.conv2d(x, next(w), stride=2, padding=1)
        y = F.conv2d(y, next(w))
        y = torch.cat([y, F.conv2d(y, next(w), padding=2, groups=5)], 1)[:, :13]
        y = F.conv2d(y, next(w), stride=2, padding=1, groups=13)
        F.conv2d(F.conv2d(y.mean((2, 3), True), next(w)), next(w))
        return F.linear(F.conv2d(y, next(w)).mean((2, 3)), next(w).flatten(1))

    expected = flops(plain)
    packed = overload("program_pack")(parameters, code)
    assert of_operators(lambda: overload("program_pack")(parameters, code)) == {"program_pack": 0}
    assert of_operators(lambda: overload("program")(x, packed, code)) == {"program": expected}
    assert of_operators(lambda: overload("program_eval")(x, parameters, code)) == {"program_eval": expected}
    assert of_operators(lambda: overload("program_reference")(x, packed, code)) == {"program_reference": expected}
    code = s.encode([*steps[:2], s.Store(1)], 2)
    found = of_operators(lambda: overload("program_eval")(x, parameters[:3], code))
    assert found == {"program_eval": 2 * 2 * 5 * 6 * (8 * 3 * 9 + 8 * 5 + 10 * 25)}


ORDERS = {
    "counter after": "import ghost_ops, sys; assert 'torch.utils.flop_counter' not in sys.modules",
    "counter before": "import torch.utils.flop_counter, ghost_ops, sys",
}
COUNT = """
import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry
assert not any(type(finder).__module__ == 'ghost_ops.ops.flops' for finder in sys.meta_path)
with FlopCounterMode(display=False) as counter:
    ghost_ops.functional.depthwise(torch.randn(1, 2, 3, 4), torch.randn(2, 1, 3, 3))
assert counter.get_total_flops() == 2 * 24 * 9
"""


@pytest.mark.parametrize("order", ORDERS)
def test_in_either_order_of_imports(order):
    """Importing the library does not import the counter."""
    subprocess.run([sys.executable, "-c", ORDERS[order] + COUNT], check=True)
