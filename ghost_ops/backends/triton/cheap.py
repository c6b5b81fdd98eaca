"""The cheap convolution of y1: its statistics, or the output with residual and squeeze."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import launch, tiles
from .activation import activate, affine, slopes
from .half import NOTHING, Half
from .maps import across_pixels, depthwise, finish_moments, share_of, store_partial, whole, whole_strides, window_of
from .sums import OverSplits, by_taps


@triton.jit
def cheap_kernel(
    y, y_n, y_c, y_h, y_w,
    one_bias, one_gamma, one_beta, one_mean, one_var, one_eps, one_slopes, one_slopes_stride, one_slope,
    cheap_weight,
    two_bias, two_gamma, two_beta, two_mean, two_var, two_eps, two_slopes, two_slopes_stride, two_slope,
    out, out_n, out_c, out_h, out_w, residual, residual_n, residual_c, residual_h, residual_w,
    sums, per_value, statistics, N, H, W, M, KEPT, splits, per_split,
    ONE_ACT: tl.constexpr, TWO_ACT: tl.constexpr, AFFINE: tl.constexpr, D: tl.constexpr, MULTIPLIER: tl.constexpr,
    WIDE: tl.constexpr, UNIT: tl.constexpr, BR: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Grid: images x splits of their windows x blocks of M.

    With AFFINE y is the primary convolution's result, and y1 is made of it here. The first half of ``out`` is written
    then, and where a ``residual`` is added; else it is y itself. ``statistics``: of the cheap convolution, in place of
    the second half. ``sums``: splits x images x KEPT sums of the output, times ``per_value``.
    """
    M, KEPT = whole(M, UNIT), whole(KEPT, UNIT)
    y_n, y_h, y_w = whole_strides(y_n, y_h, y_w, UNIT)
    out_n, out_h, out_w = whole_strides(out_n, out_h, out_w, UNIT)
    residual_n, residual_h, residual_w = whole_strides(residual_n, residual_h, residual_w, UNIT)
    image, split, group, channels, wanted, begin, end = share_of(M, H, W, splits, per_split, BR, BW, BM, WIDE)
    y += image * y_n
    out += image * out_n
    if residual is not None:
        residual += image * residual_n
    if sums is not None:
        sums += (split.to(tl.int64) * N + image) * KEPT
    one_center, one_scale, one_shift = affine(
        one_bias, one_gamma, one_beta, one_mean, one_var, one_eps, channels, wanted
    )
    one_bent = slopes(one_slopes, one_slopes_stride, channels, wanted, one_slope, ONE_ACT)
    MADE = M * MULTIPLIER
    FIRST: tl.constexpr = AFFINE or (residual is not None) or (sums is not None)
    for q in tl.static_range(MULTIPLIER):
        made = channels * MULTIPLIER + q
        kept = wanted & (made < KEPT - M)
        center, by, shift = affine(two_bias, two_gamma, two_beta, two_mean, two_var, two_eps, made, kept)
        bent = slopes(two_slopes, two_slopes_stride, made, kept, two_slope, TWO_ACT)
        first = tl.zeros((BR, BW, BM), tl.float32)
        found = tl.zeros((BR, BW, BM), tl.float32)
        squares = tl.zeros((BR, BW, BM), tl.float32)
        origin = tl.zeros((BM,), tl.float32)
        count = begin * 0
        for t in range(begin, end):
            rows, columns, valid, size = window_of(t, H, W, BR, BW, WIDE)
            z = depthwise(
                y, rows, columns, channels, H, W, y_c, y_h, y_w, cheap_weight, made, MADE, kept, one_center, one_scale,
                one_shift, one_bent, ONE_ACT, AFFINE, D, BR, BW, BM,
            )  # fmt: skip
            if (q == 0) and FIRST:
                mask = valid & wanted[None, None, :]
                at = (rows * y_h + columns * y_w) + channels[None, None, :] * y_c
                v = tl.load(y + at, mask=mask, other=0.0).to(tl.float32)
                if AFFINE:
                    v = (v - one_center[None, None, :]) * one_scale[None, None, :] + one_shift[None, None, :]
                    v = activate(v, ONE_ACT, one_bent[None, None, :])
                if residual is not None:
                    at = (rows * residual_h + columns * residual_w) + channels[None, None, :] * residual_c
                    v += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
                if AFFINE or (residual is not None):
                    at = (rows * out_h + columns * out_w) + channels[None, None, :] * out_c
                    tl.store(out + at, v.to(out.dtype.element_ty), mask=mask)
                if sums is not None:
                    first += tl.where(mask, v, 0.0)
            mask = valid & kept[None, None, :]
            if statistics is not None:
                if t == begin:
                    origin = across_pixels(tl.where(mask, z, 0.0), BR, BW, BM) / size
                apart = tl.where(mask, z - origin[None, None, :], 0.0)
                found += apart
                squares += apart * apart
                count += size
            else:
                v = (z - center[None, None, :]) * by[None, None, :] + shift[None, None, :]
                v = activate(v, TWO_ACT, bent[None, None, :])
                if residual is not None:
                    at = (rows * residual_h + columns * residual_w) + (M + made)[None, None, :] * residual_c
                    v += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
                at = (rows * out_h + columns * out_w) + (M + made)[None, None, :] * out_c
                tl.store(out + at, v.to(out.dtype.element_ty), mask=mask)
                if sums is not None:
                    found += tl.where(mask, v, 0.0)
        if statistics is not None:
            values = count.to(tl.float32) + tl.zeros((BM,), tl.float32)
            mean, m2 = finish_moments(
                across_pixels(found, BR, BW, BM), across_pixels(squares, BR, BW, BM), origin, values
            )  # fmt: skip
            store_partial(statistics, group, made, KEPT - M, kept, values, mean, m2)
        elif sums is not None:
            joined = across_pixels(found, BR, BW, BM) * per_value
            tl.store(sums + M + made, joined.to(sums.dtype.element_ty), mask=kept)
        if (q == 0) and (sums is not None):
            joined = across_pixels(first, BR, BW, BM) * per_value
            tl.store(sums + channels, joined.to(sums.dtype.element_ty), mask=wanted)


