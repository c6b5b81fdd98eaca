"""A Ghost module that makes no less channels than it reads, in one launch, for large maps.

There memory decides, and y1 is not written before it is read: a program makes a row of it again for each column of the
cheap kernel, by tensor cores that have nothing else to do, and both halves of the output's pixels are written soon
after each other, so that the second level cache joins them before they go to memory. Halves written by two launches
end in parts of the memory's units, which cost three times their bytes (docs/performance/gpu.md).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import launch, tiles
from .activation import activate, affine, normalized, slopes
from .half import Half
from .maps import store_rows, strip_of, weights_of, whole, whole_strides
from .sums import OverSplits, by_taps

MOST_CHANNELS = 128  # of the input: one step of the product
LEAST_WIDTH = 17  # of maps: the side of a product is 32 pixels of a row


@triton.jit
def module_kernel(
    x, x_n, x_c, x_h, x_w, scale, weight,
    one_bias, one_gamma, one_beta, one_mean, one_var, one_eps, one_slopes, one_slopes_stride, one_slope,
    cheap_weight,
    two_bias, two_gamma, two_beta, two_mean, two_var, two_eps, two_slopes, two_slopes_stride, two_slope,
    out, out_n, out_c, out_h, out_w, sums, per_value, N, H, W, C, M, KEPT, splits, per_split,
    ONE_ACT: tl.constexpr, TWO_ACT: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr,
    UNIT_IN: tl.constexpr, UNIT: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Grid: see ``strip_of``; blocks are of M. ``sums``: as of ``cheap_kernel``."""
    C, M, KEPT = whole(C, UNIT_IN), whole(M, UNIT), whole(KEPT, UNIT)
    x_n, x_h, x_w = whole_strides(x_n, x_h, x_w, UNIT_IN)
    out_n, out_h, out_w = whole_strides(out_n, out_h, out_w, UNIT)
    image, split, group, columns, channels, wanted, top, bottom = strip_of(M, H, W, splits, per_split, BW, BM, WIDE)
    kept = wanted & (channels < KEPT - M)
    x += image * x_n
    out += image * out_n
    inner = tl.arange(0, BK)
    b = tl.load(
        weight + (channels[None, :] * C + inner[:, None]), mask=wanted[None, :] & (inner < C)[:, None], other=0.0
    )
    b = b.to(x.dtype.element_ty)
    if scale is not None:
        excited = tl.load(scale + image * C + inner, mask=inner < C, other=0.0).to(tl.float32)
    one_center, one_by, one_shift = affine(
        one_bias, one_gamma, one_beta, one_mean, one_var, one_eps, channels, wanted
    )  # fmt: skip
    one_bent = slopes(one_slopes, one_slopes_stride, channels, wanted, one_slope, ONE_ACT)
    center, by, shift = affine(two_bias, two_gamma, two_beta, two_mean, two_var, two_eps, channels, kept)
    bent = slopes(two_slopes, two_slopes_stride, channels, kept, two_slope, TWO_ACT)
    held = weights_of(cheap_weight, channels, M, kept, D)
    nothing = tl.zeros((BW, BM), tl.float32)
    pending = (nothing,) * (D - 1)  # results that the rows made so far began
    first, second = nothing, nothing
    for below in range(top - D // 2, bottom + D // 2):
        begun, y1 = pending + (nothing,), nothing
        for j in tl.static_range(D):
            there = columns + (j - D // 2)
            inside = (there >= 0) & (there < W) & (below >= 0) & (below < H)
            at = x + below * x_h + (there[:, None] * x_w + inner[None, :].to(columns.dtype) * x_c)
            a = tl.load(at, mask=inside[:, None] & (inner < C)[None, :], other=0.0)
            if scale is not None:
                a = (a.to(tl.float32) * excited[None, :]).to(x.dtype.element_ty)
            z = tl.dot(a, b, input_precision=PRECISION)
            z = normalized(z, one_center, one_by, one_shift, one_mean is not None)
            v = tl.where(inside[:, None], activate(z, ONE_ACT, one_bent[None, :]), 0.0)
            if j == D // 2:
                y1 = v
            for i in tl.static_range(D):
                begun = begun[:i] + (begun[i] + v * held[(D - 1 - i) * D + j][None, :],) + begun[i + 1 :]
        pending = begun[1:]
        if (below >= top) & (below < bottom):
            stored = store_rows(y1, out, below, columns, channels, W, out_c, out_h, out_w, wanted, None, 0, 0, 0)
            if sums is not None:
                first += stored
        if below - D // 2 >= top:
            z = normalized(begun[0], center, by, shift, two_mean is not None)
            stored = store_rows(
                activate(z, TWO_ACT, bent[None, :]), out, below - D // 2, columns, M + channels, W, out_c, out_h, out_w,
                kept, None, 0, 0, 0,
            )  # fmt: skip
            if sums is not None:
                second += stored
    if sums is not None:
        sums += (split.to(tl.int64) * N + image) * KEPT
        joined = tl.sum(first, axis=0) * per_value
        tl.store(sums + channels, joined.to(sums.dtype.element_ty), mask=wanted)
        joined = tl.sum(second, axis=0) * per_value
        tl.store(sums + M + channels, joined.to(sums.dtype.element_ty), mask=kept)


def takes(x: torch.Tensor, cheap_weight: torch.Tensor, m: int, residual: torch.Tensor | None) -> bool:
    """Whether a module is better one launch: half precision, since float32's products are not for free, and no less
    output than input, with no third map to read."""
    c, width, d = x.shape[1], x.shape[3], cheap_weight.shape[-1]
    if x.dtype == torch.float32 or residual is not None or width < LEAST_WIDTH:
        return False
    return d <= 3 and cheap_weight.shape[0] == m and c <= min(MOST_CHANNELS, 2 * m)


def module(
    x: torch.Tensor, weight: torch.Tensor, one: Half, cheap_weight: torch.Tensor, two: Half, out: torch.Tensor,
    scale: torch.Tensor | None, squeeze: torch.Tensor | None,
) -> None:  # fmt: skip
    """The module of x into ``out``, and its means into ``squeeze``, N x channels. Arguments: as of ``forward.run``."""
    n, c, height, width = x.shape
    m, kept = weight.shape[0], out.shape[1]
    tile, splits, per_split = tiles.products_of_strips("module", x, m)
    sums = OverSplits(squeeze, splits, 1.0 / (height * width))
    arguments = {
        "x": x, **launch.strides("x", x), "scale": launch.vector(scale), "weight": launch.vector(weight),
        **one.arguments("one"), "cheap_weight": by_taps(cheap_weight), **two.arguments("two"), "out": out,
        **launch.strides("out", out), **sums.arguments,
        "N": n, "H": height, "W": width, "C": c, "M": m, "KEPT": kept, **tile.strip(splits, per_split),
        "PRECISION": launch.precision(x.dtype), "D": cheap_weight.shape[-1], "WIDE": launch.is_wide(x, out),
        "UNIT_IN": launch.unit(x, counts=(c,)), "UNIT": launch.unit(out, counts=(m, kept)),
        "BK": max(1 << (c - 1).bit_length(), tiles.LEAST),
    }  # fmt: skip
    with launch.on_device_of(x):
        grid = (n * splits * launch.cdiv(m, tile.channels),)
        launch.run(module_kernel, grid, arguments, tile.warps, tile.stages)
    sums.join()
