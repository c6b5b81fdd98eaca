"""The kernels of ``backward``. Grids: groups of tiles x blocks of channels; see ``maps`` for runs and windows.

With the sums of a BatchNorm over its batch (3 x channels: Σ g, Σ g (z - mean),
PReLU's) a gradient g of the BatchNorm's result becomes that of z:
γ r (g - Σ g / n - r² (z - mean) Σ g (z - mean) / n), r = 1 / sqrt(var + eps).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .activation import PRELU, activate, affine, derivative, load_or, slopes
from .maps import (
    across_pixels,
    block_of,
    depthwise,
    in_batch,
    run_of,
    share_of,
    store_partial,
    whole,
    whole_strides,
    window_of,
)  # fmt: skip


@triton.jit
def norm_coefficients(sums, gamma, mean, var, eps, count, channels, CHANNELS, wanted):
    """Factor, both constants and mean of the BatchNorm backward; the identity where ``sums`` is None."""
    factor = tl.full(channels.shape, 1.0, tl.float32)
    constant = tl.zeros(channels.shape, tl.float32)
    linear = tl.zeros(channels.shape, tl.float32)
    center = load_or(mean, channels, wanted, 0.0)
    if sums is not None:
        r = 1.0 / tl.sqrt(load_or(var, channels, wanted, 1.0) + eps)
        factor = r * load_or(gamma, channels, wanted, 1.0)
        constant = tl.load(sums + channels, mask=wanted, other=0.0) / count
        linear = r * r * tl.load(sums + CHANNELS + channels, mask=wanted, other=0.0) / count
    return factor, constant, linear, center


@triton.jit
def cheap_gradient(
    z, z_n, z_c, z_h, z_w, grad, grad_n, grad_c, grad_h, grad_w,
    one_bias, one_gamma, one_beta, one_mean, one_var, one_eps, one_slopes, one_slopes_stride, one_slope,
    cheap_weight,
    two_bias, two_gamma, two_beta, two_mean, two_var, two_eps, two_slopes, two_slopes_stride, two_slope,
    two_sums, count, grad_made, partials, H, W, M, KEPT, splits, per_split,
    ONE_ACT: tl.constexpr, TWO_ACT: tl.constexpr, D: tl.constexpr, MULTIPLIER: tl.constexpr,
    WIDE: tl.constexpr, UNIT: tl.constexpr, BR: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Gradient of the cheap convolution's result into ``grad_made`` (pixels x M * MULTIPLIER), its sums, or both."""
    M, KEPT = whole(M, UNIT), whole(KEPT, UNIT)
    z_n, z_h, z_w = whole_strides(z_n, z_h, z_w, UNIT)
    grad_n, grad_h, grad_w = whole_strides(grad_n, grad_h, grad_w, UNIT)
    image, split, group, channels, wanted, begin, end = share_of(M, H, W, splits, per_split, BR, BW, BM, WIDE)
    one_center, one_scale, one_shift = affine(
        one_bias, one_gamma, one_beta, one_mean, one_var, one_eps, channels, wanted
    )
    one_bent = slopes(one_slopes, one_slopes_stride, channels, wanted, one_slope, ONE_ACT)
    MADE = M * MULTIPLIER
    z += image * z_n
    grad += image * grad_n
    if grad_made is not None:
        grad_made += image * (H * W) * MADE
    for q in tl.static_range(MULTIPLIER):
        made = channels * MULTIPLIER + q
        middle, scale, shift = affine(two_bias, two_gamma, two_beta, two_mean, two_var, two_eps, made, wanted)
        bent = slopes(two_slopes, two_slopes_stride, made, wanted, two_slope, TWO_ACT)
        factor, constant, linear, center = norm_coefficients(
            two_sums, two_gamma, two_mean, two_var, two_eps, count, made, MADE, wanted
        )
        first = tl.zeros((BR, BW, BM), tl.float32)
        second = tl.zeros((BR, BW, BM), tl.float32)
        third = tl.zeros((BR, BW, BM), tl.float32)
        for t in range(begin, end):
            rows, columns, valid, size = window_of(t, H, W, BR, BW, WIDE)
            mask = valid & wanted[None, None, :]
            z2 = depthwise(
                z, rows, columns, channels, H, W, z_c, z_h, z_w, cheap_weight, made, MADE, wanted, one_center,
                one_scale, one_shift, one_bent, ONE_ACT, True, D, BR, BW, BM,
            )  # fmt: skip
            a2 = (z2 - middle[None, None, :]) * scale[None, None, :] + shift[None, None, :]
            at = (rows * grad_h + columns * grad_w) + (M + made)[None, None, :] * grad_c
            kept = mask & ((M + made) < KEPT)[None, None, :]
            g = tl.load(grad + at, mask=kept, other=0.0).to(tl.float32)
            g2 = tl.where(kept, g * derivative(a2, TWO_ACT, bent[None, None, :]), 0.0)
            apart = z2 - center[None, None, :]
            if partials is not None:
                first += g2
                second += tl.where(kept, g2 * apart, 0.0)
                if TWO_ACT == PRELU:
                    third += tl.where(kept & ~(a2 > 0), g * a2, 0.0)
            if grad_made is not None:
                gz = factor[None, None, :] * (g2 - constant[None, None, :] - linear[None, None, :] * apart)
                at = (rows * W + columns) * MADE + made[None, None, :]
                tl.store(grad_made + at, gz.to(grad_made.dtype.element_ty), mask=mask)
        if partials is not None:
            store_partial(
                partials, group, made, MADE, wanted, across_pixels(first, BR, BW, BM),
                across_pixels(second, BR, BW, BM), across_pixels(third, BR, BW, BM),
            )  # fmt: skip


