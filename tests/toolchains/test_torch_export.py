"""torch.export: fused nets are recorded in PyTorch's operators, frozen ones with their kernels, or without."""

import copy
import re
import warnings

import pytest
import torch
from torch import nn

import ghost_ops
from ghost_ops import functional as F
from ghost_ops.backends.registry import SCHEMAS
from ghost_ops.nn import GhostBottleneck

from ..helpers import make_map, randomise
from .nets import assert_same, few_nets, image, made, make, ours

DIMS = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=8), 3: torch.export.Dim("w", min=8)}
every_mode = pytest.mark.parametrize("strict", [True, False], ids=["strict", "not strict"])


def export(net, strict=False):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(net, (image(),), dynamic_shapes=(DIMS,), strict=strict)


@every_mode
@few_nets
def test_fused_nets_are_recorded_plainly(name, strict):
    net, plain = made(name, "fused")
    exported = export(net, strict)
    assert not ours(exported.graph)
    convolutions = [n for n in exported.graph.nodes if n.target is torch.ops.aten.conv2d.default]
    assert len(convolutions) == sum(isinstance(m, nn.Conv2d) for m in plain.modules())
    x = make_map((3, 3, 40, 27))
    assert torch.equal(exported.module()(x), plain(x))


def test_built_fused_and_in_training():
    block = randomise(ghost_ops.FusedGhostBottleneck(8, 16, 8, 3, 2, 0.25)).train()
    plain = GhostBottleneck(8, 16, 8, 3, 2, 0.25).train()
    plain.load_state_dict(block.state_dict())
    x = make_map((2, 8, 9, 7))
    exported = torch.export.export(copy.deepcopy(block), (x,))
    assert not ours(exported.graph)
    torch.testing.assert_close(exported.module()(x), plain(x))


@every_mode
@few_nets
def test_frozen_nets_keep_their_kernels_and_say_what_else_to_call(name, strict):
    net, plain = made(name, "frozen")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exported = torch.export.export(net, (image(),), dynamic_shapes=(DIMS,), strict=strict)
        exported.run_decompositions({})
    (said,) = [warning for warning in caught if "records a frozen net" in str(warning.message)]  # once an export
    assert re.search(r"thaw\(net, fold=True\), or exported\.run_decompositions", str(said.message))
    programs = [m for m in net.modules() if isinstance(m, ghost_ops.fused.FrozenProgram)]
    assert len(ours(exported.graph)) == len(programs) > 0
    x = make_map((3, 3, 40, 27))
    assert torch.equal(exported.module()(x), net(x))
    with pytest.warns(UserWarning, match="records a frozen net"):  # again, of the next one
        torch.export.export(net, (image(),))


@few_nets
def test_decompositions(name):
    net, plain = made(name, "frozen")
    plainly = export(net).run_decompositions(ghost_ops.decompositions())
    assert not ours(plainly.graph)
    for shape in ((2, 3, 33, 31), (5, 3, 64, 40)):
        x = make_map(shape)
        assert_same(plainly.module()(x), plain(x))
    assert len(ours(export(net).run_decompositions().graph)) == len(ours(export(net).graph))


def test_bfloat16_decomposes():
    net = ghost_ops.freeze(make("one program"), torch.bfloat16)
    plainly = export(nn.Sequential(_ToBFloat16(), net)).run_decompositions(ghost_ops.decompositions())
    assert not ours(plainly.graph)
    x = image()
    with ghost_ops.use_backend("reference"):
        wanted = net(x.bfloat16()).float()
    assert_same(plainly.module()(x).float(), wanted, 2.0**-7)


class _ToBFloat16(nn.Module):
    def forward(self, x):
        return x.bfloat16()


def test_every_operator_has_one():
    table = ghost_ops.decompositions()
    for name in SCHEMAS:
        for operator in (name, f"{name}_reference"):
            overload = getattr(torch.ops.ghost_ops, operator).default
            assert overload in table


def test_compilers_keep_our_operators():
    """Where ``CI`` is set, Inductor refuses to keep an operator that PyTorch's table has a decomposition of."""
    from torch._decomp import get_decompositions

    assert not get_decompositions(list(ghost_ops.decompositions()))
    seen = []

    def backend(graph, inputs):
        seen.extend(ours(graph.graph))
        return graph

    torch._dynamo.reset()
    for way in ("fused", "frozen"):
        net, plain = made("one program", way)
        with torch.no_grad():
            assert_same(torch.compile(net, backend=backend, fullgraph=True)(image()), plain(image()))
        assert seen
        seen.clear()


class Functions(nn.Module):
    """Calls operators itself, so that they are recorded."""

    def __init__(self):
        super().__init__()
        self.primary, self.cheap = nn.Parameter(torch.randn(6, 8, 1, 1)), nn.Parameter(torch.randn(6, 1, 3, 3))
        self.reduce, self.expand = nn.Parameter(torch.randn(4, 12, 1, 1)), nn.Parameter(torch.randn(12, 4, 1, 1))

    def forward(self, x):
        x = F.ghost_module(x, self.primary, None, self.cheap, None, out_channels=12, act="relu", cheap_act="relu")
        return F.squeeze_excite(x, self.reduce, None, self.expand, None, act="relu", gate="sigmoid")


def test_functions_are_recorded_as_they_are_and_decompose():
    net, x = Functions().requires_grad_(False), make_map((2, 8, 9, 7))
    exported = torch.export.export(net, (x,))
    assert len(ours(exported.graph)) == 2
    plainly = exported.run_decompositions(ghost_ops.decompositions())
    assert not ours(plainly.graph)
    torch.testing.assert_close(plainly.module()(x), net(x))
