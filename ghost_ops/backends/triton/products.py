"""The primary product on its own, with its batch statistics, and how groups' statistics are joined."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import launch, tiles
from .maps import block_of, in_batch, merge, numbers, product, store_partial, whole, whole_strides


@triton.jit
def product_kernel(
    x, x_n, x_c, x_h, x_w, weight, z, statistics, H, W, C, M, PIXELS, per_group,
    PRECISION: tl.constexpr, WIDE: tl.constexpr, UNIT_IN: tl.constexpr, UNIT: tl.constexpr, BP: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Grid: groups of pixel tiles x blocks of M. z (pixels x M) and the groups' statistics: either may be None."""
    C, M = whole(C, UNIT_IN), whole(M, UNIT)
    x_n, x_h, x_w = whole_strides(x_n, x_h, x_w, UNIT_IN)
    blocks = tl.cdiv(M, BM)
    group = tl.program_id(0) // blocks
    channels = block_of(tl.program_id(0) % blocks, BM, WIDE)
    wanted = channels < M
    count = 0.0
    mean = tl.zeros((BM,), tl.float32)
    m2 = tl.zeros((BM,), tl.float32)
    for t in range(per_group):
        pixels = numbers(group, per_group, t, BP, WIDE)
        valid = pixels < PIXELS
        places = in_batch(pixels, H, W, x_n, x_h, x_w, WIDE)
        acc = product(x, places, valid, x_c, None, weight, C, channels, wanted, PRECISION, BP, BM, BK)
        if z is not None:
            to = z + (pixels[:, None] * M + channels[None, :])
            tl.store(to, acc.to(z.dtype.element_ty), mask=valid[:, None] & wanted[None, :])
        if statistics is not None:
            count, mean, m2 = merge(count, mean, m2, acc, valid)
    if statistics is not None:
        store_partial(statistics, group, channels, M, wanted, count + tl.zeros((BM,), tl.float32), mean, m2)


def primary_product(
    x: torch.Tensor, weight: torch.Tensor, store: bool = True, statistics: bool = False
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """z = conv1x1(x) in x's dtype, channels_last, without bias; and groups x 3 x m statistics of it, unrounded."""
    n, c, height, width = x.shape
    m = weight.shape[0]
    tile, per_group, groups = tiles.flat("product", x, m, c)
    z = launch.scratch(x, m) if store else None
    partials = torch.empty((groups, 3, m), dtype=torch.float32, device=x.device) if statistics else None
    arguments = {
        "x": x, **launch.strides("x", x), "weight": launch.vector(weight), "z": z, "statistics": partials, "H": height,
        "W": width, "C": c, "M": m, "PIXELS": n * height * width, "per_group": per_group,
        "PRECISION": launch.precision(x.dtype), "WIDE": launch.is_wide(x, z, images=True),
        "UNIT_IN": launch.unit(x, counts=(c,)), "UNIT": launch.unit(counts=(m,)),
        "BP": tile.pixels, "BM": tile.channels, "BK": tile.depth,
    }  # fmt: skip
    with launch.on_device_of(x):
        grid = (groups * launch.cdiv(m, tile.channels),)
        launch.run(product_kernel, grid, arguments, tile.warps, tile.stages)
    return z, partials


@triton.jit
def join_kernel(
    partials, mean_out, var_out, total, groups, CHANNELS, BG: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """Means, then variances around them, of blocks of channels: nothing cancels."""
    channels = tl.program_id(0) * BC + tl.arange(0, BC)
    wanted = channels < CHANNELS
    origin = tl.load(partials + CHANNELS + channels, mask=wanted, other=0.0)
    moved = tl.zeros((BC,), tl.float32)
    for start in range(0, groups, BG):
        group = start + tl.arange(0, BG)
        mask = (group < groups)[:, None] & wanted[None, :]
        at = partials + group[:, None].to(tl.int64) * 3 * CHANNELS + channels[None, :]
        count = tl.load(at, mask=mask, other=0.0)
        mean = tl.load(at + CHANNELS, mask=mask, other=0.0)
        moved += tl.sum(tl.where(mask, count * (mean - origin[None, :]), 0.0), axis=0)
    center = origin + moved / total
    squares = tl.zeros((BC,), tl.float32)
    for start in range(0, groups, BG):
        group = start + tl.arange(0, BG)
        mask = (group < groups)[:, None] & wanted[None, :]
        at = partials + group[:, None].to(tl.int64) * 3 * CHANNELS + channels[None, :]
        count = tl.load(at, mask=mask, other=0.0)
        off = tl.load(at + CHANNELS, mask=mask, other=0.0) - center[None, :]
        m2 = tl.load(at + 2 * CHANNELS, mask=mask, other=0.0)
        squares += tl.sum(tl.where(mask, m2 + count * off * off, 0.0), axis=0)
    tl.store(mean_out + channels, center, mask=wanted)
    tl.store(var_out + channels, squares / total, mask=wanted)


def join(partials: torch.Tensor, total: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance (float32) of each channel from groups x 3 x channels statistics."""
    groups, _, channels = partials.shape
    mean, var = (torch.empty(channels, dtype=torch.float32, device=partials.device) for _ in range(2))
    arguments = {
        "partials": partials, "mean_out": mean, "var_out": var, "total": float(total), "groups": groups,
        "CHANNELS": channels, "BG": 256, "BC": 16,
    }  # fmt: skip
    with launch.on_device_of(partials):
        launch.run(join_kernel, (launch.cdiv(channels, 16),), arguments, warps=8, stages=1)
    return mean, var