@triton.jit
def made_gradient(
    grad_made, cheap_weight, rows, columns, valid, H, W, MADE, made, tap, wanted, D: tl.constexpr
):  # fmt: skip
    """What tap ``tap`` of the cheap convolution has to do with a window's pixels: the gradient of the result that reads
    them by it (0 outside of the image), its weight, and where there is such a result."""
    row, column = rows + (D // 2 - tap // D), columns + (D // 2 - tap % D)
    near = valid & (row >= 0) & (row < H) & (column >= 0) & (column < W) & wanted[None, None, :]
    at = grad_made + ((row * W + column) * MADE + made[None, None, :])
    by = tl.load(cheap_weight + (tap * MADE + made), mask=wanted, other=0.0).to(tl.float32)
    return tl.load(at, mask=near, other=0.0).to(tl.float32), by, near


@triton.jit
def primary_gradient(
    z, z_n, z_c, z_h, z_w, grad, grad_n, grad_c, grad_h, grad_w,
    one_bias, one_gamma, one_beta, one_mean, one_var, one_eps, one_slopes, one_slopes_stride, one_slope,
    cheap_weight, grad_made, grad_z, to_n, to_c, to_h, to_w, partials, weights, H, W, M, splits, per_split,
    ONE_ACT: tl.constexpr, D: tl.constexpr, MULTIPLIER: tl.constexpr, TAPS: tl.constexpr,
    WIDE: tl.constexpr, UNIT: tl.constexpr, BR: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Gradient of the first BatchNorm's result (z's, without one) into ``grad_z``, its sums, the cheap weight's.

    The weight's gradient needs y1 at the pixel alone: ∂W2[a, b] = Σ y1[u] ∂z2[u - offset(a, b)], and these ∂z2 are read
    for ∂y1 anyway. ``weights``: groups x MULTIPLIER x D x D x M.
    """
    M = whole(M, UNIT)
    z_n, z_h, z_w = whole_strides(z_n, z_h, z_w, UNIT)
    grad_n, grad_h, grad_w = whole_strides(grad_n, grad_h, grad_w, UNIT)
    to_n, to_h, to_w = whole_strides(to_n, to_h, to_w, UNIT)
    image, split, group, channels, wanted, begin, end = share_of(M, H, W, splits, per_split, BR, BW, BM, WIDE)
    middle, scale, shift = affine(one_bias, one_gamma, one_beta, one_mean, one_var, one_eps, channels, wanted)
    bent = slopes(one_slopes, one_slopes_stride, channels, wanted, one_slope, ONE_ACT)
    center = load_or(one_mean, channels, wanted, 0.0)
    MADE = M * MULTIPLIER
    COUNT: tl.constexpr = MULTIPLIER * D * D
    # Sums of few taps stay apart for each pixel of a window until the end; those of many would fill the registers, and
    # are joined window by window.
    FEW: tl.constexpr = COUNT <= 9
    z += image * z_n
    grad += image * grad_n
    grad_z += image * to_n
    if MULTIPLIER > 0:
        grad_made += image * (H * W) * MADE
    taps = tl.arange(0, TAPS)
    sums = tl.zeros((TAPS, BM), tl.float32)
    parts = (tl.zeros((BR, BW, BM), tl.float32),) * (COUNT if FEW else 0)
    first = tl.zeros((BR, BW, BM), tl.float32)
    second = tl.zeros((BR, BW, BM), tl.float32)
    third = tl.zeros((BR, BW, BM), tl.float32)
    for t in range(begin, end):
        rows, columns, valid, size = window_of(t, H, W, BR, BW, WIDE)
        mask = valid & wanted[None, None, :]
        at = (rows * z_h + columns * z_w) + channels[None, None, :] * z_c
        z1 = tl.load(z + at, mask=mask, other=0.0).to(tl.float32)
        a1 = (z1 - middle[None, None, :]) * scale[None, None, :] + shift[None, None, :]
        at = (rows * grad_h + columns * grad_w) + channels[None, None, :] * grad_c
        g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
        if MULTIPLIER > 0:
            y1 = activate(a1, ONE_ACT, bent[None, None, :])
            if FEW:
                for k in tl.static_range(COUNT):
                    gz, by, near = made_gradient(
                        grad_made, cheap_weight, rows, columns, valid, H, W, MADE,
                        channels * MULTIPLIER + k // (D * D), k % (D * D), wanted, D,
                    )  # fmt: skip
                    g += gz * by[None, None, :]
                    parts = parts[:k] + (parts[k] + tl.where(near, gz * y1, 0.0),) + parts[k + 1 :]
            else:
                for k in range(COUNT):
                    gz, by, near = made_gradient(
                        grad_made, cheap_weight, rows, columns, valid, H, W, MADE,
                        channels * MULTIPLIER + k // (D * D), k % (D * D), wanted, D,
                    )  # fmt: skip
                    g += gz * by[None, None, :]
                    part = across_pixels(tl.where(near, gz * y1, 0.0), BR, BW, BM)
                    sums += tl.where((taps == k)[:, None], part[None, :], 0.0)
        g1 = tl.where(mask, g * derivative(a1, ONE_ACT, bent[None, None, :]), 0.0)
        first += g1
        second += tl.where(mask, g1 * (z1 - center[None, None, :]), 0.0)
        if ONE_ACT == PRELU:
            third += tl.where(mask & ~(a1 > 0), g * a1, 0.0)
        at = (rows * to_h + columns * to_w) + channels[None, None, :] * to_c
        tl.store(grad_z + at, g1.to(grad_z.dtype.element_ty), mask=mask)
    store_partial(
        partials, group, channels, M, wanted, across_pixels(first, BR, BW, BM), across_pixels(second, BR, BW, BM),
        across_pixels(third, BR, BW, BM),
    )  # fmt: skip
    if weights is not None:
        if FEW:
            for k in tl.static_range(COUNT):
                sums += tl.where((taps == k)[:, None], across_pixels(parts[k], BR, BW, BM)[None, :], 0.0)
        to = weights + (group.to(tl.int64) * COUNT + taps[:, None]) * M + channels[None, :]
        tl.store(to, sums, mask=(taps < COUNT)[:, None] & wanted[None, :])


@triton.jit
def through_norm(
    grad_z, z, pixels, valid, channels, M, factor, constant, linear, center, NORM: tl.constexpr
):  # fmt: skip
    """A tile of the gradient of z, float32, of two maps that are pixels x M; NORM: through ``norm_coefficients``."""
    mask = valid[:, None] & (channels < M)[None, :]
    at = pixels[:, None] * M + channels[None, :]
    g = tl.load(grad_z + at, mask=mask, other=0.0).to(tl.float32)
    if NORM:
        z1 = tl.load(z + at, mask=mask, other=0.0).to(tl.float32)
        g = factor[None, :] * (g - constant[None, :] - linear[None, :] * (z1 - center[None, :]))
        g = tl.where(mask, g, 0.0)
    return g


@triton.jit
def through_weight(weight, M, C, k, columns, wanted, kind: tl.constexpr, BK: tl.constexpr):
    channels = k + tl.arange(0, BK)
    at = weight + (channels[:, None].to(tl.int64) * C + columns[None, :])
    return tl.load(at, mask=(channels < M)[:, None] & wanted[None, :], other=0.0).to(kind)


@triton.jit
def input_gradient(
    grad_z, z, sums, count, one_gamma, one_mean, one_var, one_eps, weight, grad_x, to_n, to_c, to_h, to_w,
    H, W, M, C, PIXELS, per_group, PRECISION: tl.constexpr, ONE_STEP: tl.constexpr, FLAT_IN: tl.constexpr,
    WIDE: tl.constexpr, UNIT_IN: tl.constexpr, UNIT: tl.constexpr,
    BP: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Gradient of x: blocks are of its C channels (BM of them), products run over M. ONE_STEP: as of ``product``."""
    C, M = whole(C, UNIT_IN), whole(M, UNIT)
    to_n, to_h, to_w = whole_strides(to_n, to_h, to_w, UNIT_IN)
    kind: tl.constexpr = grad_x.dtype.element_ty
    blocks = tl.cdiv(C, BM)
    group = tl.program_id(0) // blocks
    columns = block_of(tl.program_id(0) % blocks, BM, WIDE)
    wanted = columns < C
    NORM: tl.constexpr = sums is not None
    near = tl.arange(0, BK)
    factor, constant, linear, center = norm_coefficients(
        sums, one_gamma, one_mean, one_var, one_eps, count, near, M, near < M
    )
    for t in range(per_group):
        pixels = run_of(group, per_group, t, BP, WIDE)
        valid = pixels < PIXELS
        acc = tl.zeros((BP, BM), tl.float32)
        if ONE_STEP:
            a = through_norm(grad_z, z, pixels, valid, near, M, factor, constant, linear, center, NORM)
            b = through_weight(weight, M, C, 0, columns, wanted, kind, BK)
            acc = tl.dot(a.to(kind), b, acc, input_precision=PRECISION)
        else:
            for k in range(0, M, BK):
                channels = k + tl.arange(0, BK)
                f, c, by, m = norm_coefficients(
                    sums, one_gamma, one_mean, one_var, one_eps, count, channels, M, channels < M
                )  # fmt: skip
                a = through_norm(grad_z, z, pixels, valid, channels, M, f, c, by, m, NORM)
                b = through_weight(weight, M, C, k, columns, wanted, kind, BK)
                acc = tl.dot(a.to(kind), b, acc, input_precision=PRECISION)
        places = in_batch(pixels, H, W, to_n, to_h, to_w, FLAT_IN, WIDE)
        to = grad_x + (places[:, None] + columns[None, :] * to_c)
        tl.store(to, acc.to(kind), mask=valid[:, None] & wanted[None, :])


@triton.jit
def weight_gradient(
    grad_z, z, sums, count, one_gamma, one_mean, one_var, one_eps, x, x_n, x_c, x_h, x_w, partials,
    H, W, M, C, PIXELS, per_group, PRECISION: tl.constexpr, FLAT_IN: tl.constexpr, WIDE: tl.constexpr,
    UNIT_IN: tl.constexpr, UNIT: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Gradient of the primary weight: groups x M x C partial products over pixels."""
    C, M = whole(C, UNIT_IN), whole(M, UNIT)
    x_n, x_h, x_w = whole_strides(x_n, x_h, x_w, UNIT_IN)
    across = tl.cdiv(C, BC)
    blocks = tl.cdiv(M, BM) * across
    block = tl.program_id(0) % blocks
    group = tl.program_id(0) // blocks
    channels = block_of(block // across, BM, WIDE)
    columns = block_of(block % across, BC, WIDE)
    acc = tl.zeros((BM, BC), tl.float32)
    factor, constant, linear, center = norm_coefficients(
        sums, one_gamma, one_mean, one_var, one_eps, count, channels, M, channels < M
    )
    for t in range(per_group):
        pixels = run_of(group, per_group, t, BP, WIDE)
        valid = pixels < PIXELS
        a = through_norm(grad_z, z, pixels, valid, channels, M, factor, constant, linear, center, sums is not None)
        places = in_batch(pixels, H, W, x_n, x_h, x_w, FLAT_IN, WIDE)
        at = x + (places[:, None] + columns[None, :] * x_c)
        b = tl.load(at, mask=valid[:, None] & (columns < C)[None, :], other=0.0)
        acc = tl.dot(tl.trans(a.to(x.dtype.element_ty)), b, acc, input_precision=PRECISION)
    to = partials + (group.to(tl.int64) * M + channels[:, None]) * C + columns[None, :]
    tl.store(to, acc, mask=(channels < M)[:, None] & (columns < C)[None, :])
