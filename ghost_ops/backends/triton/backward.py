"""The backward of Ghost modules: B1, B2 and B3 of docs/gradients.md, section 2.

z1 is computed once (unless given) and kept in scratch memory with the maps' dtype, as eager PyTorch keeps it. Then no
pass needs a halo: neighbours of a pixel are read from memory. B1 computes the sums of g2 and keeps ∂z2, or z2 where the
BatchNorm's sums must be known first; B2 completes ∂z2 and computes, in one more pass, ∂W2 and g1 with its sums; B3
computes ∂x and ∂W1.
Partial sums, three rows for each group of tiles, are joined in a fixed order by small kernels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from . import checks, launch, tiles
from .epilogue import Epilogue, EpilogueGradients
from .joins import Joins
from .product_gradients import product_gradients
from .products import primary_product
from .squeeze_excite import image_sums, scaled_map
from .strip_gradients import (
    cheap_conv_bwd_kernel,
    cheap_epilogue_bwd_kernel,
    cheap_norm_bwd_kernel,
    cheap_weight_bwd_kernel,
    primary_epilogue_bwd_kernel,
)
from .sums import Totals
from .taps import tap_arguments


class Gradients(NamedTuple):
    """Gradients of a module from z, or from x on."""

    z: torch.Tensor
    cheap_weight: torch.Tensor
    primary: EpilogueGradients
    cheap: EpilogueGradients
    coefficients: torch.Tensor
    x: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    scale: torch.Tensor | None = None


def ghost_tail_bwd(
    grad_out: torch.Tensor,
    z: torch.Tensor,
    primary: Epilogue,
    cheap_weight: torch.Tensor | None,
    cheap: Epilogue,
    out_channels: int,
    batch: bool = False,
    grad_z: torch.Tensor | None = None,
    totals: Totals | None = None,
    joins: Joins | None = None,
) -> Gradients:
    """Gradients from the primary convolution's result z on.

    Args:
        grad_out: N x out_channels x H x W of any strides, also expanded.
        batch: whether the BatchNorms of both halves use batch statistics. Then ``Gradients.z`` is g1, the gradient of
            the first BatchNorm's result, and ``coefficients`` are those of the BatchNorm's backward, for B3.
        grad_z: where the gradient of z is written; by default a new map in z's memory format.
        totals: where the cheap weight's gradient is joined, later; by default it is joined here.
        joins: those of the call; by default they are started here.
    """
    checks.expect_module(z, None, primary, cheap_weight, cheap, out_channels)
    checks.expect("grad_out", grad_out, (z.shape[0], out_channels, *z.shape[2:]), z)
    n, m, height, width = z.shape
    count = n * height * width if batch else None
    joins = joins or Joins(z.device)
    multiplier = 0 if cheap_weight is None else cheap_weight.shape[0] // m
    cheap_channels, d = m * multiplier, 1 if cheap_weight is None else cheap_weight.shape[-1]
    grad_z = launch.new_map(z, m) if grad_z is None else grad_z
    grad_z2 = launch.scratch(z, cheap_channels) if multiplier else None
    common = {
        **launch.maps(z=z, grad=grad_out), **primary.arguments("primary", at_run_time=True),
        **tap_arguments("cheap_weight", cheap_weight), "D": d, "MULTIPLIER": multiplier,
        "H": height, "W": width, "M": m,
        "WIDE": launch.is_wide(z, grad_out, grad_z, grad_z2),
    }  # fmt: skip

    def partial(splits: int, rows: int, channels: int) -> torch.Tensor:
        return launch.empty((n * splits, rows, channels), torch.float32, z.device)

    def taken(kernel, arguments: dict) -> dict:
        return {name: value for name, value in arguments.items() if name in kernel.arg_names}

    cheap_grad = grad_cheap = None
    if multiplier:
        unit = launch.unit(z, grad_out, counts=(m, out_channels))
        strips = tiles.strips("stencil_gradient", z, m, d * d * multiplier, unit=unit if multiplier == 1 else 1)
        blocks = strips.blocks(m) * multiplier
        join = joins.gradients(cheap, n * strips.splits, cheap_channels, blocks, count)
        arguments = {
            **common, **cheap.arguments("cheap", at_run_time=True), **join.arguments,
            "OUT_CHANNELS": out_channels, "grad_z2": grad_z2, "BATCH": batch, "UNIT": unit,
        }  # fmt: skip
        strips.start(cheap_epilogue_bwd_kernel, z, m, arguments)
        coefficients, cheap_grad = join.finish()
        if batch:
            arguments |= {"CHEAP_CHANNELS": cheap_channels, "coefficients": coefficients}
            strips = tiles.strips("stencil_gradient", z, cheap_channels, unit=unit)
            strips.start(cheap_norm_bwd_kernel, z, cheap_channels, taken(cheap_norm_bwd_kernel, arguments))
    # A thread keeps the cheap weight and its gradient, except where a primary channel has several cheap ones.
    joined = multiplier == 1
    unit = launch.unit(z, grad_out, grad_z, counts=(m,))
    taps = (2 if joined else multiplier) * d * d
    strips = tiles.strips("stencil_gradient", z, m, taps, unit=unit if multiplier <= 1 else 1)
    join = joins.gradients(primary, n * strips.splits, m, strips.blocks(m), count)
    arguments = common | join.arguments | {
        "grad_z2": grad_z2, "grad_z": grad_z, **launch.strides("to", grad_z), "UNIT": unit,
    }  # fmt: skip
    if joined:
        weights = partial(strips.splits, d * d, m)
        arguments["weights"] = weights
        strips.start(cheap_conv_bwd_kernel, z, m, taken(cheap_conv_bwd_kernel, arguments))
    else:
        strips.start(primary_epilogue_bwd_kernel, z, m, arguments)
    coefficients, primary_grad = join.finish()
    if multiplier > 1:
        strips = tiles.strips("stencil_gradient", z, m, 2 * d * d)
        weights = partial(strips.splits, d * d * multiplier, m)
        arguments = taken(cheap_weight_bwd_kernel, common) | {
            "grad_z2": grad_z2, "weights": weights, "UNIT": launch.unit(z, counts=(m,)),
        }  # fmt: skip
        strips.start(cheap_weight_bwd_kernel, z, m, arguments, multiplier)
    if multiplier:
        grad_cheap = launch.empty(tuple(cheap_weight.shape), cheap_weight.dtype, z.device)
        own = Totals() if totals is None else totals
        own.add(weights, grad_cheap, steps=(1, d * d * multiplier))
        if totals is None:
            own.start()
    empty = launch.empty((0,), z.dtype, z.device)
    none = EpilogueGradients(*[empty] * 4)
    return Gradients(
        grad_z, empty if grad_cheap is None else grad_cheap, primary_grad, cheap_grad or none, coefficients
    )


def ghost_module_bwd(
    grad_out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    primary: Epilogue,
    cheap_weight: torch.Tensor | None,
    cheap: Epilogue,
    out_channels: int,
    scale: torch.Tensor | None = None,
    batch: bool = False,
    residual: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    joins: Joins | None = None,
    totals: Totals | None = None,
) -> Gradients:
    """Gradients from x on.

    Args:
        scale: N x C, the excitation of x.
        batch: see ``ghost_tail_bwd``.
        residual: a map like x that is added to its gradient; not together with ``scale``.
        z: the primary convolution's result, channels_last, where the forward kept it; None: it is computed again.
        joins: those of the call, whose counters the first product sets to zero where they are not started; by default
            they are made here.
        totals: where the weights' gradients are joined, later; by default they are joined here.
    """
    n, c, height, width = x.shape
    m = weight.shape[0]
    checks.expect("primary_weight", weight, (m, c, 1, 1), x)
    checks.expect("input_scale", scale, (n, c), x)
    # With an excitation the products read a scaled copy. That is one more pass, which only direct calls take, since
    # modules in training apply the excitation before the operator.
    seen = x if scale is None else scaled_map(x, scale)
    checks.expect("kept_z1", z, (n, m, height, width), x)
    if z is None:
        z = launch.scratch(x, m)
        joins = joins or (Joins(x.device, started=False) if n else None)  # without images nothing is launched
        primary_product(seen, weight, to=z, joins=joins)
    own, grad_z = totals or Totals(), launch.scratch(x, m)
    found = ghost_tail_bwd(grad_out, z, primary, cheap_weight, cheap, out_channels, batch, grad_z, own, joins)
    coefficients = found.coefficients if batch else None
    grad_x, grad_weight = product_gradients(found.z, z, seen, weight, coefficients, residual=residual, totals=own)
    if totals is None:
        own.start()
    grad_scale = launch.empty((0,), x.dtype, x.device)
    if scale is not None:
        grad_scale = image_sums(x, grad_x).to(scale.dtype)
        grad_x = scaled_map(grad_x, scale)
    return found._replace(x=grad_x, weight=grad_weight, scale=grad_scale)
