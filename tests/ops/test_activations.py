"""Activations and gates on the CPU: by the library on every instruction set, and by the reference."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ghost_ops
from ghost_ops import activations
from ghost_ops.activations import ACTIVATIONS, GATES, OF_GATES
from ghost_ops.backends import native
from ghost_ops.functional import cheap_concat, squeeze_excite
from tests.ops.activation_cases import MODULES, by_pytorch, check, inputs

ROOT = Path(__file__).parents[2]
HALF = torch.float16, torch.bfloat16


def test_codes_stay():
    """Saved programs hold them."""
    seven = ("none", "relu", "relu6", "leaky_relu", "prelu", "silu", "hard_swish")
    assert ACTIVATIONS[:7] == seven and GATES == ("clamp", "hard_sigmoid", "sigmoid", "identity")
    listed = [int(arguments[0]) for kind, arguments in activations._LIST if kind == "ACTIVATION"]
    assert listed == list(range(len(ACTIVATIONS)))


def test_every_activation_has_a_case():
    assert MODULES.keys() == set(ACTIVATIONS) - {"none", "prelu", "clamp"}


@pytest.mark.parametrize("half", ["primary", "cheap"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("act", MODULES)
def test_values(act, dtype, half):
    check(cheap_concat, act, dtype, half)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("act", MODULES)
def test_values_of_the_reference(act, dtype):
    with ghost_ops.use_backend("reference"):
        check(cheap_concat, act, dtype, "primary")


@pytest.mark.parametrize("act", [*MODULES, "clamp"])
def test_definitions(act):
    """What the list says is what PyTorch computes."""
    code = ACTIVATIONS.index(act)
    for name, z in inputs(torch.float64):
        grad = torch.ones_like(z)
        if act == "clamp":
            z.requires_grad_()
            value = z.clamp(0, 1)
            value.backward(grad)
            value, gradient = value.detach(), z.grad
        else:
            value, gradient = by_pytorch(act, z, grad)
        z, slope = z.detach(), 0.3
        close = {"rtol": 1e-7, "atol": 1e-12, "equal_nan": True}  # 1e-7: its hard-sigmoid's sixth is a float
        torch.testing.assert_close(activations._VALUES[code](z, slope), value, **close)
        known = ~z.isnan()
        ours = activations.activate_backward(grad, z, code, slope)[0]
        torch.testing.assert_close(ours[known], gradient[known], msg=f"{act}, {name}", **close)


@pytest.mark.parametrize("gate", GATES)
def test_gates_are_activations(gate):
    code = GATES.index(gate)
    for _, z in inputs(torch.float32):
        assert torch.equal(
            activations.apply_gate(z, code).nan_to_num(7), activations.activate(z, OF_GATES[code]).nan_to_num(7)
        )


@pytest.mark.parametrize("act", [a for a in MODULES if ACTIVATIONS.index(a) not in activations.WITH_SLOPES])
def test_between_the_layers_of_an_excitation(act):
    """Values and all gradients of squeeze-and-excite, against autograd of its formula in float64."""
    generator = torch.Generator().manual_seed(0)
    x, w1, b1, w2, b2 = (torch.randn(s, generator=generator) for s in ((2, 9, 3, 4), (5, 9), (5,), (9, 5), (9,)))
    grad = torch.randn(x.shape, generator=generator)

    def gradients(dtype, ours):
        leaves = [t.detach().clone().to(dtype).requires_grad_() for t in (x, w1, b1, w2, b2)]
        y, v1, a1, v2, a2 = leaves
        if ours:
            out = squeeze_excite(*leaves, act=act, gate="sigmoid")
        else:
            out = y * torch.sigmoid(MODULES[act](y.mean((2, 3)) @ v1.T + a1) @ v2.T + a2)[:, :, None, None]
        out.backward(grad.to(dtype))
        return [out.detach(), *(t.grad for t in leaves)]

    for a, e in zip(gradients(torch.float32, True), gradients(torch.float64, False), strict=True):
        torch.testing.assert_close(a.double(), e, rtol=2e-5, atol=2e-6)


@pytest.mark.skipif(bool(os.environ.get("GHOST_OPS_ISA")), reason="these are the runs on one instruction set")
@pytest.mark.parametrize("isa", [isa for isa in native.isas() if isa != native.isa()])
def test_on_every_instruction_set(isa):
    """In processes of their own, since the set is chosen once."""
    environment = os.environ | {"GHOST_OPS_ISA": isa, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *"pytest -q -p no:cacheprovider -p no:xdist -k test_values".split(), __file__]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, f"{ran.stdout[-3000:]}\n{ran.stderr[-2000:]}"
