"""A Ghost module that makes no less channels than it reads, in one launch, for large maps.

There memory traffic decides. y1 is never read back: a program recomputes a row of it for each column of the cheap
kernel on tensor cores that are idle otherwise. Both halves of the output's pixels are written soon after each other, so
that the second level cache joins them before they go to memory. Halves written by two launches end in parts of the
memory's units, which cost three times their bytes (docs/performance/gpu.md).
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl

from . import launch, tiles
from .activation import activate, affine, normalized, slopes
from .epilogue import Epilogue
from .maps import assume_multiple, assume_multiple_strides, load_taps, scaled_columns, store_rows, tile_coords
from .sums import OverSplits
from .taps import tap_arguments

MOST_CHANNELS = 128  # input channels, which are one step of the product
LEAST_WIDTH = 17  # pixels: a product takes 32 pixels of a row


@triton.jit
def store_second(
    z, center, scale, shift, neg_slope, out, row, columns, channels, W, out_c, out_h, out_w, wanted, residual,
    residual_c, residual_h, residual_w, ACT: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Stores a row of the cheap convolution z, [BW, BM], with its epilogue; see ``store_rows``."""
    v = activate(normalized(z, center, scale, shift, NORM), ACT, neg_slope[None, :])
    return store_rows(
        v, out, row, columns, channels, W, out_c, out_h, out_w, wanted, residual, residual_c, residual_h, residual_w
    )


