"""A module whose convolutions are sums of branches, over batch statistics: drawn configurations against float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import strategies as st

from ghost_ops import functional
from ghost_ops.activations import ACTIVATIONS
from tests.helpers import poisoned_memory
from tests.ops.cases import DTYPES, LAYOUTS, Case, check, check_drawn, in_layout, results

ACTS = ("none", "relu", "relu", *(a for a in ACTIVATIONS if a not in ("none", "relu", "prelu")))


def draw_branched(draw) -> Case:
    n, c, m = draw(st.integers(1, 4)), draw(st.integers(2, 40)), draw(st.integers(1, 36))
    h, w = draw(st.integers(1, 19)), draw(st.integers(1, 23))
    while n * h * w < 24:
        h, w = h + 3, w + 3
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from(DTYPES))

    def numbers(*shape, scale=1.0, shift=0.0):
        own = draw(st.sampled_from([dtype, torch.float32]))
        return (torch.randn(shape, generator=generator) * scale + shift).to(own)

    def optional(*args, **kwargs):
        return numbers(*args, **kwargs) if draw(st.booleans()) else None

    branches, depthwise = draw(st.sampled_from([(1, 1), (1, 1), (3, 3), (2, 1), (1, 2)]))
    k, identity = draw(st.sampled_from([1, 3, 3, 5])), draw(st.booleans())
    # a single branch of one tap is a scale, which its BatchNorm removes: it has no gradient but rounding
    k = 3 if k == 1 and depthwise == 1 else k
    x = torch.randn((n, c, h, w), generator=generator) + 0.3
    tensors = {
        "x": in_layout(x.to(dtype), draw(st.sampled_from(LAYOUTS))),
        "primary_weight": numbers(branches * m, c, 1, 1, scale=c**-0.5),
        "primary_gamma": optional(branches * m, scale=0.3, shift=1.0),
        "primary_beta": optional(branches * m, scale=0.3),
        "cheap_weight": numbers(depthwise * m, 1, k, k, scale=1.0 / k),
    }
    cheap = (depthwise + identity) * m
    tensors |= {"cheap_gamma": optional(cheap, scale=0.3, shift=1.0), "cheap_beta": optional(cheap, scale=0.3)}
    out_channels = draw(st.sampled_from([m, 2 * m, draw(st.integers(m, 2 * m))]))
    gate = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    if draw(st.booleans()):
        drawn = torch.rand(n, out_channels, *gate, generator=generator).to(dtype)
        tensors["gate"] = in_layout(drawn, draw(st.sampled_from(LAYOUTS)))
    options = {"branches": branches, "identity": identity, "out_channels": out_channels, "cheap_eps": 1e-3}
    for name in ("act", "cheap_act"):
        options |= {name: draw(st.sampled_from(ACTS)), f"{name}_slope": draw(st.sampled_from([0.01, 0.3]))}
    return Case(tensors, options, draw(st.sampled_from([1, 2])))


def with_deviations(*args, **kwargs):
    """The output; and means and variances, each mean with a deviation, whose rounding is in it and which may be far
    larger."""
    out, *statistics = functional.branched_module_train(*args, **kwargs)
    return out, *(t if i % 2 else t + statistics[i + 1].sqrt() for i, t in enumerate(statistics))


def test_drawn():
    check_drawn(with_deviations, draw_branched)


def arguments(n, c, side, m, branches=3, identity=True, scale=True, layout="channels_last", **options) -> Case:
    g = torch.Generator().manual_seed(0)
    cheap = (branches + scale + identity) * m
    tensors = {
        "x": in_layout(torch.randn(n, c, side, side, generator=g) + 0.3, layout),
        "primary_weight": torch.randn(branches * m, c, 1, 1, generator=g) * c**-0.5,
        "primary_gamma": torch.rand(branches * m, generator=g) + 0.5,
        "primary_beta": torch.randn(branches * m, generator=g) * 0.2,
        "cheap_weight": torch.randn(branches * m, 1, 3, 3, generator=g) / 3,
        "cheap_gamma": torch.rand(cheap, generator=g) + 0.5,
        "cheap_beta": torch.randn(cheap, generator=g) * 0.2,
        "scale_weight": torch.rand(m, 1, 1, 1, generator=g) + 0.5 if scale else None,
    }
    return Case(tensors, {"branches": branches, "identity": identity, **options}, 2)


def _with_scale(scale, x, *args, **kwargs):
    return functional.branched_module_train(x, *args, scale_weight=scale.to(x.dtype), **kwargs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n, c, side, m", [(2, 24, 28, 36), (3, 40, 14, 60), (5, 60, 7, 20), (1, 16, 45, 8)])
def test_layer_shapes(n, c, side, m, layout):
    """GhostNetV3's, with long sums, and RepGhost's of twice the channels. The gradient of the weight that scales is
    what eps leaves of it, next to nothing: its BatchNorm removes the scale."""
    for case in (
        arguments(n, c, side, m, layout=layout, out_channels=2 * m),
        arguments(n, c, side, 2 * m, 1, scale=False, layout=layout, out_channels=2 * m, cheap_act="none"),
    ):
        operator, scale = functional.branched_module_train, case.tensors.pop("scale_weight")
        if scale is not None:
            operator = partial(_with_scale, scale)
        check(operator, case, differentiable=1)


def test_the_gradient_of_the_scale():
    """Where eps is large it is not removed."""
    case = arguments(2, 6, 9, 12, out_channels=24, cheap_eps=0.5)
    check(functional.branched_module_train, case, differentiable=1)


def test_everything_is_written():
    """Neither gradients nor outputs keep what their memory held before; m is no multiple of a vector."""
    for layout in LAYOUTS:
        for case in (
            arguments(2, 16, 47, 20, layout=layout, out_channels=39),
            arguments(2, 64, 31, 12, 1, scale=False, layout=layout, out_channels=12),
        ):
            n, c, h, w = case.tensors["x"].shape
            kept, m = case.options["out_channels"], case.tensors["primary_weight"].shape[0] // case.options["branches"]
            sizes = [4 * n * h * w * channels for channels in (c, kept, m + -m % 8, 3 * (m + -m % 8))]
            with poisoned_memory(*sizes):
                (out, *_), gradients = results(
                    functional.branched_module_train, case, [torch.randn(n, kept, h, w)], False
                )
            assert out.isfinite().all() and all(grad.isfinite().all() for grad in gradients.values())


def test_what_is_saved():
    """x, and what has a value a channel; the products too where they are small beside x."""
    for c, kept in ((8, []), (60, [(2, 16, 16, 3, 16)])):
        sizes = []
        case = arguments(2, c, 16, 12, out_channels=24).leaves()
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.shape) or t, lambda t: t):
            positional = list(case.tensors.values())[:7]
            out = functional.branched_module_train(
                *positional, scale_weight=case.tensors["scale_weight"], **case.options
            ).out
        maps = [tuple(size) for size in sizes if len(size) >= 4 and size.numel() > 3000]
        assert out.requires_grad and maps == [(2, c, 16, 16), *kept]


def test_threads_repeat():
    """The same call with the same number of threads gives the same bits."""
    case = arguments(3, 24, 14, 20, out_channels=40)
    grads = [torch.randn(3, 40, 14, 14)]
    once, again = (results(functional.branched_module_train, case, grads, False) for _ in range(2))
    assert torch.equal(once[0][0], again[0][0])
    assert all(torch.equal(once[1][name], again[1][name]) for name in once[1])
