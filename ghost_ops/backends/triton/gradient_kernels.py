"""The kernels of ``backward``. Grids: groups of pixel tiles x blocks of channels.

Pixels are numbered through all images. With the sums of a BatchNorm over its batch (3 x channels: Σ g, Σ g (z - mean),
PReLU's) a gradient g of the BatchNorm's result becomes that of z:
γ r (g - Σ g / n - r² (z - mean) Σ g (z - mean) / n), r = 1 / sqrt(var + eps).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .activation import activate, affine, derivative, load_or, slopes
from .maps import block_of, depthwise, in_batch, numbers, store_partial, whole, whole_strides


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
    two_sums, count, grad_made, partials, H, W, M, KEPT, PIXELS, per_group,
    ONE_ACT: tl.constexpr, TWO_ACT: tl.constexpr, D: tl.constexpr, MULTIPLIER: tl.constexpr,
    WIDE: tl.constexpr, UNIT: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Gradient of the cheap convolution's result into ``grad_made`` (pixels x M * MULTIPLIER), its sums, or both."""
    M, KEPT = whole(M, UNIT), whole(KEPT, UNIT)
    z_n, z_h, z_w = whole_strides(z_n, z_h, z_w, UNIT)
    grad_n, grad_h, grad_w = whole_strides(grad_n, grad_h, grad_w, UNIT)
    blocks = tl.cdiv(M, BM)
    group = tl.program_id(0) // blocks
    channels = block_of(tl.program_id(0) % blocks, BM, WIDE)
    wanted = channels < M
    one_center, one_scale, one_shift = affine(
        one_bias, one_gamma, one_beta, one_mean, one_var, one_eps, channels, wanted
    )
    one_bent = slopes(one_slopes, one_slopes_stride, channels, wanted, one_slope, ONE_ACT)
    source = z + channels[None, :] * z_c
    for q in range(MULTIPLIER):
        made = channels * MULTIPLIER + q
        MADE = M * MULTIPLIER
        middle, scale, shift = affine(two_bias, two_gamma, two_beta, two_mean, two_var, two_eps, made, wanted)
        bent = slopes(two_slopes, two_slopes_stride, made, wanted, two_slope, TWO_ACT)
        factor, constant, linear, center = norm_coefficients(
            two_sums, two_gamma, two_mean, two_var, two_eps, count, made, MADE, wanted
        )
        first = tl.zeros((BM,), tl.float32)
        second = tl.zeros((BM,), tl.float32)
        third = tl.zeros((BM,), tl.float32)
        for t in range(per_group):
            pixels = numbers(group, per_group, t, BP, WIDE)
            valid = pixels < PIXELS
            mask = valid[:, None] & wanted[None, :]
            rest = pixels % (H * W)
            z2 = depthwise(
                source, in_batch(pixels, H, W, z_n, z_h, z_w, WIDE), valid, rest // W, rest % W, H, W, z_h, z_w,
                cheap_weight, made, wanted, one_center, one_scale, one_shift, one_bent, ONE_ACT, True, D, BP, BM,
                "",
            )  # fmt: skip
            a2 = (z2 - middle[None, :]) * scale[None, :] + shift[None, :]
            places = in_batch(pixels, H, W, grad_n, grad_h, grad_w, WIDE)
            kept = mask & ((M + made) < KEPT)[None, :]
            g = tl.load(grad + (places[:, None] + (M + made)[None, :] * grad_c), mask=kept, other=0.0).to(tl.float32)
            g2 = tl.where(kept, g * derivative(a2, TWO_ACT, bent[None, :]), 0.0)
            if partials is not None:
                first += tl.sum(g2, axis=0)
                second += tl.sum(tl.where(kept, g2 * (z2 - center[None, :]), 0.0), axis=0)
                third += tl.sum(tl.where(kept & ~(a2 > 0), g * a2, 0.0), axis=0)
            if grad_made is not None:
                gz = factor[None, :] * (g2 - constant[None, :] - linear[None, :] * (z2 - center[None, :]))
                to = grad_made + (pixels[:, None] * MADE + made[None, :])
                tl.store(to, gz.to(grad_made.dtype.element_ty), mask=mask)
        if partials is not None:
            store_partial(partials, group, made, MADE, wanted, first, second, third)


@triton.jit
def made_gradient(
    grad_made, cheap_weight, pixels, valid, rows, columns, H, W, MADE, made, tap, wanted, D: tl.constexpr
):  # fmt: skip
    """What tap ``tap`` of the cheap convolution has to do with a tile's pixels: the gradient of the result that reads
    them by it (0 outside of the image), its weight, and where there is such a result."""
    up, left = D // 2 - tap // D, D // 2 - tap % D
    row, column = rows + up, columns + left
    inside = valid & (row >= 0) & (row < H) & (column >= 0) & (column < W)
    near = inside[:, None] & wanted[None, :]
    at = grad_made + ((pixels + up * W + left)[:, None] * MADE + made[None, :])
    by = tl.load(cheap_weight + made * (D * D) + tap, mask=wanted, other=0.0).to(tl.float32)
    return tl.load(at, mask=near, other=0.0).to(tl.float32), by, near


