"""Squeeze-and-excite, depthwise convolutions and the convolutions of programs on drawn configurations, as in
``test_drawn``."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F

from ghost_ops import activations as activation
from ghost_ops import functional
from ghost_ops.backends.triton.convolution import convolution
from ghost_ops.backends.triton.depthwise import depthwise_with_epilogue as depthwise
from ghost_ops.dispatch import select
from tests.helpers import assert_as_accurate
from tests.ops.cases import LAYOUTS, Errors, check, in_layout

from .drawn import CASES, draw_depthwise, draw_squeeze_excite, few_tiles, many_tiles


@pytest.mark.parametrize(
    ("operator", "drawn"), [(functional.squeeze_excite, draw_squeeze_excite), (functional.depthwise, draw_depthwise)]
)
def test_other_operators(operator, drawn):
    errors = Errors()
    for seed in range(CASES):
        case = drawn(seed)
        assert select(operator.__name__, case.tensors["x"]).backend != "reference"
        with many_tiles() if seed % 4 == 3 else few_tiles():
            check(operator, case, 1, errors)
    errors.assert_over_draws()


@pytest.mark.parametrize("dense", [False, True], ids=["depthwise", "dense"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_convolutions_of_programs(dtype, dense):
    """With bias and activation, depthwise with squeeze, at any stride; depthwise weights as parameters lie, and as
    programs lay them."""
    errors = Errors()
    for seed in range(2 * CASES):
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        numbers = lambda *shape, generator=generator: torch.randn(shape, generator=generator).to(dtype)
        n, c, h, w = rng.randint(1, 3), rng.randint(1, 4 if dense else 40), rng.randint(1, 11), rng.randint(1, 11)
        k, stride, squeeze = rng.choice([1, 3, 5, 7]), rng.randint(1, 3), not dense and rng.random() < 0.7
        padding, m = (rng.randint(max(k - min(h, w) + 1, 0) // 2, k), rng.randint(1, 40)) if dense else (k // 2, c)
        act = rng.choice([activation.NONE, activation.RELU, activation.PRELU, activation.ACTIVATIONS.index("mish")])
        weight = numbers(m, c, k, k) / (k * c**0.5) if dense else numbers(c, 1, k, k) / k
        x, bias, slopes = in_layout(numbers(n, c, h, w), rng.choice(LAYOUTS)), numbers(m), numbers(m).abs()
        bias = bias if rng.random() < 0.6 else None
        if seed % 2 and not dense:
            weight = weight.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)

        def plain(x, weight, bias, slopes, stride=stride, padding=padding, act=act):
            out = F.conv2d(x, weight, bias, stride, padding, groups=1 if dense else x.shape[1])
            out = activation.activate(out, act, 0.0, slopes)
            return out, out.mean((2, 3))

        with many_tiles() if seed % 4 == 3 else few_tiles():
            used = slopes if act == activation.PRELU else None
            if dense:
                out = convolution(x, weight, bias, used, stride, padding, act, 0.0)
            else:
                out, means = depthwise(x, weight, bias, used, stride, act, 0.0, squeeze)
                assert squeeze or means.numel() == 0
        wide = [None if t is None else t.double() for t in (x, weight, bias, slopes)]
        found = zip((out, means) if squeeze else (out,), plain(x, weight, bias, slopes), plain(*wide))
        for what, (ours, eager, exact) in zip(("output", "squeeze"), found):
            errors.add(what, ours, eager, exact)
            assert_as_accurate(ours, eager, exact, 4.0, what=f"seed {seed}, {what}", ulps=8)
    errors.assert_within(2.0)
