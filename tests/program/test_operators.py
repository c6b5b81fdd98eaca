"""What PyTorch sees of the operators of programs: autograd, export, compile."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from ghost_ops.ops._library import overload
from ghost_ops.ops.program import program, program_eval, program_pack
from tests.helpers import LAYOUTS, make_map
from tests.program.blocks import block
from tests.program.cases import Program


@pytest.fixture(autouse=True)
def _quick(one_thread):
    """Small maps, for which threads only wait."""


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("features", [True, False])
def test_opcheck(features, layout):
    p, x = block(features), make_map((2, 3, 14, 15), layout=layout)
    packed = program_pack(list(p.parameters), p.code)
    for name, args in (
        ("program", (x, packed, p.code)),
        ("program_eval", (x, list(p.parameters), p.code)),
        ("program_pack", (list(p.parameters), p.code)),
    ):
        opcheck(overload(name), args)


def test_passing_by_autograd_is_not_passing_by_its_error():
    p, x = block(True), make_map((1, 3, 14, 15))
    parameters = list(p.parameters)
    packed = program_pack(parameters, p.code)
    for wanted in (x.clone().requires_grad_(), parameters[0].clone().requires_grad_()):
        given = x if wanted.shape != x.shape else wanted
        out = program_eval(given, [wanted, *parameters[1:]] if given is x else parameters, p.code)
        with pytest.raises(NotImplementedError, match="no gradients"):
            out.sum().backward()
    with torch.no_grad():
        inside = program(x, packed, p.code)
    assert not inside.requires_grad and torch.equal(inside, program(x, packed, p.code))
    assert not program(x, packed, p.code).requires_grad


class Module(torch.nn.Module):
    def __init__(self, p: Program, packed: bool):
        super().__init__()
        self.code, self.packed = p.code, packed
        tensors = [program_pack(list(p.parameters), p.code)] if packed else p.parameters
        self.tensors = torch.nn.ParameterList([torch.nn.Parameter(t, requires_grad=False) for t in tensors])

    def forward(self, x):
        if self.packed:
            return program(x * 2, self.tensors[0], self.code).relu()
        return program_eval(x * 2, list(self.tensors), self.code).relu()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("features", [True, False])
def test_export_with_any_batch_and_size(features, packed):
    net, x = Module(block(features), packed), make_map((2, 3, 14, 15))
    dims = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=4), 3: torch.export.Dim("w", min=4)}
    exported = torch.export.export(net, (x,), dynamic_shapes=(dims,))
    called = {str(node.target) for node in exported.graph.nodes if "ghost_ops" in str(node.target)}
    assert called == {f"ghost_ops.program{'' if packed else '_eval'}.default"}
    for shape in ((2, 3, 14, 15), (5, 3, 31, 9)):
        x = make_map(shape)
        assert torch.equal(exported.module()(x), net(x))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("features", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compile_fullgraph(layout, features, packed):
    torch._dynamo.reset()
    net = Module(block(features), packed)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True, dynamic=True)
    for shape in ((2, 3, 14, 15), (3, 3, 20, 9)):
        x = make_map(shape, layout=layout)
        ours, want = compiled(x), net(x)
        assert torch.equal(ours, want) and ours.stride() == want.stride()


def test_there_is_no_backward():
    p, x = block(), make_map((2, 3, 14, 15), requires_grad=True)
    packed = program_pack(list(p.parameters), p.code)
    for out in (program(x, packed, p.code), program_eval(x, list(p.parameters), p.code)):
        with pytest.raises(NotImplementedError, match="it has no gradients"):
            out.sum().backward()
    wanted = [t.clone().requires_grad_() for t in p.parameters]
    with pytest.raises(NotImplementedError, match="it has no gradients"):
        program_pack(wanted, p.code).sum().backward()
    with torch.inference_mode():
        assert not program(x, packed, p.code).requires_grad


def test_arguments_are_not_written_to():
    p, x = block(), make_map((2, 3, 14, 15))
    packed, parameters = program_pack(list(p.parameters), p.code), [t.clone() for t in p.parameters]
    before = x.clone(), packed.clone(), list(p.code)
    program(x, packed, p.code), program_eval(x, list(p.parameters), p.code)
    assert torch.equal(x, before[0]) and torch.equal(packed, before[1]) and p.code == before[2]
    assert all(torch.equal(a, b) for a, b in zip(parameters, p.parameters, strict=True))
