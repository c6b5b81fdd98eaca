"""The gradients of a 1x1 convolution, through a BatchNorm's coefficients, by each kernel, against float64."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from ghost_ops.backends.triton import launch, product_gradients, tiles
from ghost_ops.backends.triton.sums import Totals
from tests.helpers import assert_as_accurate

SHAPES = [(5, 3), (20, 7), (40, 12), (24, 41)]  # channels of x, of z


def expected(g, z, x, weight, coefficients, residual):
    """The gradient of z in the dtype of the maps, as PyTorch keeps it; sums in float32 at least."""
    if coefficients is not None:
        factor, constant, linear, center = (v.to(g.dtype)[:, None, None] for v in coefficients)
        g = factor * (g - constant - linear * (z - center))
    g, x, weight = (t.double() if t.dtype == torch.float64 else t.float() for t in (g, x, weight))
    grad_x = torch.einsum("nmhw,mc->nchw", g, weight)
    return grad_x if residual is None else grad_x + residual, torch.einsum("nmhw,nchw->mc", g, x)


def map_of(channels: int, dtype: torch.dtype, generator: torch.Generator, layout: str) -> torch.Tensor:
    t = torch.randn((2, channels, 5, 7), generator=generator).to(dtype)
    if layout == "expanded":
        return t[:, :, :1, :1].expand(t.shape)
    return t.to(memory_format=torch.channels_last if layout == "last" else torch.contiguous_format)


@pytest.mark.parametrize(("c", "m"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("kernel", ["together", "blocks", "steps"])
def test_gradients(c, m, dtype, kernel):
    """``blocks``: a program of the input's gradient goes through blocks; ``steps``: through steps of the product."""
    seed = SHAPES.index((c, m)) + 4 * ["together", "blocks", "steps"].index(kernel)
    generator = torch.Generator().manual_seed(seed)
    g, x, residual = (
        map_of(k, dtype, generator, layout)
        for k, layout in ((m, ("last", "first", "expanded")[seed % 3]), (c, ("last", "first")[seed % 2]), (c, "first"))
    )
    z = map_of(m, dtype, generator, "last")
    weight = torch.randn((m, c), generator=generator) * c**-0.5
    coefficients = None if seed % 4 == 3 else torch.randn((4, m), generator=generator)
    residual = None if seed % 3 == 1 else residual
    started, start_kernel = [], launch.start_kernel

    def noting(function, grid, arguments, *options, **more):
        started.append((function.__name__, arguments))
        start_kernel(function, grid, arguments, *options, **more)

    most_steps = 0 if kernel == "steps" else 4
    with (
        mock.patch.object(product_gradients, "MOST_WEIGHTS", 8192 if kernel == "together" else 0),
        mock.patch.object(product_gradients, "MOST_STEPS", most_steps),
        mock.patch.object(tiles, "processors", lambda device: 1),
        mock.patch.object(launch, "start_kernel", noting),
        tiles.override("product_gradient", pixels=16, channels=16, depth=16),
        tiles.override("weight_gradient", pixels=16, channels=16, depth=16),
    ):
        found = product_gradients.product_gradients(g, z, x, weight[:, :, None, None], coefficients, residual=residual)
    arguments = dict(started)
    together = kernel == "together" and dtype == torch.float16  # float32 products need more registers
    assert set(arguments) == {"total_kernel"} | (
        {"product_bwd_kernel"} if together else {"input_bwd_kernel", "primary_weight_bwd_kernel"}
    )
    if not together:
        steps = -(-m // 16)
        assert arguments["input_bwd_kernel"]["STEPS"] == (0 if kernel == "steps" else steps)
        assert arguments["input_bwd_kernel"]["ONE_BLOCK"] == (kernel == "steps" or c <= 16)
    plain = expected(g, z, x, weight.to(dtype), coefficients, residual)
    exact = expected(
        g.double(), z.double(), x.double(), weight.to(dtype).double(), coefficients,
        None if residual is None else residual.double(),
    )  # fmt: skip
    assert_as_accurate(found[0], plain[0].to(dtype), exact[0], what="input")
    assert_as_accurate(found[1].flatten(1), plain[1], exact[1], what="weight")
    assert found[0].is_contiguous(memory_format=torch.channels_last if seed % 2 == 0 else torch.contiguous_format)


def test_totals_share_launches():
    """Nine sums of different shapes into different layouts: two launches, of seven and of two; and one into another
    dtype, which has its own."""
    generator, totals, started = torch.Generator().manual_seed(0), Totals(), []
    shapes = [
        (3, 1, 40),
        (20, 9, 5),
        (1, 4, 130),
        (700, 2, 3),
        (17, 1, 9),
        (2, 3, 7),
        (40, 1, 1),
        (5, 2, 6),
        (1, 1, 9),
        (20, 3, 130),
    ]
    start_kernel = launch.start_kernel
    with mock.patch.object(
        launch, "start_kernel", lambda *args, **options: started.append(args[0]) or start_kernel(*args, **options)
    ):
        given, outs = [torch.randn(shape, generator=generator) for shape in shapes], []
        for i, partials in enumerate(given):
            out = torch.full(partials.shape[1:], torch.nan, dtype=torch.float16 if i == 9 else torch.float32)
            out = out.T.contiguous() if i % 2 else out
            totals.add(partials, out, steps=(1, partials.shape[1]) if i % 2 else None, per_value=1.0 + i)
            outs.append(out.T if i % 2 else out)
        totals.start()
        totals.start()
    assert len(started) == 3
    for i, (partials, out) in enumerate(zip(given, outs)):
        exact = partials.double().sum(0) * (1.0 + i)
        plain = (partials.sum(0) * (1.0 + i)).to(out.dtype)
        assert_as_accurate(out, plain, exact, ulps=len(partials) ** 0.5 + 4)
