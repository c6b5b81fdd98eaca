"""The kernels of ``backward.py``. Grids: groups of tiles x blocks of channels; see ``maps.py`` for runs and strips.

The names are those of docs/gradients.md, section 2. With the sums of a BatchNorm over its batch (3 x channels: Σ g,
Σ g (z - μ), and PReLU's) a gradient g of the BatchNorm's result becomes that of z:
γ r (g - Σ g / n - r² (z - μ) Σ g (z - μ) / n), r = 1 / sqrt(v + eps).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .activation import PRELU, activate, activate_backward, affine, load_or, normalized, slopes
from .maps import (
    assume_multiple,
    assume_multiple_strides,
    block_of,
    in_batch,
    load_taps,
    near,
    read_row,
    run_of,
    step_down,
    store_partial,
    take_row,
    tile_coords,
)


@triton.jit
def norm_coefficients(sums, gamma, mean, var, eps, count, channels, CHANNELS, wanted):
    """Factor, both constants and mean of the BatchNorm backward; the identity where ``sums`` is None.

    ``sums``: [3, CHANNELS]; ``channels``, ``wanted`` and the four results: [B], B channels of a block or step.
    """
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
    """A row of the gradient of activations' arguments ``a``, 0 outside of ``mask``, and of their results.

    ``mask``, ``a`` and both gradients: [BW, BM]; ``columns``: [BW]; ``channels``, ``slope``: [BM].
    """
    at = row * grad_h + columns[:, None] * grad_w + channels[None, :] * grad_c
    g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
    return tl.where(mask, activate_backward(g, a, ACT, slope[None, :]), 0.0), g


@triton.jit
def cheap_epilogue_bwd_kernel(
    z, z_n, z_c, z_h, z_w, grad, grad_n, grad_c, grad_h, grad_w,
    primary_bias, primary_gamma, primary_beta, primary_mean, primary_var, primary_eps, primary_slopes,
    primary_slopes_stride, primary_slope,
    cheap_weight,
    cheap_bias, cheap_gamma, cheap_beta, cheap_mean, cheap_var, cheap_eps, cheap_slopes, cheap_slopes_stride,
    cheap_slope,
    grad_z2, partials, H, W, M, OUT_CHANNELS, splits, per_split, PRIMARY_ACT: tl.constexpr, CHEAP_ACT: tl.constexpr,
    BATCH: tl.constexpr, D: tl.constexpr, MULTIPLIER: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr,
    BW: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """B1: the sums of g2, and ∂z2 into ``grad_z2``, [pixels, M * MULTIPLIER]; with BATCH, where the sums must be known
    first, z2 itself. ``partials``: [groups, 3, M * MULTIPLIER]."""
    M, OUT_CHANNELS = assume_multiple(M, UNIT), assume_multiple(OUT_CHANNELS, UNIT)
    z_n, z_h, z_w = assume_multiple_strides(z_n, z_h, z_w, UNIT)
    grad_n, grad_h, grad_w = assume_multiple_strides(grad_n, grad_h, grad_w, UNIT)
    # columns: [BW]; channels, wanted: [BM]
    image, split, group, columns, channels, wanted, top, bottom = tile_coords(M, H, W, splits, per_split, BW, BM, WIDE)
    # primary_center, primary_scale, primary_shift: [BM]
    primary_center, primary_scale, primary_shift = affine(
        primary_bias, primary_gamma, primary_beta, primary_mean, primary_var, primary_eps, channels, wanted
    )
    # primary_neg_slope: [BM]
    primary_neg_slope = slopes(primary_slopes, primary_slopes_stride, channels, wanted, primary_slope, PRIMARY_ACT)
    CHEAP_CHANNELS = M * MULTIPLIER
    zeros = tl.zeros((BW, BM), tl.float32)
    z += image * z_n
    grad += image * grad_n
    grad_z2 += image * (H * W) * CHEAP_CHANNELS
    for q in tl.static_range(MULTIPLIER):
        cheap_channels = channels * MULTIPLIER + q  # [BM]
        # middle, scale, shift: [BM]
        middle, scale, shift = affine(
            cheap_bias, cheap_gamma, cheap_beta, cheap_mean, cheap_var, cheap_eps, cheap_channels, wanted
        )
        neg_slope = slopes(cheap_slopes, cheap_slopes_stride, cheap_channels, wanted, cheap_slope, CHEAP_ACT)
        center = load_or(cheap_mean, cheap_channels, wanted, 0.0)  # [BM]
        taps = load_taps(cheap_weight, cheap_channels, CHEAP_CHANNELS, wanted, D)  # D * D of [BM]
        mask = (columns < W)[:, None] & wanted[None, :]  # [BW, BM]
        in_output = mask & ((M + cheap_channels) < OUT_CHANNELS)[None, :]  # [BW, BM]
        acc_next = (zeros,) * (D - 1)  # partial sums of the next D - 1 results
        first, second, third = zeros, zeros, zeros
        last = tl.minimum(bottom + D // 2, H)
        # ahead: D of [BW, BM]
        ahead = read_row(z, top - D // 2, columns, channels, last, W, z_c, z_h, z_w, wanted, D)
        for below in range(top - D // 2, bottom + D // 2):
            # acc, ahead: D of [BW, BM]
            acc, ahead = step_down(
                ahead, z, below, columns, channels, last, H, W, z_c, z_h, z_w, acc_next, taps, wanted,
                primary_center, primary_scale, primary_shift, primary_neg_slope, PRIMARY_ACT, True, D,
            )  # fmt: skip
            z2, acc_next = acc[0], acc[1:]  # [BW, BM], and D - 1 of them
            row = below - D // 2
            if row >= top:
                at = (row * W + columns)[:, None] * CHEAP_CHANNELS + cheap_channels[None, :]  # [BW, BM]
                if BATCH:
                    rounded = z2.to(grad_z2.dtype.element_ty)
                    tl.store(grad_z2 + at, rounded, mask=mask)
                    z2 = rounded.to(tl.float32)  # as ``cheap_norm_bwd_kernel`` will see it
                a2 = normalized(z2, middle, scale, shift, cheap_mean is not None)
                # g2, g: [BW, BM]
                g2, g = through_activation(
                    grad, grad_c, grad_h, grad_w, row, columns, M + cheap_channels, in_output, a2, neg_slope, CHEAP_ACT
                )
                if not BATCH:
                    gz = scale[None, :] * g2
                    tl.store(grad_z2 + at, gz.to(grad_z2.dtype.element_ty), mask=mask)
                first += g2
                second += tl.where(in_output, g2 * (z2 - center[None, :]), 0.0)
                if CHEAP_ACT == PRELU:
                    third += tl.where(in_output & ~(a2 > 0), g * a2, 0.0)
        sums = tl.sum(first, axis=0), tl.sum(second, axis=0), tl.sum(third, axis=0)  # [BM] each
        store_partial(partials, group, cheap_channels, CHEAP_CHANNELS, wanted, sums[0], sums[1], sums[2])


@triton.jit
def cheap_norm_bwd_kernel(
    grad_z2, grad, grad_n, grad_c, grad_h, grad_w,
    cheap_bias, cheap_gamma, cheap_beta, cheap_mean, cheap_var, cheap_eps, cheap_slopes, cheap_slopes_stride,
    cheap_slope,
    cheap_sums, count, H, W, M, CHEAP_CHANNELS, OUT_CHANNELS, splits, per_split, CHEAP_ACT: tl.constexpr,
    WIDE: tl.constexpr,
    UNIT: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """B2, first part: z2 in ``grad_z2`` becomes ∂z2, through a BatchNorm over the batch. Grid: see ``tile_coords``;
    blocks are of CHEAP_CHANNELS."""
    M, CHEAP_CHANNELS = assume_multiple(M, UNIT), assume_multiple(CHEAP_CHANNELS, UNIT)
    OUT_CHANNELS = assume_multiple(OUT_CHANNELS, UNIT)
    grad_n, grad_h, grad_w = assume_multiple_strides(grad_n, grad_h, grad_w, UNIT)
    # columns: [BW]; channels, wanted: [BM]
    image, split, group, columns, channels, wanted, top, bottom = tile_coords(
        CHEAP_CHANNELS, H, W, splits, per_split, BW, BM, WIDE
    )
    # middle, scale, shift: [BM]
    middle, scale, shift = affine(
        cheap_bias, cheap_gamma, cheap_beta, cheap_mean, cheap_var, cheap_eps, channels, wanted
    )
    neg_slope = slopes(cheap_slopes, cheap_slopes_stride, channels, wanted, cheap_slope, CHEAP_ACT)
    # factor, constant, linear, center: [BM]
    factor, constant, linear, center = norm_coefficients(
        cheap_sums, cheap_gamma, cheap_mean, cheap_var, cheap_eps, count, channels, CHEAP_CHANNELS, wanted
    )
    grad += image * grad_n
    grad_z2 += image * (H * W) * CHEAP_CHANNELS
    mask = (columns < W)[:, None] & wanted[None, :]
    in_output = mask & ((M + channels) < OUT_CHANNELS)[None, :]  # [BW, BM]
    for row in range(top, bottom):
        at = grad_z2 + ((row * W + columns)[:, None] * CHEAP_CHANNELS + channels[None, :])
        z2 = tl.load(at, mask=mask, other=0.0).to(tl.float32)  # [BW, BM]
        a2 = normalized(z2, middle, scale, shift, True)
        # g2: [BW, BM]
        g2, _ = through_activation(
            grad, grad_c, grad_h, grad_w, row, columns, M + channels, in_output, a2, neg_slope, CHEAP_ACT
        )
        gz = factor[None, :] * (g2 - constant[None, :] - linear[None, :] * (z2 - center[None, :]))
        tl.store(at, gz.to(grad_z2.dtype.element_ty), mask=mask)


@triton.jit
def read_grad_z2_rows(
    grad_z2, row, columns, channels, H, W, CHEAP_CHANNELS, wanted, MULTIPLIER: tl.constexpr, D: tl.constexpr
):  # fmt: skip
    """``read_row`` of ∂z2 of all cheap channels that read these channels, one after the other: MULTIPLIER * D of
    [BW, BM]."""
    found = ()
    for q in tl.static_range(MULTIPLIER):
        found = found + read_row(
            grad_z2, row, columns, channels * MULTIPLIER + q, H, W, 1, W * CHEAP_CHANNELS, CHEAP_CHANNELS, wanted, D
        )  # fmt: skip
    return found


@triton.jit
def primary_epilogue_bwd_kernel(
    z, z_n, z_c, z_h, z_w, grad, grad_n, grad_c, grad_h, grad_w,
    primary_bias, primary_gamma, primary_beta, primary_mean, primary_var, primary_eps, primary_slopes,
    primary_slopes_stride, primary_slope,
    cheap_weight, grad_z2, grad_z, to_n, to_c, to_h, to_w, partials, H, W, M, splits, per_split,
    PRIMARY_ACT: tl.constexpr, D: tl.constexpr, MULTIPLIER: tl.constexpr,
    WIDE: tl.constexpr, UNIT: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """B2: g1, the gradient of the first BatchNorm's result (∂z1 without one), into ``grad_z``, and its sums.

    ``grad_z2``: [pixels, M * MULTIPLIER]; ``partials``: [groups, 3, M].
    """
    M = assume_multiple(M, UNIT)
    z_n, z_h, z_w = assume_multiple_strides(z_n, z_h, z_w, UNIT)
    grad_n, grad_h, grad_w = assume_multiple_strides(grad_n, grad_h, grad_w, UNIT)
    to_n, to_h, to_w = assume_multiple_strides(to_n, to_h, to_w, UNIT)
    # columns: [BW]; channels, wanted: [BM]
    image, split, group, columns, channels, wanted, top, bottom = tile_coords(M, H, W, splits, per_split, BW, BM, WIDE)
    # middle, scale, shift: [BM]
    middle, scale, shift = affine(
        primary_bias, primary_gamma, primary_beta, primary_mean, primary_var, primary_eps, channels, wanted
    )
    neg_slope = slopes(primary_slopes, primary_slopes_stride, channels, wanted, primary_slope, PRIMARY_ACT)
    center = load_or(primary_mean, channels, wanted, 0.0)  # [BM]
    CHEAP_CHANNELS = M * MULTIPLIER
    z += image * z_n
    grad += image * grad_n
    grad_z += image * to_n
    if MULTIPLIER > 0:
        grad_z2 += image * (H * W) * CHEAP_CHANNELS
    mask = (columns < W)[:, None] & wanted[None, :]  # [BW, BM]
    zeros = tl.zeros((BW, BM), tl.float32)
    first, second, third = zeros, zeros, zeros
    taps = ()  # MULTIPLIER * D * D of [BM]
    for q in tl.static_range(MULTIPLIER):
        taps = taps + load_taps(cheap_weight, channels * MULTIPLIER + q, CHEAP_CHANNELS, wanted, D)
    acc_next = (zeros,) * (D - 1)  # partial sums of the next D - 1 results
    last = tl.minimum(bottom + D // 2, H)
    # ahead: MULTIPLIER * D of [BW, BM]
    ahead = read_grad_z2_rows(grad_z2, top - D // 2, columns, channels, last, W, CHEAP_CHANNELS, wanted, MULTIPLIER, D)
    for below in range(top - D // 2, bottom + D // 2):
        seen = ahead  # while this row is used, the next one is being loaded
        ahead = read_grad_z2_rows(grad_z2, below + 1, columns, channels, last, W, CHEAP_CHANNELS, wanted, MULTIPLIER, D)
        acc = acc_next + (zeros,)  # D of [BW, BM]
        for q in tl.static_range(MULTIPLIER):
            acc = take_row(
                seen[q * D : (q + 1) * D], below, columns, H, W, acc, taps[q * D * D : (q + 1) * D * D], wanted,
                middle, scale, shift, neg_slope, PRIMARY_ACT, False, True, D,
            )  # fmt: skip
        acc_next = acc[1:]
        row = below - D // 2
        if row >= top:
            at = row * z_h + columns[:, None] * z_w + channels[None, :] * z_c
            z1 = tl.load(z + at, mask=mask, other=0.0).to(tl.float32)  # [BW, BM]
            at = row * grad_h + columns[:, None] * grad_w + channels[None, :] * grad_c
            g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32) + acc[0]
            a1 = (z1 - middle[None, :]) * scale[None, :] + shift[None, :]
            g1 = tl.where(mask, activate_backward(g, a1, PRIMARY_ACT, neg_slope[None, :]), 0.0)  # [BW, BM]
            first += g1
            second += tl.where(mask, g1 * (z1 - center[None, :]), 0.0)
            if PRIMARY_ACT == PRELU:
                third += tl.where(mask & ~(a1 > 0), g * a1, 0.0)
            at = row * to_h + columns[:, None] * to_w + channels[None, :] * to_c
            tl.store(grad_z + at, g1.to(grad_z.dtype.element_ty), mask=mask)
    sums = tl.sum(first, axis=0), tl.sum(second, axis=0), tl.sum(third, axis=0)  # [BM] each
    store_partial(partials, group, channels, M, wanted, sums[0], sums[1], sums[2])


@triton.jit
def cheap_weight_bwd_kernel(
    z, z_n, z_c, z_h, z_w,
    primary_bias, primary_gamma, primary_beta, primary_mean, primary_var, primary_eps, primary_slopes,
    primary_slopes_stride, primary_slope,
    grad_z2, weights, H, W, M, splits, per_split, PRIMARY_ACT: tl.constexpr, D: tl.constexpr,
    MULTIPLIER: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr,
    BW: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """B2: gradient of the cheap weight, ∂W2[a, b] = Σ y1[u] ∂z2[u - offset(a, b)]. The grid's second
    axis is the multiplier. ``weights``: [groups, MULTIPLIER, D, D, M]."""
    M = assume_multiple(M, UNIT)
    z_n, z_h, z_w = assume_multiple_strides(z_n, z_h, z_w, UNIT)
    # columns: [BW]; channels, wanted: [BM]
    image, split, group, columns, channels, wanted, top, bottom = tile_coords(M, H, W, splits, per_split, BW, BM, WIDE)
    # middle, scale, shift: [BM]
    middle, scale, shift = affine(
        primary_bias, primary_gamma, primary_beta, primary_mean, primary_var, primary_eps, channels, wanted
    )
    neg_slope = slopes(primary_slopes, primary_slopes_stride, channels, wanted, primary_slope, PRIMARY_ACT)
    CHEAP_CHANNELS = M * MULTIPLIER
    z += image * z_n
    grad_z2 += image * (H * W) * CHEAP_CHANNELS
    q = tl.program_id(1)
    cheap_channels = channels
    if MULTIPLIER > 1:
        cheap_channels = channels * MULTIPLIER + q  # [BM]
    mask = (columns < W)[:, None] & wanted[None, :]  # [BW, BM]
    sums = (tl.zeros((BW, BM), tl.float32),) * (D * D)  # D * D of [BW, BM]
    for row in range(top, bottom):
        at = row * z_h + columns[:, None] * z_w + channels[None, :] * z_c
        a1 = (tl.load(z + at, mask=mask, other=0.0).to(tl.float32) - middle[None, :]) * scale[None, :] + shift[None, :]
        y1 = activate(a1, PRIMARY_ACT, neg_slope[None, :])  # [BW, BM]
        for i in tl.static_range(D):
            there = row + (D // 2 - i)
            for j in tl.static_range(D):
                # Outside of the map nothing is added, whatever y1 is.
                found = mask & near(there, columns, D - 1 - j, H, W, wanted, D)  # [BW, BM]
                at = (there * W + columns + (D // 2 - j))[:, None] * CHEAP_CHANNELS + cheap_channels[None, :]
                gz = tl.load(grad_z2 + at, mask=found, other=0.0).to(tl.float32)  # [BW, BM]
                more = sums[i * D + j] + gz * tl.where(found, y1, 0.0)
                sums = sums[: i * D + j] + (more,) + sums[i * D + j + 1 :]
    to = weights + (group.to(tl.int64) * MULTIPLIER + q) * (D * D) * M + channels
    for k in tl.static_range(D * D):
        tl.store(to + k * M, tl.sum(sums[k], axis=0), mask=wanted)  # [BM]


@triton.jit
def through_norm(
    grad_z, z, pixels, valid, channels, M, factor, constant, linear, center, NORM: tl.constexpr
):  # fmt: skip
    """A tile of the gradient of z, [BP, B], float32, of two maps that are [all pixels, M]; NORM: through
    ``norm_coefficients``. ``pixels``, ``valid``: [BP]; ``channels`` and the coefficients: [B]."""
    mask = valid[:, None] & (channels < M)[None, :]
    at = pixels[:, None] * M + channels[None, :]  # [BP, B]
    g = tl.load(grad_z + at, mask=mask, other=0.0).to(tl.float32)
    if NORM:
        z1 = tl.load(z + at, mask=mask, other=0.0).to(tl.float32)
        g = factor[None, :] * (g - constant[None, :] - linear[None, :] * (z1 - center[None, :]))
        g = tl.where(mask, g, 0.0)
    return g


@triton.jit
def through_weight(weight, M, C, k, columns, wanted, kind: tl.constexpr, BK: tl.constexpr):
    """Rows of the weight, [M, C], from k on: [BK, BM]. ``columns``, ``wanted``: [BM]."""
    channels = k + tl.arange(0, BK)  # [BK]
    at = weight + (channels[:, None].to(tl.int64) * C + columns[None, :])
    return tl.load(at, mask=(channels < M)[:, None] & wanted[None, :], other=0.0).to(kind)


@triton.jit
def input_bwd_kernel(
    grad_z, z, sums, count, primary_gamma, primary_mean, primary_var, primary_eps, weight, grad_x, to_n, to_c, to_h,
    to_w,
    H, W, M, C, PIXELS, per_group, PRECISION: tl.constexpr, ONE_STEP: tl.constexpr, FLAT_IN: tl.constexpr,
    WIDE: tl.constexpr, UNIT_IN: tl.constexpr, UNIT: tl.constexpr,
    BP: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """B3: ∂x. Blocks are of its C channels (BM of them), products run over M. ONE_STEP: see ``product``.

    ``grad_z``, ``z``: [pixels, M]; ``weight``: [M, C]; ``grad_x``: pixels of C channels, by strides.
    """
    C, M = assume_multiple(C, UNIT_IN), assume_multiple(M, UNIT)
    to_n, to_h, to_w = assume_multiple_strides(to_n, to_h, to_w, UNIT_IN)
    kind: tl.constexpr = grad_x.dtype.element_ty
    blocks = tl.cdiv(C, BM)
    group = tl.program_id(0) // blocks
    columns = block_of(tl.program_id(0) % blocks, BM, WIDE)  # [BM]
    wanted = columns < C
    NORM: tl.constexpr = sums is not None
    inner = tl.arange(0, BK)  # [BK]
    # factor, constant, linear, center: [BK]
    factor, constant, linear, center = norm_coefficients(
        sums, primary_gamma, primary_mean, primary_var, primary_eps, count, inner, M, inner < M
    )
    for t in range(per_group):
        pixels = run_of(group, per_group, t, BP, WIDE)  # [BP]
        valid = pixels < PIXELS
        acc = tl.zeros((BP, BM), tl.float32)
        if ONE_STEP:
            a = through_norm(grad_z, z, pixels, valid, inner, M, factor, constant, linear, center, NORM)  # [BP, BK]
            b = through_weight(weight, M, C, 0, columns, wanted, kind, BK)  # [BK, BM]
            acc = tl.dot(a.to(kind), b, acc, input_precision=PRECISION)
        else:
            for k in range(0, M, BK):
                channels = k + tl.arange(0, BK)  # [BK]
                factor_k, constant_k, linear_k, center_k = norm_coefficients(
                    sums, primary_gamma, primary_mean, primary_var, primary_eps, count, channels, M, channels < M
                )  # fmt: skip
                # a: [BP, BK]
                a = through_norm(grad_z, z, pixels, valid, channels, M, factor_k, constant_k, linear_k, center_k, NORM)
                b = through_weight(weight, M, C, k, columns, wanted, kind, BK)  # [BK, BM]
                acc = tl.dot(a.to(kind), b, acc, input_precision=PRECISION)
        places = in_batch(pixels, H, W, to_n, to_h, to_w, FLAT_IN, WIDE)  # [BP]
        to = grad_x + (places[:, None] + columns[None, :] * to_c)  # [BP, BM]
        tl.store(to, acc.to(kind), mask=valid[:, None] & wanted[None, :])


@triton.jit
def primary_weight_bwd_kernel(
    grad_z, z, sums, count, primary_gamma, primary_mean, primary_var, primary_eps, x, x_n, x_c, x_h, x_w, partials,
    H, W, M, C, PIXELS, per_group, PRECISION: tl.constexpr, FLAT_IN: tl.constexpr, WIDE: tl.constexpr,
    UNIT_IN: tl.constexpr, UNIT: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """B3: ∂W1, as partial products over pixels, [groups, M, C]. ``grad_z``, ``z``: [pixels, M]."""
    C, M = assume_multiple(C, UNIT_IN), assume_multiple(M, UNIT)
    x_n, x_h, x_w = assume_multiple_strides(x_n, x_h, x_w, UNIT_IN)
    across = tl.cdiv(C, BC)
    blocks = tl.cdiv(M, BM) * across
    block = tl.program_id(0) % blocks
    group = tl.program_id(0) // blocks
    channels = block_of(block // across, BM, WIDE)  # [BM]
    columns = block_of(block % across, BC, WIDE)  # [BC]
    acc = tl.zeros((BM, BC), tl.float32)
    # factor, constant, linear, center: [BM]
    factor, constant, linear, center = norm_coefficients(
        sums, primary_gamma, primary_mean, primary_var, primary_eps, count, channels, M, channels < M
    )
    for t in range(per_group):
        pixels = run_of(group, per_group, t, BP, WIDE)  # [BP]
        valid = pixels < PIXELS
        # a: [BP, BM]
        a = through_norm(grad_z, z, pixels, valid, channels, M, factor, constant, linear, center, sums is not None)
        places = in_batch(pixels, H, W, x_n, x_h, x_w, FLAT_IN, WIDE)  # [BP]
        at = x + (places[:, None] + columns[None, :] * x_c)
        b = tl.load(at, mask=valid[:, None] & (columns < C)[None, :], other=0.0)  # [BP, BC]
        acc = tl.dot(tl.trans(a.to(x.dtype.element_ty)), b, acc, input_precision=PRECISION)  # [BM, BC]
    to = partials + (group.to(tl.int64) * M + channels[:, None]) * C + columns[None, :]  # [BM, BC]
    tl.store(to, acc, mask=(channels < M)[:, None] & (columns < C)[None, :])
