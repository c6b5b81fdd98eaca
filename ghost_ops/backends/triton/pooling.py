"""The mean of 2 x 2 pixels, and its gradient."""

from __future__ import annotations

import torch
import triton.language as tl

from . import launch, tiles
from .jit import kernel
from .maps import assume_multiple, assume_multiple_strides, tile_coords


@kernel
def pool_kernel(
    x, x_n, x_c, x_h, x_w, out, out_n, out_c, out_h, out_w, H, W, C, splits, per_split, vectors,
    WIDE: tl.constexpr, UNIT: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Grid: see ``tile_coords``; strips are of ``out`` (H x W), blocks of C."""
    C = assume_multiple(C, UNIT)
    x_n, x_h, x_w = assume_multiple_strides(x_n, x_h, x_w, UNIT)
    out_n, out_h, out_w = assume_multiple_strides(out_n, out_h, out_w, UNIT)
    # columns: [BW]; channels, wanted: [BM]
    image, split, group, columns, channels, wanted, top, bottom = tile_coords(
        C, H, W, splits, per_split, BW, BM, WIDE, vectors
    )
    x += image * x_n
    out += image * out_n
    mask = (columns < W)[:, None] & wanted  # [BW, BM]
    for row in range(top, bottom):
        v = tl.zeros((BW, BM), tl.float32)
        for p in tl.static_range(4):
            at = (2 * row + p // 2) * x_h + (2 * columns + p % 2)[:, None] * x_w + channels * x_c
            v += tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        at = row * out_h + columns[:, None] * out_w + channels * out_c
        tl.store(out + at, (v * 0.25).to(out.dtype.element_ty), mask=mask)


@kernel
def pool_bwd_kernel(
    grad, grad_n, grad_c, grad_h, grad_w, to, to_n, to_c, to_h, to_w, OUT_H, OUT_W, H, W, C, splits, per_split, vectors,
    WIDE: tl.constexpr, UNIT: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Grid: see ``tile_coords``; strips are of ``to`` (H x W), blocks of C. A last odd row or column gets zeros."""
    C = assume_multiple(C, UNIT)
    grad_n, grad_h, grad_w = assume_multiple_strides(grad_n, grad_h, grad_w, UNIT)
    to_n, to_h, to_w = assume_multiple_strides(to_n, to_h, to_w, UNIT)
    # columns: [BW]; channels, wanted: [BM]
    image, split, group, columns, channels, wanted, top, bottom = tile_coords(
        C, H, W, splits, per_split, BW, BM, WIDE, vectors
    )
    grad += image * grad_n
    to += image * to_n
    mask = (columns < W)[:, None] & wanted  # [BW, BM]
    pooled = mask & (columns // 2 < OUT_W)[:, None]  # [BW, BM]
    for row in range(top, bottom):
        at = (row // 2) * grad_h + (columns // 2)[:, None] * grad_w + channels * grad_c
        v = tl.load(grad + at, mask=pooled & (row // 2 < OUT_H), other=0.0).to(tl.float32) * 0.25  # [BW, BM]
        at = row * to_h + columns[:, None] * to_w + channels * to_c
        tl.store(to + at, v.to(to.dtype.element_ty), mask=mask)


def average_pool(x: torch.Tensor) -> torch.Tensor:
    """The means of 2 x 2 pixels of x, of any strides, as a scratch map; a last odd row or column is left out."""
    n, c, height, width = x.shape
    out = launch.scratch(x, c, (height // 2, width // 2))
    unit = launch.unit(x, out, counts=(c,))
    arguments = {
        **launch.maps(x=x, out=out), "H": height // 2, "W": width // 2, "C": c, "WIDE": launch.is_wide(x, out),
        "UNIT": unit,
    }  # fmt: skip
    tiles.strips("stencil", out, c, unit=unit).start(pool_kernel, out, c, arguments)
    return out


def average_pool_gradient(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The gradient of x, in its memory format, from that of ``average_pool``."""
    to, c = launch.new_map(x, x.shape[1]), x.shape[1]
    unit = launch.unit(grad, to, counts=(c,))
    arguments = {
        **launch.maps(grad=grad, to=to), "OUT_H": grad.shape[2], "OUT_W": grad.shape[3], "H": x.shape[2],
        "W": x.shape[3], "C": c, "WIDE": launch.is_wide(grad, to), "UNIT": unit,
    }  # fmt: skip
    tiles.strips("stencil", to, c, unit=unit).start(pool_bwd_kernel, to, c, arguments)
    return to
