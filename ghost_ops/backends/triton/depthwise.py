"""A depthwise convolution of any stride with what follows it and the squeeze of its result, in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import launch, tiles
from .activation import activate, affine, slopes
from .half import Half
from .maps import across_pixels, share_of, whole, whole_strides, window_of
from .maps import depthwise as depthwise_sums
from .sums import OverSplits, by_taps
from .tape import taped


@triton.jit
def depthwise_kernel(
    x, x_n, x_c, x_h, x_w, weight,
    one_bias, one_gamma, one_beta, one_mean, one_var, one_eps, one_slopes, one_slopes_stride, one_slope,
    out, out_n, out_c, out_h, out_w, sums, per_value, N, IN_H, IN_W, H, W, C, splits, per_split,
    ONE_ACT: tl.constexpr, D: tl.constexpr, STRIDE: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr,
    BR: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Grid: images x splits of the windows of ``out`` (H x W) x blocks of C. ``sums``: as of ``cheap_kernel``."""
    C = whole(C, UNIT)
    x_n, x_h, x_w = whole_strides(x_n, x_h, x_w, UNIT)
    out_n, out_h, out_w = whole_strides(out_n, out_h, out_w, UNIT)
    image, split, group, channels, wanted, begin, end = share_of(C, H, W, splits, per_split, BR, BW, BM, WIDE)
    x += image * x_n
    out += image * out_n
    center, by, shift = affine(one_bias, one_gamma, one_beta, one_mean, one_var, one_eps, channels, wanted)
    bent = slopes(one_slopes, one_slopes_stride, channels, wanted, one_slope, ONE_ACT)
    unused = tl.zeros((BM,), tl.float32)
    found = tl.zeros((BR, BW, BM), tl.float32)
    for t in range(begin, end):
        rows, columns, valid, size = window_of(t, H, W, BR, BW, WIDE)
        z = depthwise_sums(
            x, rows * STRIDE, columns * STRIDE, channels, IN_H, IN_W, x_c, x_h, x_w, weight, channels, C, wanted,
            unused, unused, unused, unused, ONE_ACT, False, D, BR, BW, BM,
        )  # fmt: skip
        v = (z - center[None, None, :]) * by[None, None, :] + shift[None, None, :]
        v = activate(v, ONE_ACT, bent[None, None, :])
        mask = valid & wanted[None, None, :]
        at = out + ((rows * out_h + columns * out_w) + channels[None, None, :] * out_c)
        tl.store(at, v.to(out.dtype.element_ty), mask=mask)
        if sums is not None:
            found += tl.where(mask, v, 0.0)
    if sums is not None:
        to = sums + (split.to(tl.int64) * N + image) * C + channels
        tl.store(to, (across_pixels(found, BR, BW, BM) * per_value).to(sums.dtype.element_ty), mask=wanted)


@taped
def depthwise(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, slopes: torch.Tensor | None, stride: int,
    act: int, slope: float, squeeze: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """act(conv(x) + bias) and its means, N x C (empty if not asked for); weight C x 1 x K x K, padded by K // 2."""
    one = Half(bias, act, slope, slopes)
    n, c, *sides = x.shape
    d = weight.shape[-1]
    height, width = ((side + 2 * (d // 2) - d) // stride + 1 for side in sides)
    out = launch.new_map(x, c, sides=(height, width))
    tile, splits, per_split = tiles.windows("stencil", out, c)
    found = launch.empty((n, c) if squeeze else (0,), x.dtype, x.device)
    sums = OverSplits(found if squeeze else None, splits, 1.0 / (height * width))
    arguments = {
        "x": x, **launch.strides("x", x), "weight": by_taps(weight), **one.arguments("one"), "out": out,
        **launch.strides("out", out), **sums.arguments, "N": n, "IN_H": sides[0], "IN_W": sides[1], "H": height,
        "W": width, "C": c, "D": d, "STRIDE": stride, "WIDE": launch.is_wide(x, out),
        "UNIT": launch.unit(x, out, counts=(c,)), **tile.window(splits, per_split),
    }  # fmt: skip
    with launch.on_device_of(x):
        grid = (n * splits * launch.cdiv(c, tile.channels),)
        launch.run(depthwise_kernel, grid, arguments, tile.warps, tile.stages)
    sums.join()
    return out, found
