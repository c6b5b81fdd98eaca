"""The cheap convolution of y1: its statistics, or the output with residual and squeeze."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import launch, tiles
from .activation import activate, affine, normalized, slopes
from .half import NOTHING, Half
from .maps import (
    finish_moments,
    read_row,
    step_down,
    store_partial,
    store_rows,
    strip_of,
    weights_of,
    whole,
    whole_strides,
)
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
    WIDE: tl.constexpr, UNIT: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Grid: see ``strip_of``; blocks are of M.

    With AFFINE y is the primary convolution's result, and y1 is made of it here. The first half of ``out`` is written
    then, and where a ``residual`` is added; else it is y itself. ``statistics``: of the cheap convolution, in place of
    the output. ``sums``: splits x images x KEPT sums of the output, times ``per_value``.
    """
    M, KEPT = whole(M, UNIT), whole(KEPT, UNIT)
    y_n, y_h, y_w = whole_strides(y_n, y_h, y_w, UNIT)
    out_n, out_h, out_w = whole_strides(out_n, out_h, out_w, UNIT)
    residual_n, residual_h, residual_w = whole_strides(residual_n, residual_h, residual_w, UNIT)
    image, split, group, columns, channels, wanted, top, bottom = strip_of(M, H, W, splits, per_split, BW, BM, WIDE)
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
    FIRST: tl.constexpr = ((AFFINE or (residual is not None)) and (statistics is None)) or (sums is not None)
    here = (columns < W)[:, None] & wanted[None, :]
    nothing = tl.zeros((BW, BM), tl.float32)
    for q in tl.static_range(MULTIPLIER):
        made = channels * MULTIPLIER + q
        kept = wanted & (made < KEPT - M)
        mask = (columns < W)[:, None] & kept[None, :]
        center, by, shift = affine(two_bias, two_gamma, two_beta, two_mean, two_var, two_eps, made, kept)
        bent = slopes(two_slopes, two_slopes_stride, made, kept, two_slope, TWO_ACT)
        held = weights_of(cheap_weight, made, MADE, kept, D)
        pending = (nothing,) * (D - 1)  # results that the rows read so far began
        first = nothing
        found = nothing
        squares = nothing
        origin = tl.zeros((BM,), tl.float32)
        size = tl.maximum(tl.sum((columns < W).to(tl.float32), axis=0), 1.0)
        last = tl.minimum(bottom + D // 2, H)
        ahead = read_row(y, top - D // 2, columns, channels, last, W, y_c, y_h, y_w, kept, D)
        for below in range(top - D // 2, bottom + D // 2):
            begun, ahead = step_down(
                ahead, y, below, columns, channels, last, H, W, y_c, y_h, y_w, pending, held, kept,
                one_center, one_scale, one_shift, one_bent, ONE_ACT, AFFINE, D,
            )  # fmt: skip
            z, pending = begun[0], begun[1:]
            row = below - D // 2
            if row >= top:
                if (q == 0) and FIRST:
                    at = row * y_h + columns[:, None] * y_w + channels[None, :] * y_c
                    v = tl.load(y + at, mask=here, other=0.0).to(tl.float32)
                    if AFFINE:
                        v = normalized(v, one_center, one_scale, one_shift, one_mean is not None)
                        v = activate(v, ONE_ACT, one_bent[None, :])
                    if AFFINE or (residual is not None):
                        v = store_rows(
                            v, out, row, columns, channels, W, out_c, out_h, out_w, wanted, residual, residual_c,
                            residual_h, residual_w,
                        )  # fmt: skip
                    if sums is not None:
                        first += v
                if statistics is not None:
                    if row == top:
                        origin = tl.sum(tl.where(mask, z, 0.0), axis=0) / size
                    apart = tl.where(mask, z - origin[None, :], 0.0)
                    found += apart
                    squares += apart * apart
                else:
                    z = normalized(z, center, by, shift, two_mean is not None)
                    stored = store_rows(
                        activate(z, TWO_ACT, bent[None, :]), out, row, columns, M + made, W, out_c, out_h, out_w, kept,
                        residual, residual_c, residual_h, residual_w,
                    )  # fmt: skip
                    if sums is not None:
                        found += stored
        if statistics is not None:
            values = size * (bottom - top).to(tl.float32) + tl.zeros((BM,), tl.float32)
            mean, m2 = finish_moments(tl.sum(found, axis=0), tl.sum(squares, axis=0), origin, values)
            store_partial(statistics, group, made, KEPT - M, kept, values, mean, m2)
        elif sums is not None:
            joined = tl.sum(found, axis=0) * per_value
            tl.store(sums + M + made, joined.to(sums.dtype.element_ty), mask=kept)
        if (q == 0) and (sums is not None):
            joined = tl.sum(first, axis=0) * per_value
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
            channels are written, too.
        residual: of the output, whose first m channels are written then; y is another map.
        squeeze: where means of the output go, N x channels.
        statistics: return groups' statistics of the convolution (groups x 3 x m(s - 1)) and write no output.
    """
    n, kept, height, width = out.shape
    multiplier = weight.shape[0] // m
    kernel, taps = "stencil" if one is None else "stencil_gradient", multiplier * weight.shape[-1] ** 2
    tile, splits, per_split = tiles.strips(kernel, y, m, taps)
    partials, sums = None, OverSplits(squeeze, splits, 1.0 / (height * width))
    if statistics:
        kept = m * (1 + multiplier)
        partials = launch.empty((n * splits, 3, m * multiplier), torch.float32, y.device)
    arguments = {
        "y": y, **launch.strides("y", y), **(one or NOTHING).arguments("one"), "AFFINE": one is not None,
        "cheap_weight": by_taps(weight), **two.arguments("two"), "out": out, **launch.strides("out", out),
        "residual": residual, **launch.strides("residual", residual), **sums.arguments,
        "statistics": partials, "N": n, "H": height, "W": width, "M": m, "KEPT": kept,
        **tile.strip(splits, per_split), "D": weight.shape[-1], "MULTIPLIER": multiplier,
        "WIDE": launch.is_wide(y, out, residual), "UNIT": launch.unit(y, out, residual, counts=(m, kept)),
    }  # fmt: skip
    with launch.on_device_of(y):
        grid = (n * splits * launch.cdiv(m, tile.channels),)
        launch.run(cheap_kernel, grid, arguments, tile.warps, tile.stages)
    sums.join()
    return partials
