"""The backward of Ghost modules: the passes of docs/gradients.md over maps that only kernels see.

z1 is made once (unless given) and kept in scratch memory with the maps' dtype, as eager PyTorch keeps it. Then no pass
needs a halo of its own: neighbours of a pixel are read from memory. Partial sums, one row of three a group of pixel
tiles, are joined by ``torch.sum``, which has a fixed order and is nothing beside a pass over a map.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..activation import PRELU
from . import checks, launch, tiles
from .gradient_kernels import cheap_gradient, input_gradient, primary_gradient, weight_gradient
from .products import primary_product
from .single_pass import Half
from .squeeze_excite import image_sums, scaled_map


class HalfGradients(NamedTuple):
    """Gradients of what follows a convolution, empty where there is none; ``sums`` are those over its BatchNorm."""

    bias: torch.Tensor
    slopes: torch.Tensor
    gamma: torch.Tensor
    beta: torch.Tensor


class Gradients(NamedTuple):
    """Gradients of a module from z, or from x on."""

    z: torch.Tensor
    cheap_weight: torch.Tensor
    one: HalfGradients
    two: HalfGradients
    sums: torch.Tensor
    x: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    scale: torch.Tensor | None = None


def _flat(tile: tiles.Tile, per_group: int, z: torch.Tensor, m: int, *maps: torch.Tensor | None) -> dict:
    """Arguments that all of the kernels have, over the pixels of z; ``maps`` are the others that they address."""
    return {
        "H": z.shape[2], "W": z.shape[3], "M": m, "PIXELS": z.shape[0] * z.shape[2] * z.shape[3],
        "per_group": per_group, "WIDE": launch.is_wide(z, *maps, images=True), "UNIT": launch.unit(counts=(m,)),
        "BP": tile.pixels, "BM": tile.channels,
    }  # fmt: skip


def _half(sums: torch.Tensor, half: Half, like: torch.Tensor) -> HalfGradients:
    """From Σ g, Σ g (z - mean) and PReLU's sum."""
    empty = like.new_empty(0)

    def given(parameter: torch.Tensor | None, value: torch.Tensor) -> torch.Tensor:
        return empty if parameter is None else value.to(parameter.dtype)

    slopes, gamma = empty, empty
    if half.act == PRELU:
        slopes = given(half.weight, sums[2] if half.weight.numel() > 1 else sums[2].sum().reshape(1))
    if half.gamma is not None:
        gamma = given(half.gamma, sums[1] * torch.rsqrt(half.var + half.eps))
    return HalfGradients(given(half.bias, sums[0]), slopes, gamma, given(half.beta, sums[0]))


def through_halves(
    grad_out: torch.Tensor,
    z: torch.Tensor,
    one: Half,
    cheap_weight: torch.Tensor | None,
    two: Half,
    out_channels: int,
    batch: bool = False,
    grad_z: torch.Tensor | None = None,
) -> Gradients:
    """Gradients from the primary convolution's result z on.

    Args:
        grad_out: N x out_channels x H x W of any strides, also expanded.
        batch: the BatchNorms of both halves are over batch statistics. Then ``Gradients.z`` is that of the first
            BatchNorm's result, and ``sums`` what the last pass needs to go through the BatchNorm too.
        grad_z: where to write; by default a map in z's memory format.
    """
    checks.expect_module(z, None, one, cheap_weight, two, out_channels)
    checks.expect("grad_out", grad_out, (z.shape[0], out_channels, *z.shape[2:]), z)
    n, m, height, width = z.shape
    multiplier = 0 if cheap_weight is None else cheap_weight.shape[0] // m
    made, d = m * multiplier, 1 if cheap_weight is None else cheap_weight.shape[-1]
    count = float(n * height * width)
    grad_z = launch.new_map(z, m) if grad_z is None else grad_z
    w2 = launch.vector(cheap_weight)
    grad_made = launch.scratch(z, made) if multiplier else None
    tile, per_group, groups = tiles.flat("depthwise", z, m)
    blocks = launch.cdiv(m, tile.channels)
    common = {
        "z": z, **launch.strides("z", z), "grad": grad_out, **launch.strides("grad", grad_out), **one.arguments("one"),
        "cheap_weight": w2, "D": d, "MULTIPLIER": multiplier,
        "KEPT": out_channels, **_flat(tile, per_group, z, m, grad_out, grad_z, grad_made),
        "UNIT": launch.unit(z, grad_out, grad_z, counts=(m, out_channels)),
    }  # fmt: skip

    def partial(rows: int, channels: int) -> torch.Tensor:
        return torch.empty((groups, rows, channels), dtype=torch.float32, device=z.device)

    two_sums = weights = None
    with launch.on_device_of(z):
        if multiplier:
            second = {**common, **two.arguments("two"), "count": count}

            def cheap(store: torch.Tensor | None, sums: torch.Tensor | None, partials: torch.Tensor | None) -> None:
                arguments = {**second, "grad_made": store, "two_sums": sums, "partials": partials}
                launch.run(cheap_gradient, (groups * blocks,), arguments, tile.warps, tile.stages)

            partials = partial(3, made)
            cheap(None if batch else grad_made, None, partials)
            two_sums = partials.sum(0)
            if batch:
                cheap(grad_made, two_sums, None)
            weights = partial(d * d * multiplier, m)
        partials = partial(3, m)
        first = common | {
            "grad_made": grad_made, "grad_z": grad_z, **launch.strides("to", grad_z), "partials": partials,
            "weights": weights, "TAPS": max(16, 1 << (d * d * max(multiplier, 1) - 1).bit_length()),
        }  # fmt: skip
        launch.run(primary_gradient, (groups * blocks,), first, tile.warps, tile.stages)
        one_sums = partials.sum(0)
    grad_cheap = z.new_empty(0)
    if multiplier:
        grad_cheap = weights.sum(0).view(multiplier, d, d, m).permute(3, 0, 1, 2).reshape(cheap_weight.shape)
        grad_cheap = grad_cheap.to(cheap_weight.dtype).contiguous()
    empty = HalfGradients(*[z.new_empty(0)] * 4)
    return Gradients(
        grad_z, grad_cheap, _half(one_sums, one, z), _half(two_sums, two, z) if multiplier else empty, one_sums
    )