@triton.jit
def primary_gradient(
    z, z_n, z_c, z_h, z_w, grad, grad_n, grad_c, grad_h, grad_w,
    one_bias, one_gamma, one_beta, one_mean, one_var, one_eps, one_slopes, one_slopes_stride, one_slope,
    cheap_weight, grad_made, grad_z, to_n, to_c, to_h, to_w, partials, weights, H, W, M, KEPT, PIXELS, per_group,
    ONE_ACT: tl.constexpr, D: tl.constexpr, MULTIPLIER: tl.constexpr, TAPS: tl.constexpr,
    WIDE: tl.constexpr, UNIT: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Gradient of the first BatchNorm's result (z's, without one) into ``grad_z``, its sums, the cheap weight's.

    The weight's gradient needs y1 at the pixel alone: ∂W2[a, b] = Σ y1[u] ∂z2[u - offset(a, b)], and these ∂z2 are read
    for ∂y1 anyway. ``weights``: groups x MULTIPLIER x D x D x M.
    """
    M = whole(M, UNIT)
    z_n, z_h, z_w = whole_strides(z_n, z_h, z_w, UNIT)
    grad_n, grad_h, grad_w = whole_strides(grad_n, grad_h, grad_w, UNIT)
    to_n, to_h, to_w = whole_strides(to_n, to_h, to_w, UNIT)
    blocks = tl.cdiv(M, BM)
    group = tl.program_id(0) // blocks
    channels = block_of(tl.program_id(0) % blocks, BM, WIDE)
    wanted = channels < M
    middle, scale, shift = affine(one_bias, one_gamma, one_beta, one_mean, one_var, one_eps, channels, wanted)
    bent = slopes(one_slopes, one_slopes_stride, channels, wanted, one_slope, ONE_ACT)
    center = load_or(one_mean, channels, wanted, 0.0)
    first = tl.zeros((BM,), tl.float32)
    second = tl.zeros((BM,), tl.float32)
    third = tl.zeros((BM,), tl.float32)
    MADE = M * MULTIPLIER
    COUNT: tl.constexpr = MULTIPLIER * D * D
    # Sums of few taps stay apart for each pixel of a tile until the end; those of many would fill the registers, and
    # are joined tile by tile.
    FEW: tl.constexpr = COUNT <= 9
    taps = tl.arange(0, TAPS)
    sums = tl.zeros((TAPS, BM), tl.float32)
    parts = (tl.zeros((BP, BM), tl.float32),) * (COUNT if FEW else 0)
    for t in range(per_group):
        pixels = numbers(group, per_group, t, BP, WIDE)
        valid = pixels < PIXELS
        mask = valid[:, None] & wanted[None, :]
        places = in_batch(pixels, H, W, z_n, z_h, z_w, WIDE)
        z1 = tl.load(z + (places[:, None] + channels[None, :] * z_c), mask=mask, other=0.0).to(tl.float32)
        a1 = (z1 - middle[None, :]) * scale[None, :] + shift[None, :]
        places = in_batch(pixels, H, W, grad_n, grad_h, grad_w, WIDE)
        g = tl.load(grad + (places[:, None] + channels[None, :] * grad_c), mask=mask, other=0.0).to(tl.float32)
        if MULTIPLIER > 0:
            y1 = activate(a1, ONE_ACT, bent[None, :])
            rest = pixels % (H * W)
            rows, columns = rest // W, rest % W
            if FEW:
                for k in tl.static_range(COUNT):
                    made, tap = channels * MULTIPLIER + k // (D * D), k % (D * D)
                    gz, by, near = made_gradient(
                        grad_made, cheap_weight, pixels, valid, rows, columns, H, W, MADE, made, tap, wanted, D
                    )
                    g += gz * by[None, :]
                    parts = parts[:k] + (parts[k] + tl.where(near, gz * y1, 0.0),) + parts[k + 1 :]
            else:
                for k in range(COUNT):
                    made, tap = channels * MULTIPLIER + k // (D * D), k % (D * D)
                    gz, by, near = made_gradient(
                        grad_made, cheap_weight, pixels, valid, rows, columns, H, W, MADE, made, tap, wanted, D
                    )
                    g += gz * by[None, :]
                    part = tl.sum(tl.where(near, gz * y1, 0.0), axis=0)
                    sums += tl.where((taps == k)[:, None], part[None, :], 0.0)
        g1 = tl.where(mask, g * derivative(a1, ONE_ACT, bent[None, :]), 0.0)
        first += tl.sum(g1, axis=0)
        second += tl.sum(tl.where(mask, g1 * (z1 - center[None, :]), 0.0), axis=0)
        third += tl.sum(tl.where(mask & ~(a1 > 0), g * a1, 0.0), axis=0)
        places = in_batch(pixels, H, W, to_n, to_h, to_w, WIDE)
        to = grad_z + (places[:, None] + channels[None, :] * to_c)
        tl.store(to, g1.to(grad_z.dtype.element_ty), mask=mask)
    store_partial(partials, group, channels, M, wanted, first, second, third)
    if weights is not None:
        if FEW:
            for k in tl.static_range(COUNT):
                sums += tl.where((taps == k)[:, None], tl.sum(parts[k], axis=0)[None, :], 0.0)
        to = weights + (group.to(tl.int64) * COUNT + taps[:, None]) * M + channels[None, :]
        tl.store(to, sums, mask=(taps < COUNT)[:, None] & wanted[None, :])


@triton.jit
def through_norm(
    grad_z, z, sums, gamma, mean, var, eps, count, pixels, valid, channels, M, wanted
):  # fmt: skip
    """A tile of the gradient of z, float32, of two maps that are pixels x M; see ``norm_coefficients``."""
    mask = valid[:, None] & wanted[None, :]
    at = pixels[:, None] * M + channels[None, :]
    g = tl.load(grad_z + at, mask=mask, other=0.0).to(tl.float32)
    if sums is not None:
        factor, constant, linear, center = norm_coefficients(sums, gamma, mean, var, eps, count, channels, M, wanted)
        z1 = tl.load(z + at, mask=mask, other=0.0).to(tl.float32)
        g = factor[None, :] * (g - constant[None, :] - linear[None, :] * (z1 - center[None, :]))
        g = tl.where(mask, g, 0.0)
    return g


@triton.jit
def input_gradient(
    grad_z, z, sums, count, one_gamma, one_mean, one_var, one_eps, weight, grad_x, to_n, to_c, to_h, to_w,
    H, W, M, C, PIXELS, per_group, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    UNIT_IN: tl.constexpr, UNIT: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Gradient of x: blocks are of its C channels (BM of them), products run over M."""
    C, M = whole(C, UNIT_IN), whole(M, UNIT)
    to_n, to_h, to_w = whole_strides(to_n, to_h, to_w, UNIT_IN)
    blocks = tl.cdiv(C, BM)
    group = tl.program_id(0) // blocks
    columns = block_of(tl.program_id(0) % blocks, BM, WIDE)
    wanted = columns < C
    for t in range(per_group):
        pixels = numbers(group, per_group, t, BP, WIDE)
        valid = pixels < PIXELS
        acc = tl.zeros((BP, BM), tl.float32)
        for k in range(0, M, BK):
            channels = k + tl.arange(0, BK)
            known = channels < M
            a = through_norm(
                grad_z, z, sums, one_gamma, one_mean, one_var, one_eps, count, pixels, valid, channels, M, known
            )
            at = weight + (channels[:, None].to(tl.int64) * C + columns[None, :])
            b = tl.load(at, mask=known[:, None] & wanted[None, :], other=0.0)
            kind = grad_x.dtype.element_ty
            acc = tl.dot(a.to(kind), b.to(kind), acc, input_precision=PRECISION)
        places = in_batch(pixels, H, W, to_n, to_h, to_w, WIDE)
        to = grad_x + (places[:, None] + columns[None, :] * to_c)
        tl.store(to, acc.to(grad_x.dtype.element_ty), mask=valid[:, None] & wanted[None, :])


@triton.jit
def weight_gradient(
    grad_z, z, sums, count, one_gamma, one_mean, one_var, one_eps, x, x_n, x_c, x_h, x_w, partials,
    H, W, M, C, PIXELS, per_group, PRECISION: tl.constexpr, WIDE: tl.constexpr,
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
    for t in range(per_group):
        pixels = numbers(group, per_group, t, BP, WIDE)
        valid = pixels < PIXELS
        a = through_norm(
            grad_z, z, sums, one_gamma, one_mean, one_var, one_eps, count, pixels, valid, channels, M, channels < M
        )
        places = in_batch(pixels, H, W, x_n, x_h, x_w, WIDE)
        at = x + (places[:, None] + columns[None, :] * x_c)
        b = tl.load(at, mask=valid[:, None] & (columns < C)[None, :], other=0.0)
        acc = tl.dot(tl.trans(a.to(x.dtype.element_ty)), b, acc, input_precision=PRECISION)
    to = partials + (group.to(tl.int64) * M + channels[:, None]) * C + columns[None, :]
    tl.store(to, acc, mask=(channels < M)[:, None] & (columns < C)[None, :])
