"""The first convolution of a net, which is dense and has few input channels, with its epilogue in one pass."""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl

from . import launch, tiles
from .activation import activate, affine, normalized, slopes
from .epilogue import Epilogue
from .launch_cache import cached_launches
from .maps import assume_multiple, assume_multiple_strides, tile_coords

MOST = 256  # inputs of an output value, which are one step of the product


@triton.jit
def convolution_kernel(
    x, x_n, x_c, x_h, x_w, weight,
    conv_bias, conv_gamma, conv_beta, conv_mean, conv_var, conv_eps, conv_slopes, conv_slopes_stride, conv_slope,
    out, out_n, out_c, out_h, out_w, IN_H, IN_W, H, W, M, splits, per_split,
    C: tl.constexpr, D: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, CONV_ACT: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr,
    BW: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Grid: see ``tile_coords``; strips are of ``out`` (H x W), blocks of M. A row is a product over the C x D x D
    inputs of each pixel, whose places in x do not depend on the row."""
    M = assume_multiple(M, UNIT)
    out_n, out_h, out_w = assume_multiple_strides(out_n, out_h, out_w, UNIT)
    # columns: [BW]; channels, wanted: [BM]
    image, split, group, columns, channels, wanted, top, bottom = tile_coords(M, H, W, splits, per_split, BW, BM, WIDE)
    x += image * x_n
    out += image * out_n
    # center, scale, shift: [BM]
    center, scale, shift = affine(conv_bias, conv_gamma, conv_beta, conv_mean, conv_var, conv_eps, channels, wanted)
    neg_slope = slopes(conv_slopes, conv_slopes_stride, channels, wanted, conv_slope, CONV_ACT)  # [BM]
    k = tl.arange(0, BK)  # inputs of a pixel in memory's order where maps are channels_last
    i, j, c = k // (D * C), k // C % D, k % C  # [BK] each
    there = k < C * D * D
    at = weight + (channels[None, :] * (C * D * D) + (c * (D * D) + i * D + j)[:, None])  # [BK, BM]
    b = tl.load(at, mask=there[:, None] & wanted[None, :], other=0.0).to(x.dtype.element_ty)  # [BK, BM]
    if WIDE:
        i, j, c = i.to(tl.int64), j.to(tl.int64), c.to(tl.int64)
    left = columns * STRIDE - PADDING  # [BW]
    seen = left[:, None] + j[None, :]  # [BW, BK]
    inside = (seen >= 0) & (seen < IN_W) & (columns < W)[:, None] & there[None, :]  # [BW, BK]
    inputs = seen * x_w + (i * x_h + c * x_c)[None, :]  # [BW, BK]
    mask = (columns < W)[:, None] & wanted[None, :]  # [BW, BM]
    to = columns[:, None] * out_w + channels[None, :] * out_c  # [BW, BM]
    for row in range(top, bottom):
        above = row * STRIDE - PADDING
        # a: [BW, BK]
        a = tl.load(x + above * x_h + inputs, mask=inside & ((above + i >= 0) & (above + i < IN_H))[None, :], other=0.0)
        z = tl.dot(a, b, input_precision=PRECISION)  # [BW, BM]
        v = activate(normalized(z, center, scale, shift, conv_mean is not None), CONV_ACT, neg_slope[None, :])
        tl.store(out + row * out_h + to, v.to(out.dtype.element_ty), mask=mask)


@cached_launches
def convolution(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, slopes: torch.Tensor | None, stride: int,
    padding: int, act: int, slope: float,
) -> torch.Tensor:  # fmt: skip
    """act(conv(x) + bias); weight M x C x D x D of at most ``MOST`` numbers a filter."""
    epilogue = Epilogue(bias, act, slope, slopes)
    n, c, *sides = x.shape
    m, d = weight.shape[0], weight.shape[-1]
    height, width = ((side + 2 * padding - d) // stride + 1 for side in sides)
    out = launch.new_map(x, m, sides=(height, width))
    depth = max(1 << (c * d * d - 1).bit_length(), tiles.LEAST)
    tile = tiles.lookup("product", tiles.shape_class(out), x.device)
    columns = min(max(1 << (width - 1).bit_length(), tiles.LEAST), max(tile.pixels * tile.depth // depth, tiles.LEAST))
    block = min(max(1 << (m - 1).bit_length(), tiles.LEAST), tile.channels)
    tile = replace(tile, channels=block, columns=columns, warps=4, stages=1)
    across = launch.cdiv(width, columns)
    per_split = tiles.rows_of_strips(height, n * across * launch.cdiv(m, block))
    arguments = {
        **launch.maps(x=x, out=out), "weight": launch.vector(weight), **epilogue.arguments("conv"), "IN_H": sides[0],
        "IN_W": sides[1], "H": height, "W": width, "M": m, "C": c, "D": d, "STRIDE": stride, "PADDING": padding,
        "PRECISION": launch.precision(x.dtype), "WIDE": launch.is_wide(x, out), "UNIT": launch.unit(out, counts=(m,)),
        "BK": depth,
    }  # fmt: skip
    strips = tiles.Strips(tile, across * launch.cdiv(height, per_split), per_split)
    strips.start(convolution_kernel, x, m, arguments)
    return out
