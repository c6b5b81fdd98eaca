"""What trains beside Ghost modules of 1x1 convolutions, on drawn configurations, as in ``test_drawn``."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from ghost_ops import functional
from ghost_ops.backends import triton
from ghost_ops.backends.triton.gating import gate_gradients, multiply_by_gate
from ghost_ops.dispatch import select
from tests.ops.cases import Errors, check

from .drawn import draw, draw_gate, draw_gated, few_tiles, many_tiles

KINDS = {
    "cheap_concat_train": partial(draw, "cheap_concat_train"),
    "dfc_gate_train": draw_gate,
    "ghost_module_train_gated": draw_gated,
}
PARTS = 8  # of each operator, of which `make test` runs some
CASES = 2  # of a part


def with_deviations(operator):
    """The operator, each mean that it returns with a deviation, whose rounding is in it and which may be far larger."""

    def call(*args, **kwargs):
        out, *statistics = operator(*args, **kwargs)
        return out, *(t if i % 2 else t + statistics[i + 1].sqrt() for i, t in enumerate(statistics))

    return call


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", KINDS)
def test_training(kind, part):
    errors = Errors()
    for seed in range(part * CASES, (part + 1) * CASES):
        case = KINDS[kind](seed)
        assert select(kind, next(iter(case.tensors.values()))).backend != "reference"
        with many_tiles() if seed % 4 == 3 else few_tiles():
            check(with_deviations(getattr(functional, kind.removesuffix("_gated"))), case, 1, errors)
    errors.assert_within(2.0, single=(8.0, 4.0))


@pytest.mark.parametrize("gate, size", [(3, 7), (7, 14), (4, 9), (5, 5), (9, 4), (1, 6), (29, 41), (6, 1)])
def test_the_gate_is_repeated_as_by_interpolate(gate, size):
    """Gradients too: each pixel of the map is written once, and counts for the pixel of the gate that it read."""
    g = torch.Generator().manual_seed(0)
    x, gates = torch.randn(1, 8, size, 3, generator=g), torch.rand(1, 8, gate, 2, generator=g).requires_grad_()
    up = F.interpolate(gates, size=(size, 3), mode="nearest")
    out, grad = x.clone(), torch.randn(x.shape, generator=g)
    multiply_by_gate(out, gates.detach())
    assert torch.equal(out, x * up)
    of_x, of_gate = gate_gradients(grad, x, gates.detach())
    (exact,) = torch.autograd.grad(up, gates, grad * x)
    assert torch.equal(of_x, grad * up)
    torch.testing.assert_close(of_gate, exact)


def test_a_gate_without_its_product():
    """Where the product was not kept the backward computes it again."""
    tensors = draw_gate(0).to(torch.float32).tensors
    numbers = 2, 0.1, 0.2, 0.3
    order = ("x", "weight", "gamma", "beta", "row_weight", "row_gamma", "row_beta")
    args = [tensors[name] for name in (*order, "column_weight", "column_gamma", "column_beta")]
    with few_tiles():
        out, *statistics, product = triton.load("dfc_gate_train")(*args, *numbers)
        backward = triton.load("dfc_gate_train_backward")
        kept, again = (backward(out, *args, *statistics, p, *numbers) for p in (product, None))
    assert product.is_contiguous() and all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


@pytest.mark.parametrize("change", ["weight", "row_weight", "column_weight", "row_gamma", "even"])
def test_direct_gates_refuse_what_does_not_fit(change):
    shapes = {"x": (2, 3, 6, 8), "weight": (4, 3, 1, 1), "row_weight": (4, 1, 1, 5), "column_weight": (4, 1, 3, 1)}
    wrong = {"weight": (4, 2, 1, 1), "row_weight": (3, 1, 1, 5), "column_weight": (4, 1, 1, 3), "row_gamma": (5,)}
    shapes |= {f"{layer}{name}": (4,) for layer in ("", "row_", "column_") for name in ("gamma", "beta")}
    shapes |= {"row_weight": (4, 1, 1, 4)} if change == "even" else {change: wrong[change]}
    t = {name: torch.randn(shape) for name, shape in shapes.items()}
    layers = [t[f"{layer}{name}"] for layer in ("", "row_", "column_") for name in ("weight", "gamma", "beta")]
    with pytest.raises(ValueError, match="expected"):
        triton.load("dfc_gate_train")(t["x"], *layers, 2, 1e-5, 1e-5, 1e-5)
