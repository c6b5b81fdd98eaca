"""The kernels of ``backward``. Grids: groups of tiles x blocks of channels; see ``maps`` for runs and strips.

With the sums of a BatchNorm over its batch (3 x channels: Σ g, Σ g (z - mean),
PReLU's) a gradient g of the BatchNorm's result becomes that of z:
γ r (g - Σ g / n - r² (z - mean) Σ g (z - mean) / n), r = 1 / sqrt(var + eps).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .activation import PRELU, activate, activate_backward, affine, load_or, normalized, slopes
from .maps import (
    block_of,
    in_batch,
    near,
    read_row,
    run_of,
    step_down,
    store_partial,
    strip_of,
    take_row,
    weights_of,
    whole,
    whole_strides,
)


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
def through_activation(
    grad, grad_c, grad_h, grad_w, row, columns, channels, mask, a, slope, ACT: tl.constexpr
):  # fmt: skip
    """A row of the gradient of activations' arguments ``a``, 0 outside of ``mask``, and of their results."""
    at = row * grad_h + columns[:, None] * grad_w + channels[None, :] * grad_c
    g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
    return tl.where(mask, activate_backward(g, a, ACT, slope[None, :]), 0.0), g


@triton.jit
def cheap_gradient(
    z, z_n, z_c, z_h, z_w, grad, grad_n, grad_c, grad_h, grad_w,
    one_bias, one_gamma, one_beta, one_mean, one_var, one_eps, one_slopes, one_slopes_stride, one_slope,
    cheap_weight,
    two_bias, two_gamma, two_beta, two_mean, two_var, two_eps, two_slopes, two_slopes_stride, two_slope,
    made_map, partials, H, W, M, KEPT, splits, per_split, ONE_ACT: tl.constexpr, TWO_ACT: tl.constexpr,
    BATCH: tl.constexpr, D: tl.constexpr, MULTIPLIER: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr,
    BW: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Sums of the gradient of the second BatchNorm's result, and into ``made_map`` (pixels x M * MULTIPLIER) that
    gradient; with BATCH, where the sums must be known first, what it is made of: the cheap convolution's result."""
    M, KEPT = whole(M, UNIT), whole(KEPT, UNIT)
    z_n, z_h, z_w = whole_strides(z_n, z_h, z_w, UNIT)
    grad_n, grad_h, grad_w = whole_strides(grad_n, grad_h, grad_w, UNIT)
    image, split, group, columns, channels, wanted, top, bottom = strip_of(M, H, W, splits, per_split, BW, BM, WIDE)
    one_center, one_scale, one_shift = affine(
        one_bias, one_gamma, one_beta, one_mean, one_var, one_eps, channels, wanted
    )
    one_bent = slopes(one_slopes, one_slopes_stride, channels, wanted, one_slope, ONE_ACT)
    MADE = M * MULTIPLIER
    nothing = tl.zeros((BW, BM), tl.float32)
    z += image * z_n
    grad += image * grad_n
    made_map += image * (H * W) * MADE
    for q in tl.static_range(MULTIPLIER):
        made = channels * MULTIPLIER + q
        middle, scale, shift = affine(two_bias, two_gamma, two_beta, two_mean, two_var, two_eps, made, wanted)
        bent = slopes(two_slopes, two_slopes_stride, made, wanted, two_slope, TWO_ACT)
        center = load_or(two_mean, made, wanted, 0.0)
        held = weights_of(cheap_weight, made, MADE, wanted, D)
        mask = (columns < W)[:, None] & wanted[None, :]
        kept = mask & ((M + made) < KEPT)[None, :]
        pending = (nothing,) * (D - 1)  # results that the rows read so far began
        first, second, third = nothing, nothing, nothing
        last = tl.minimum(bottom + D // 2, H)
        ahead = read_row(z, top - D // 2, columns, channels, last, W, z_c, z_h, z_w, wanted, D)
        for below in range(top - D // 2, bottom + D // 2):
            begun, ahead = step_down(
                ahead, z, below, columns, channels, last, H, W, z_c, z_h, z_w, pending, held, wanted,
                one_center, one_scale, one_shift, one_bent, ONE_ACT, True, D,
            )  # fmt: skip
            z2, pending = begun[0], begun[1:]
            row = below - D // 2
            if row >= top:
                at = (row * W + columns)[:, None] * MADE + made[None, :]
                if BATCH:
                    rounded = z2.to(made_map.dtype.element_ty)
                    tl.store(made_map + at, rounded, mask=mask)
                    z2 = rounded.to(tl.float32)  # as ``norm_gradient`` will see it
                a2 = normalized(z2, middle, scale, shift, two_mean is not None)
                g2, g = through_activation(
                    grad, grad_c, grad_h, grad_w, row, columns, M + made, kept, a2, bent, TWO_ACT
                )
                if not BATCH:
                    gz = scale[None, :] * g2
                    tl.store(made_map + at, gz.to(made_map.dtype.element_ty), mask=mask)
                first += g2
                second += tl.where(kept, g2 * (z2 - center[None, :]), 0.0)
                if TWO_ACT == PRELU:
                    third += tl.where(kept & ~(a2 > 0), g * a2, 0.0)
        sums = tl.sum(first, axis=0), tl.sum(second, axis=0), tl.sum(third, axis=0)
        store_partial(partials, group, made, MADE, wanted, sums[0], sums[1], sums[2])


@triton.jit
def norm_gradient(
    made_map, grad, grad_n, grad_c, grad_h, grad_w,
    two_bias, two_gamma, two_beta, two_mean, two_var, two_eps, two_slopes, two_slopes_stride, two_slope,
    two_sums, count, H, W, M, MADE, KEPT, splits, per_split, TWO_ACT: tl.constexpr, WIDE: tl.constexpr,
    UNIT: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """The cheap convolution's result in ``made_map`` becomes its gradient, through a BatchNorm over the batch. Grid:
    see ``strip_of``; blocks are of MADE."""
    M, MADE, KEPT = whole(M, UNIT), whole(MADE, UNIT), whole(KEPT, UNIT)
    grad_n, grad_h, grad_w = whole_strides(grad_n, grad_h, grad_w, UNIT)
    image, split, group, columns, channels, wanted, top, bottom = strip_of(MADE, H, W, splits, per_split, BW, BM, WIDE)
    middle, scale, shift = affine(two_bias, two_gamma, two_beta, two_mean, two_var, two_eps, channels, wanted)
    bent = slopes(two_slopes, two_slopes_stride, channels, wanted, two_slope, TWO_ACT)
    factor, constant, linear, center = norm_coefficients(
        two_sums, two_gamma, two_mean, two_var, two_eps, count, channels, MADE, wanted
    )
    grad += image * grad_n
    made_map += image * (H * W) * MADE
    mask = (columns < W)[:, None] & wanted[None, :]
    kept = mask & ((M + channels) < KEPT)[None, :]
    for row in range(top, bottom):
        at = made_map + ((row * W + columns)[:, None] * MADE + channels[None, :])
        z2 = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        a2 = normalized(z2, middle, scale, shift, True)
        g2, _ = through_activation(grad, grad_c, grad_h, grad_w, row, columns, M + channels, kept, a2, bent, TWO_ACT)
        gz = factor[None, :] * (g2 - constant[None, :] - linear[None, :] * (z2 - center[None, :]))
        tl.store(at, gz.to(made_map.dtype.element_ty), mask=mask)


@triton.jit
def made_rows(
    grad_made, row, columns, channels, H, W, MADE, wanted, MULTIPLIER: tl.constexpr, D: tl.constexpr
):  # fmt: skip
    """``read_row`` of the gradients of all that is made of these channels, one after the other."""
    found = ()
    for q in tl.static_range(MULTIPLIER):
        found = found + read_row(
            grad_made, row, columns, channels * MULTIPLIER + q, H, W, 1, W * MADE, MADE, wanted, D
        )  # fmt: skip
    return found


@triton.jit
def primary_gradient(
    z, z_n, z_c, z_h, z_w, grad, grad_n, grad_c, grad_h, grad_w,
    one_bias, one_gamma, one_beta, one_mean, one_var, one_eps, one_slopes, one_slopes_stride, one_slope,
    cheap_weight, grad_made, grad_z, to_n, to_c, to_h, to_w, partials, H, W, M, splits, per_split,
    ONE_ACT: tl.constexpr, D: tl.constexpr, MULTIPLIER: tl.constexpr,
    WIDE: tl.constexpr, UNIT: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Gradient of the first BatchNorm's result (z's, without one) into ``grad_z``, and its sums."""
    M = whole(M, UNIT)
    z_n, z_h, z_w = whole_strides(z_n, z_h, z_w, UNIT)
    grad_n, grad_h, grad_w = whole_strides(grad_n, grad_h, grad_w, UNIT)
    to_n, to_h, to_w = whole_strides(to_n, to_h, to_w, UNIT)
    image, split, group, columns, channels, wanted, top, bottom = strip_of(M, H, W, splits, per_split, BW, BM, WIDE)
    middle, scale, shift = affine(one_bias, one_gamma, one_beta, one_mean, one_var, one_eps, channels, wanted)
    bent = slopes(one_slopes, one_slopes_stride, channels, wanted, one_slope, ONE_ACT)
    center = load_or(one_mean, channels, wanted, 0.0)
    MADE = M * MULTIPLIER
    z += image * z_n
    grad += image * grad_n
    grad_z += image * to_n
    if MULTIPLIER > 0:
        grad_made += image * (H * W) * MADE
    mask = (columns < W)[:, None] & wanted[None, :]
    nothing = tl.zeros((BW, BM), tl.float32)
    first, second, third = nothing, nothing, nothing
    held = ()
    for q in tl.static_range(MULTIPLIER):
        held = held + weights_of(cheap_weight, channels * MULTIPLIER + q, MADE, wanted, D)
    pending = (nothing,) * (D - 1)  # results that the rows read so far began
    last = tl.minimum(bottom + D // 2, H)
    ahead = made_rows(grad_made, top - D // 2, columns, channels, last, W, MADE, wanted, MULTIPLIER, D)
    for below in range(top - D // 2, bottom + D // 2):
        seen = ahead  # while this row is computed with, the next one is under way
        ahead = made_rows(grad_made, below + 1, columns, channels, last, W, MADE, wanted, MULTIPLIER, D)
        begun = pending + (nothing,)
        for q in tl.static_range(MULTIPLIER):
            begun = take_row(
                seen[q * D : (q + 1) * D], below, columns, H, W, begun, held[q * D * D : (q + 1) * D * D], wanted,
                middle, scale, shift, bent, ONE_ACT, False, True, D,
            )  # fmt: skip
        pending = begun[1:]
        row = below - D // 2
        if row >= top:
            at = row * z_h + columns[:, None] * z_w + channels[None, :] * z_c
            z1 = tl.load(z + at, mask=mask, other=0.0).to(tl.float32)
            at = row * grad_h + columns[:, None] * grad_w + channels[None, :] * grad_c
            g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32) + begun[0]
            a1 = (z1 - middle[None, :]) * scale[None, :] + shift[None, :]
            g1 = tl.where(mask, activate_backward(g, a1, ONE_ACT, bent[None, :]), 0.0)
            first += g1
            second += tl.where(mask, g1 * (z1 - center[None, :]), 0.0)
            if ONE_ACT == PRELU:
                third += tl.where(mask & ~(a1 > 0), g * a1, 0.0)
            at = row * to_h + columns[:, None] * to_w + channels[None, :] * to_c
            tl.store(grad_z + at, g1.to(grad_z.dtype.element_ty), mask=mask)
    sums = tl.sum(first, axis=0), tl.sum(second, axis=0), tl.sum(third, axis=0)
    store_partial(partials, group, channels, M, wanted, sums[0], sums[1], sums[2])


@triton.jit
def tap_gradient(
    z, z_n, z_c, z_h, z_w,
    one_bias, one_gamma, one_beta, one_mean, one_var, one_eps, one_slopes, one_slopes_stride, one_slope,
    grad_made, weights, H, W, M, splits, per_split, ONE_ACT: tl.constexpr, D: tl.constexpr,
    MULTIPLIER: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr,
    BW: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Gradient of the cheap weight: ∂W2[a, b] = Σ y1[u] ∂z2[u - offset(a, b)]. ``weights``: groups x MULTIPLIER x D x D
    x M. The grid's second axis goes through what is made of each channel."""
    M = whole(M, UNIT)
    z_n, z_h, z_w = whole_strides(z_n, z_h, z_w, UNIT)
    image, split, group, columns, channels, wanted, top, bottom = strip_of(M, H, W, splits, per_split, BW, BM, WIDE)
    middle, scale, shift = affine(one_bias, one_gamma, one_beta, one_mean, one_var, one_eps, channels, wanted)
    bent = slopes(one_slopes, one_slopes_stride, channels, wanted, one_slope, ONE_ACT)
    MADE = M * MULTIPLIER
    z += image * z_n
    grad_made += image * (H * W) * MADE
    q = tl.program_id(1)
    made = channels
    if MULTIPLIER > 1:
        made = channels * MULTIPLIER + q
    mask = (columns < W)[:, None] & wanted[None, :]
    sums = (tl.zeros((BW, BM), tl.float32),) * (D * D)
    for row in range(top, bottom):
        at = row * z_h + columns[:, None] * z_w + channels[None, :] * z_c
        a1 = (tl.load(z + at, mask=mask, other=0.0).to(tl.float32) - middle[None, :]) * scale[None, :] + shift[None, :]
        y1 = activate(a1, ONE_ACT, bent[None, :])
        for i in tl.static_range(D):
            there = row + (D // 2 - i)
            for j in tl.static_range(D):
                # Where there is no such result nothing is added, whatever y1 is.
                found = mask & near(there, columns, D - 1 - j, H, W, wanted, D)
                at = (there * W + columns + (D // 2 - j))[:, None] * MADE + made[None, :]
                gz = tl.load(grad_made + at, mask=found, other=0.0).to(tl.float32)
                more = sums[i * D + j] + gz * tl.where(found, y1, 0.0)
                sums = sums[: i * D + j] + (more,) + sums[i * D + j + 1 :]
    to = weights + (group.to(tl.int64) * MULTIPLIER + q) * (D * D) * M + channels
    for k in tl.static_range(D * D):
        tl.store(to + k * M, tl.sum(sums[k], axis=0), mask=wanted)


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