@triton.jit  # specialised for all sizes, without which it spills in NCHW
def module_kernel(
    x, x_n, x_c, x_h, x_w, scale, weight,
    primary_bias, primary_gamma, primary_beta, primary_mean, primary_var, primary_eps, primary_slopes,
    primary_slopes_stride, primary_slope,
    cheap_weight, cheap_weight_c, cheap_weight_tap,
    cheap_bias, cheap_gamma, cheap_beta, cheap_mean, cheap_var, cheap_eps, cheap_slopes, cheap_slopes_stride,
    cheap_slope,
    out, out_n, out_c, out_h, out_w, residual, residual_n, residual_c, residual_h, residual_w, sums, per_value,
    N, H, W, C, M, OUT_CHANNELS, splits, per_split,
    PRIMARY_ACT: tl.constexpr, CHEAP_ACT: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr,
    UNIT_IN: tl.constexpr, UNIT: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Grid: see ``tile_coords``; blocks are of M. ``residual``: what is added last, or None; ``sums``: as of
    ``cheap_kernel``."""
    C, M, OUT_CHANNELS = assume_multiple(C, UNIT_IN), assume_multiple(M, UNIT), assume_multiple(OUT_CHANNELS, UNIT)
    x_n, x_h, x_w = assume_multiple_strides(x_n, x_h, x_w, UNIT_IN)
    out_n, out_h, out_w = assume_multiple_strides(out_n, out_h, out_w, UNIT)
    residual_n, residual_h, residual_w = assume_multiple_strides(residual_n, residual_h, residual_w, UNIT)
    # columns: [BW]; channels, wanted: [BM]
    image, split, group, columns, channels, wanted, top, bottom = tile_coords(M, H, W, splits, per_split, BW, BM, WIDE)
    in_output = wanted & (channels < OUT_CHANNELS - M)
    x += image * x_n
    out += image * out_n
    if residual is not None:
        residual += image * residual_n
    inner = tl.arange(0, BK)  # [BK]
    # b: [BK, BM]
    b = tl.load(
        weight + (channels[None, :] * C + inner[:, None]), mask=wanted[None, :] & (inner < C)[:, None], other=0.0
    )
    b = b.to(x.dtype.element_ty)
    if scale is not None:
        b = scaled_columns(b, scale + image * C, C, 0, BK)
    # primary_center, primary_scale, primary_shift: [BM]
    primary_center, primary_scale, primary_shift = affine(
        primary_bias, primary_gamma, primary_beta, primary_mean, primary_var, primary_eps, channels, wanted
    )  # fmt: skip
    # primary_neg_slope: [BM]
    primary_neg_slope = slopes(primary_slopes, primary_slopes_stride, channels, wanted, primary_slope, PRIMARY_ACT)
    # cheap_center, cheap_scale, cheap_shift: [BM]
    cheap_center, cheap_scale, cheap_shift = affine(
        cheap_bias, cheap_gamma, cheap_beta, cheap_mean, cheap_var, cheap_eps, channels, in_output
    )
    cheap_neg_slope = slopes(cheap_slopes, cheap_slopes_stride, channels, in_output, cheap_slope, CHEAP_ACT)  # [BM]
    taps = load_taps(cheap_weight, cheap_weight_c, cheap_weight_tap, channels, in_output, D)  # D * D of [BM]
    zeros = tl.zeros((BW, BM), tl.float32)
    acc_next = (zeros,) * (D - 1)  # partial sums of the next D - 1 results
    first, second = zeros, zeros
    # Only rows of the map, so that no row has a mask of its own.
    start, end = tl.maximum(top - D // 2, 0), tl.minimum(bottom + D // 2, H)
    for below in range(start, end):
        acc, y1 = acc_next + (zeros,), zeros  # D of [BW, BM], and one
        for j in tl.static_range(D):
            there = columns + (j - D // 2)
            inside = (there >= 0) & (there < W)  # [BW]
            # at: [BW, BK]
            at = x + below * x_h + (there[:, None] * x_w + inner[None, :].to(columns.dtype) * x_c)
            a = tl.load(at, mask=inside[:, None] & (inner < C)[None, :], other=0.0)  # [BW, BK]
            z = tl.dot(a, b, input_precision=PRECISION)  # [BW, BM]
            z = normalized(z, primary_center, primary_scale, primary_shift, primary_mean is not None)
            v = activate(z, PRIMARY_ACT, primary_neg_slope[None, :])  # [BW, BM]
            if j == D // 2:
                y1 = v  # what lanes without a pixel have counts only for themselves
            else:
                v = tl.where(inside[:, None], v, 0.0)
            for i in tl.static_range(D):
                acc = acc[:i] + (acc[i] + v * taps[(D - 1 - i) * D + j][None, :],) + acc[i + 1 :]
        acc_next = acc[1:]
        if (below >= top) & (below < bottom):
            stored = store_rows(
                y1, out, below, columns, channels, W, out_c, out_h, out_w, wanted, residual, residual_c, residual_h,
                residual_w,
            )  # fmt: skip
            if sums is not None:
                first += stored
        if below - D // 2 >= top:
            stored = store_second(
                acc[0], cheap_center, cheap_scale, cheap_shift, cheap_neg_slope, out, below - D // 2, columns,
                M + channels, W, out_c, out_h, out_w, in_output, residual, residual_c, residual_h, residual_w,
                CHEAP_ACT, cheap_mean is not None,
            )  # fmt: skip
            if sums is not None:
                second += stored
    for i in tl.static_range(D // 2):  # results that read rows past the map's last
        row = end - D // 2 + i
        if (row >= top) & (row < bottom):
            stored = store_second(
                acc_next[i], cheap_center, cheap_scale, cheap_shift, cheap_neg_slope, out, row, columns, M + channels,
                W, out_c, out_h, out_w, in_output, residual, residual_c, residual_h, residual_w, CHEAP_ACT,
                cheap_mean is not None,
            )  # fmt: skip
            if sums is not None:
                second += stored
    if sums is not None:
        sums += (split.to(tl.int64) * N + image) * OUT_CHANNELS
        joined = tl.sum(first, axis=0) * per_value  # [BM]
        tl.store(sums + channels, joined.to(sums.dtype.element_ty), mask=wanted)
        joined = tl.sum(second, axis=0) * per_value  # [BM]
        tl.store(sums + M + channels, joined.to(sums.dtype.element_ty), mask=in_output)


def takes(x: torch.Tensor, cheap_weight: torch.Tensor, m: int, residual: torch.Tensor | None, squeeze: bool) -> bool:
    """Whether one launch is faster than two: in half precision, since products in float32 cost time, with at least as
    much output as input, and a residual only where there are few channels, and registers since no means are taken."""
    c, width, d = x.shape[1], x.shape[3], cheap_weight.shape[-1]
    if x.dtype == torch.float32 or width < LEAST_WIDTH:
        return False
    if residual is not None and (m > tiles.LEAST_MADE or squeeze):
        return False
    return d <= 3 and cheap_weight.shape[0] == m and c <= min(MOST_CHANNELS, 2 * m)


def launch_module(
    x: torch.Tensor, weight: torch.Tensor, primary: Epilogue, cheap_weight: torch.Tensor, cheap: Epilogue,
    out: torch.Tensor, scale: torch.Tensor | None, residual: torch.Tensor | None, squeeze: torch.Tensor | None,
) -> None:  # fmt: skip
    """The module of x into ``out``, and its means into ``squeeze``, N x channels; see
    ``forward.ghost_module_fwd``."""
    n, c, height, width = x.shape
    m, out_channels = weight.shape[0], out.shape[1]
    strips = tiles.products_of_strips("module", x, m)
    if m <= tiles.LEAST_MADE and residual is None:
        # So many warps are resident that these hide ordinary loads, which find the columns beside in the first cache.
        strips = strips._replace(tile=replace(strips.tile, stages=1))
    sums = OverSplits(squeeze, strips.splits, 1.0 / (height * width))
    arguments = {
        **launch.maps(x=x, out=out, residual=residual), "scale": launch.vector(scale), "weight": launch.vector(weight),
        **primary.arguments("primary"), **tap_arguments("cheap_weight", cheap_weight), **cheap.arguments("cheap"),
        **sums.arguments, "N": n, "H": height, "W": width, "C": c, "M": m, "OUT_CHANNELS": out_channels,
        "PRECISION": launch.precision(x.dtype), "D": cheap_weight.shape[-1], "WIDE": launch.is_wide(x, out, residual),
        "UNIT_IN": launch.unit(x, counts=(c,)), "UNIT": launch.unit(out, residual, counts=(m, out_channels)),
        "BK": max(1 << (c - 1).bit_length(), tiles.LEAST),
    }  # fmt: skip
    strips.start(module_kernel, x, m, arguments)
    sums.join()
