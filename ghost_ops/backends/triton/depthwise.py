"""Depthwise convolutions of any stride: ``depthwise``, and a program's, with what follows it and the squeeze."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...activations import NONE
from . import checks, launch, tiles
from .activation import activate, affine, normalized, slopes
from .half import Half
from .maps import read_tap, store_rows, strip_of, weights_of, whole, whole_strides
from .sums import OverSplits, by_taps
from .tape import taped


@triton.jit
def depthwise_kernel(
    x, x_n, x_c, x_h, x_w, weight,
    one_bias, one_gamma, one_beta, one_mean, one_var, one_eps, one_slopes, one_slopes_stride, one_slope,
    out, out_n, out_c, out_h, out_w, sums, per_value, N, IN_H, IN_W, H, W, C, splits, per_split,
    ONE_ACT: tl.constexpr, D: tl.constexpr, STRIDE: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr,
    BW: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Grid: see ``strip_of``; strips are of ``out`` (H x W), blocks of C. ``sums``: as of ``cheap_kernel``."""
    C = whole(C, UNIT)
    x_n, x_h, x_w = whole_strides(x_n, x_h, x_w, UNIT)
    out_n, out_h, out_w = whole_strides(out_n, out_h, out_w, UNIT)
    image, split, group, columns, channels, wanted, top, bottom = strip_of(C, H, W, splits, per_split, BW, BM, WIDE)
    x += image * x_n
    out += image * out_n
    center, by, shift = affine(one_bias, one_gamma, one_beta, one_mean, one_var, one_eps, channels, wanted)
    bent = slopes(one_slopes, one_slopes_stride, channels, wanted, one_slope, ONE_ACT)
    held = weights_of(weight, channels, C, wanted, D)
    nothing = tl.zeros((BW, BM), tl.float32)
    found = nothing
    # A result takes in STRIDE rows that no result before it has to do with, and begins those after it.
    AHEAD: tl.constexpr = (D - 1) // STRIDE
    pending = (nothing,) * AHEAD
    for row in range(top - AHEAD, bottom):
        begun = pending + (nothing,)
        for t in tl.static_range(STRIDE - D if STRIDE > D else 0, STRIDE):
            below = row * STRIDE + (D // 2 - STRIDE + 1 + t)
            for j in tl.static_range(D):
                v = read_tap(x, below, columns * STRIDE, channels, j, IN_H, IN_W, x_c, x_h, x_w, wanted, D)
                v = v.to(tl.float32)
                for e in tl.static_range(AHEAD + 1):
                    if D - STRIDE + t - STRIDE * e >= 0:
                        by = held[(D - STRIDE + t - STRIDE * e) * D + j]
                        begun = begun[:e] + (begun[e] + v * by[None, :],) + begun[e + 1 :]
        pending = begun[1:]
        if row >= top:
            z = activate(normalized(begun[0], center, by, shift, one_mean is not None), ONE_ACT, bent[None, :])
            stored = store_rows(z, out, row, columns, channels, W, out_c, out_h, out_w, wanted, None, 0, 0, 0)
            if sums is not None:
                found += stored
    if sums is not None:
        at = sums + (split.to(tl.int64) * N + image) * C + channels
        tl.store(at, (tl.sum(found, axis=0) * per_value).to(sums.dtype.element_ty), mask=wanted)


@taped
def layer(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, slopes: torch.Tensor | None, stride: int,
    act: int, slope: float, squeeze: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """act(conv(x) + bias) and its means, N x C (empty if not asked for); weight C x 1 x K x K, padded by K // 2."""
    one = Half(bias, act, slope, slopes)
    height, width = checks.expect_depthwise(x, weight, one, stride)
    n, c, *sides = x.shape
    d = weight.shape[-1]
    out = launch.new_map(x, c, sides=(height, width))
    tile, splits, per_split = tiles.strips("stencil", out, c, d * d)
    found = launch.empty((n, c) if squeeze else (0,), x.dtype, x.device)
    sums = OverSplits(found if squeeze else None, splits, 1.0 / (height * width))
    arguments = {
        "x": x, **launch.strides("x", x), "weight": by_taps(weight), **one.arguments("one"), "out": out,
        **launch.strides("out", out), **sums.arguments, "N": n, "IN_H": sides[0], "IN_W": sides[1], "H": height,
        "W": width, "C": c, "D": d, "STRIDE": stride, "WIDE": launch.is_wide(x, out),
        "UNIT": launch.unit(x, out, counts=(c,)), **tile.strip(splits, per_split),
    }  # fmt: skip
    with launch.on_device_of(x):
        grid = (n * splits * launch.cdiv(c, tile.channels),)
        launch.run(depthwise_kernel, grid, arguments, tile.warps, tile.stages)
    sums.join()
    return out, found


@taped
def depthwise(x, weight, bias, stride):
    return layer(x, weight, bias, None, stride, NONE, 0.0, False)[0]