def cheap_half(
    y: torch.Tensor,
    out: torch.Tensor,
    weight: torch.Tensor,
    two: Half,
    *,
    m: int,
    one: Half | None = None,
    residual: torch.Tensor | None = None,
    squeeze: torch.Tensor | None = None,
    statistics: bool = False,
) -> torch.Tensor | None:
    """The output's channels from m on, of y1, which is the first m channels of y.

    Args:
        weight: m(s - 1) x 1 x d x d.
        one: then y is the primary convolution's result, what follows that is done here, and the output's first m
            channels are written.
        residual: of the output, whose first m channels are written then; y is another map.
        squeeze: where means of the output go, N x channels.
        statistics: return groups' statistics of the convolution (groups x 3 x m(s - 1)) in place of its half.
    """
    n, kept, height, width = out.shape
    multiplier = weight.shape[0] // m
    tile, splits, per_split = tiles.windows("stencil", y, m)
    partials, sums = None, OverSplits(squeeze, splits, 1.0 / (height * width))
    if statistics:
        kept = m * (1 + multiplier)
        partials = launch.empty((n * splits, 3, m * multiplier), torch.float32, y.device)
    arguments = {
        "y": y, **launch.strides("y", y), **(one or NOTHING).arguments("one"), "AFFINE": one is not None,
        "cheap_weight": by_taps(weight), **two.arguments("two"), "out": out, **launch.strides("out", out),
        "residual": residual, **launch.strides("residual", residual), **sums.arguments,
        "statistics": partials, "N": n, "H": height, "W": width, "M": m, "KEPT": kept,
        **tile.window(splits, per_split), "D": weight.shape[-1], "MULTIPLIER": multiplier,
        "WIDE": launch.is_wide(y, out, residual), "UNIT": launch.unit(y, out, residual, counts=(m, kept)),
    }  # fmt: skip
    with launch.on_device_of(y):
        grid = (n * splits * launch.cdiv(m, tile.channels),)
        launch.run(cheap_kernel, grid, arguments, tile.warps, tile.stages)
    sums.join()
    return partials
