"""The gate of DFC attention, and a Ghost module's output times a gate: drawn configurations against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume
from hypothesis import strategies as st

from ghost_ops import functional
from ghost_ops.activations import GATES
from tests.helpers import poisoned_memory
from tests.ops.cases import DTYPES, LAYOUTS, Case, check, check_drawn, draw_case, in_layout, results


def draw_gate(draw) -> Case:
    n, c, m = (draw(st.integers(1, most)) for most in (4, 40, 50))
    h, w = draw(st.integers(2, 19)), draw(st.integers(2, 31))
    while n * (h // 2) * (w // 2) < 24:
        h, w = h + 3, w + 3
    c = max(c, 2)  # a single channel has no gradient but rounding: the scale of its weight is normalised
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from(DTYPES))

    def numbers(*shape, scale=1.0, shift=0.0):
        own = draw(st.sampled_from([dtype, torch.float32]))
        return (torch.randn(shape, generator=generator) * scale + shift).to(own)

    # of one tap a BatchNorm before and one behind leave no gradient but rounding
    rows, columns = (draw(st.sampled_from([3, 5, 5, 7])) for _ in range(2))
    x = torch.randn((n, c, h, w), generator=generator) + 0.3
    tensors = {
        "x": in_layout(x.to(dtype), draw(st.sampled_from(LAYOUTS))),
        "weight": numbers(m, c, 1, 1, scale=c**-0.5),
        "row_weight": numbers(m, 1, 1, rows, scale=rows**-0.5),
        "column_weight": numbers(m, 1, columns, 1, scale=columns**-0.5),
    }
    for layer in ("", "row_", "column_"):
        tensors[f"{layer}gamma"] = numbers(m, scale=0.3, shift=1.0) if draw(st.booleans()) else None
        tensors[f"{layer}beta"] = numbers(m, scale=0.3) if draw(st.booleans()) else None
    return Case(tensors, {"gate": draw(st.sampled_from(GATES)), "row_eps": 1e-3}, draw(st.sampled_from([1, 2])))


def gate_and_statistics(*args, **kwargs):
    """The gate; and means and variances, each mean with a deviation, whose rounding is in it and which may be far
    larger."""
    gate, *statistics = functional.dfc_gate_train(*args, **kwargs)
    return gate, *(t if i % 2 else t + statistics[i + 1].sqrt() for i, t in enumerate(statistics))


def test_the_gate():
    check_drawn(gate_and_statistics, draw_gate)


def draw_gated(draw) -> Case:
    """The gate's sizes are drawn on their own: half the map's, none of it, or larger."""
    case = draw_case(draw, "ghost_module_train")
    assume(case.tensors["cheap_weight"].shape[-1] > 1)  # else gradients cancel between the halves: test_cancelling.py
    x, height, width = case.tensors["x"], draw(st.integers(1, 12)), draw(st.integers(1, 12))
    if draw(st.booleans()):
        height, width = max(1, x.shape[2] // 2), max(1, x.shape[3] // 2)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    gate = torch.rand(x.shape[0], case.options["out_channels"], height, width, generator=generator)
    case.tensors["gate"] = in_layout(gate.to(x.dtype), draw(st.sampled_from(LAYOUTS)))
    return case


def test_a_gated_ghost_module():
    check_drawn(functional.ghost_module_train, draw_gated)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n, c, side, m", [(2, 24, 28, 36), (3, 80, 14, 100), (9, 112, 7, 336), (1, 40, 45, 36)])
def test_layer_shapes_of_ghostnetv2(n, c, side, m, layout):
    """Long sums and whole tiles; a 7 x 7 map beside a gate of 3 x 3; one image, cut into bands for two threads."""
    g = torch.Generator().manual_seed(0)
    x = in_layout(torch.randn(n, c, side, side, generator=g) + 0.3, layout)

    def norm(name, channels):
        return {
            f"{name}gamma": torch.rand(channels, generator=g) + 0.5,
            f"{name}beta": torch.randn(channels, generator=g) * 0.2,
        }

    of_gate = {
        "x": x,
        "weight": torch.randn(2 * m, c, 1, 1, generator=g) * c**-0.5,
        "row_weight": torch.randn(2 * m, 1, 1, 5, generator=g) * 5**-0.5,
        "column_weight": torch.randn(2 * m, 1, 5, 1, generator=g) * 5**-0.5,
    }
    of_gate |= norm("", 2 * m) | norm("row_", 2 * m) | norm("column_", 2 * m)
    check(functional.dfc_gate_train, Case(of_gate, {}, 2), differentiable=1)
    of_ghost = {
        "x": x,
        "primary_weight": torch.randn(m, c, 1, 1, generator=g) * c**-0.5,
        "primary_bias": None,
        "cheap_weight": torch.randn(m, 1, 3, 3, generator=g) / 3,
        "cheap_bias": None,
        "gate": in_layout(torch.rand(n, 2 * m, side // 2, side // 2, generator=g), layout),
    }
    of_ghost |= norm("primary_", m) | norm("cheap_", m)
    order = ("x", "primary_weight", "primary_bias", "primary_gamma", "primary_beta", "cheap_weight", "cheap_bias")
    of_ghost = {name: of_ghost[name] for name in (*order, "cheap_gamma", "cheap_beta", "gate")}
    check(functional.ghost_module_train, Case(of_ghost, {}, 2), differentiable=1)


def test_everything_is_written():
    """Neither gradients nor outputs keep what their memory held before; odd sizes have pixels that no pooling reads."""
    g = torch.Generator().manual_seed(0)
    r = lambda *shape: torch.randn(shape, generator=g)
    for layout in LAYOUTS:
        x = in_layout(r(2, 16, 47, 45), layout)
        case = Case({"x": x, "weight": r(32, 16, 1, 1), "row_weight": r(32, 1, 1, 5), "column_weight": r(32, 1, 5, 1)})
        case.tensors |= dict.fromkeys(
            f"{layer}{name}" for layer in ("", "row_", "column_") for name in ("gamma", "beta")
        )
        sizes = [4 * 2 * 32 * 23 * 22, 4 * x.numel(), 4 * 32]
        with poisoned_memory(*sizes):
            (out, *_), gradients = results(functional.dfc_gate_train, case, [r(2, 32, 23, 22)], False)
        assert out.isfinite().all() and all(grad.isfinite().all() for grad in gradients.values())
        assert not gradients["x"][:, :, 46].any() and not gradients["x"][:, :, :, 44].any()


@pytest.mark.parametrize("gate, size", [(3, 7), (7, 14), (4, 9), (5, 5), (9, 4), (1, 6)])
def test_the_gate_is_repeated_as_by_interpolate(gate, size):
    g = torch.Generator().manual_seed(0)
    x, gates = torch.randn(2, 3, size, size, generator=g), torch.rand(2, 8, gate, gate, generator=g)
    w1, w2 = torch.randn(4, 3, 1, 1, generator=g), torch.randn(4, 1, 3, 3, generator=g)
    arguments = x, w1, None, None, None, w2, None, None, None
    ours = functional.ghost_module_train(*arguments, gate=gates).out
    plain = functional.ghost_module_train(*arguments).out
    torch.testing.assert_close(ours, plain * F.interpolate(gates, size=(size, size), mode="nearest"))


def test_what_is_saved():
    """Of the gated module: x, the gate and what has a value a channel. Of the gate: x and one map of its size."""
    sizes = []
    x = torch.randn(2, 8, 16, 16, requires_grad=True)
    r = lambda *shape: torch.randn(*shape, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.shape) or t, lambda t: t):
        gate = functional.dfc_gate_train(
            x, r(24, 8, 1, 1), None, None, r(24, 1, 1, 5), None, None, r(24, 1, 5, 1), None, None
        )
        out = functional.ghost_module_train(
            x, r(12, 8, 1, 1), None, None, None, r(12, 1, 3, 3), None, None, None, gate=gate.gate
        )
    maps = [tuple(size) for size in sizes if len(size) == 4 and size[2:].numel() > 25]
    assert out.out.requires_grad and maps == [(2, 8, 16, 16), (2, 8, 8, 24), (2, 8, 16, 16), (2, 24, 8, 8)]