def through_module(
    grad_out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    one: Half,
    cheap_weight: torch.Tensor | None,
    two: Half,
    out_channels: int,
    scale: torch.Tensor | None = None,
    batch: bool = False,
) -> Gradients:
    """Gradients from x on; ``scale`` (N x C) is the excitation of x."""
    n, c, height, width = x.shape
    m = weight.shape[0]
    checks.expect("primary_weight", weight, (m, c, 1, 1), x)
    checks.expect("input_scale", scale, (n, c), x)
    # With an excitation the products read a scaled copy: one pass more, on a route that only direct calls take, since
    # modules under training apply the excitation before the operator.
    seen = x if scale is None else scaled_map(x, scale)
    z = primary_product(seen, weight)[0]
    found = through_halves(grad_out, z, one, cheap_weight, two, out_channels, batch, launch.scratch(z, m))
    grad_x, w1, count = launch.new_map(x, c), launch.vector(weight), float(n * height * width)
    norm = {"sums": found.sums if batch else None, "count": count, **one.arguments("one")}
    norm = {k: v for k, v in norm.items() if k in ("sums", "count", "one_gamma", "one_mean", "one_var", "one_eps")}
    with launch.on_device_of(x):
        tile, per_group, groups = tiles.flat("product", x, c, m)
        arguments = {
            "grad_z": found.z, "z": z, **norm, "weight": w1, "grad_x": grad_x, **launch.strides("to", grad_x), "C": c,
            **_flat(tile, per_group, x, m, z, grad_x), "UNIT_IN": launch.unit(grad_x, counts=(c,)), "BK": tile.depth, "PRECISION": launch.precision(x.dtype),
        }  # fmt: skip
        grid = (groups * launch.cdiv(c, tile.channels),)
        launch.run(input_gradient, grid, arguments, tile.warps, tile.stages)

        tile, per_group, groups = tiles.flat("weight_gradient", x, m, c)
        blocks = launch.cdiv(m, tile.channels) * launch.cdiv(c, tile.depth)
        wanted = max(min(groups, launch.cdiv(tiles.GROUPS, blocks)), min(groups, 1))
        per_group = launch.cdiv(groups * per_group, max(wanted, 1))
        groups = launch.cdiv(launch.cdiv(int(count), tile.pixels), max(per_group, 1))
        partials = torch.empty((groups, m, c), dtype=torch.float32, device=x.device)
        arguments = {
            "grad_z": found.z, "z": z, **norm, "x": seen, **launch.strides("x", seen), "partials": partials, "C": c,
            **_flat(tile, per_group, x, m, z, seen), "UNIT_IN": launch.unit(seen, counts=(c,)), "BC": tile.depth, "PRECISION": launch.precision(x.dtype),
        }  # fmt: skip
        launch.run(weight_gradient, (groups * blocks,), arguments, tile.warps, tile.stages)
    grad_weight = partials.sum(0).view(weight.shape).to(weight.dtype)
    grad_scale = x.new_empty(0)
    if scale is not None:
        grad_scale = image_sums(x, grad_x).to(scale.dtype)
        grad_x = scaled_map(grad_x, scale)
    return found._replace(x=grad_x, weight=grad_weight, scale=grad_scale)
