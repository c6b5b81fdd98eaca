"""Squeeze-and-excite layers, plain and fused."""

import copy

import pytest
import torch
from torch import nn

from ghost_ops import fuse
from ghost_ops import fused as gfused
from ghost_ops.activations import GATES, apply_gate
from ghost_ops.fused.behaviour import block_of
from ghost_ops.fused.squeeze_excite import SqueezeExciteBlock
from ghost_ops.nn.squeeze_excite import make_divisible

from ..helpers import assert_as_accurate, make_map, randomise
from .twins import assert_agree, plain_twin, why

KINDS = pytest.mark.parametrize("kind", [gfused.FusedSELayer, gfused.FusedSqueezeExcite])


class Foreign(nn.Module):
    def __init__(self, gate, act=nn.SiLU, bias=False):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down, self.act, self.up = nn.Conv2d(8, 3, 1, bias=bias), act(), nn.Conv2d(3, 8, 1, bias=bias)
        self.gate = gate

    def forward(self, x):
        return x * apply_gate(self.up(self.act(self.down(self.pool(x)))), GATES.index(self.gate))


@KINDS
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("shape", [(2, 8, 5, 7), (1, 8, 1, 1), (3, 8, 14, 14)])
def test_agrees(kind, layout, shape):
    module, x = randomise(kind(8)), make_map(shape, layout=layout)
    assert_agree(module, x)
    assert_agree(module, x, backward=False)
    assert why(module, x).startswith("squeeze_excite on")
    with torch.no_grad():
        assert "PyTorch's own operators are as fast" in why(module, x)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("act", [nn.SiLU, nn.ReLU6, nn.Hardswish, nn.Identity])
@pytest.mark.parametrize("gate", GATES)
def test_agrees_wrapped(gate, act, bias):
    parts = gfused.SqueezeExciteParts("down", "up", "act", gate=gate, others=("pool",))
    module = gfused.FusedSELayer.wrap(randomise(Foreign(gate, act, bias)), parts)
    x = make_map((2, 8, 5, 7))
    assert_agree(module, x)
    assert not why(module, x).startswith("plain")
    module.pool.register_forward_hook(lambda m, i, out: out * 2)
    assert why(module, x).startswith("plain")
    assert_agree(module, x)


@KINDS
def test_bfloat16_and_autocast(kind):
    module = randomise(kind(8))
    x = make_map((2, 8, 9, 9))
    exact = plain_twin(module).double()(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        x16 = x.bfloat16()
        assert_as_accurate(module(x16), plain_twin(module)(x16), exact, ulps=3)
    assert_agree(module.bfloat16(), x.bfloat16(), backward=False)


@KINDS
def test_wrong_inputs_raise_as_the_plain_module(kind):
    module = kind(8)
    for x in (torch.randn(2, 4, 5, 5), torch.randn(2, 8, 5, 5).double(), torch.randn(2, 8, 5, 5).bfloat16()):
        for m in (plain_twin(module), module):
            with pytest.raises(RuntimeError):
                m(x)


@KINDS
def test_copies_and_keys(kind):
    module, x = randomise(kind(8)), make_map((2, 8, 5, 5))
    module(x)
    twin = copy.deepcopy(module)
    assert torch.equal(twin(x), module(x))
    assert list(module.state_dict()) == list(kind.plain_type(8).state_dict())
    for p in twin.parameters():
        p.data.zero_()
    assert not torch.equal(twin(x), module(x))


@KINDS
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_compiles_as_one_graph(kind, layout):
    torch._dynamo.reset()
    module = randomise(kind(8))
    results = []
    for call in (torch.compile(module, fullgraph=True, backend="aot_eager"), plain_twin(module)):
        x = make_map((2, 8, 5, 5), layout=layout, requires_grad=True)
        out = call(x)
        out.square().sum().backward()
        results.append((out, x.grad))
    torch.testing.assert_close(*results)


def test_hidden_units_are_those_of_timm():
    assert [make_divisible(c * 0.25, 4) for c in (8, 72, 120, 480, 672, 960, 36, 60)] == [
        4, 20, 32, 120, 168, 240, 12, 16
    ]  # fmt: skip


@pytest.mark.parametrize("act", [nn.PReLU, lambda: nn.PReLU(3), lambda: nn.LeakyReLU(0.2), lambda: nn.ELU(0.7)])
def test_an_activation_with_slopes_is_fused_in_programs_only(act):
    module, x = randomise(Foreign("sigmoid", act, True)), make_map((2, 8, 5, 7))
    fused = fuse(copy.deepcopy(module).eval())
    assert type(block_of(fused)) is SqueezeExciteBlock and block_of(fused).parts_of(fused).act == "act"
    assert "fused in programs only" in why(fused, x)
    assert torch.equal(fused(x), module.eval()(x))
