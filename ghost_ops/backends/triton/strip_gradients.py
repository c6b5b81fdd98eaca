"""The kernels of ``backward.py`` that go through strips: the gradients from the output to that of z1 (B1 and B2).

Grids: see ``maps.tile_coords``. The names are those of docs/gradients.md, section 2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .activation import PRELU, activate, activate_backward, affine, load_coefficients, load_or, normalized, slopes
from .jit import kernel
from .joins import JOINED, join_gradients_last
from .maps import (
    as_inputs,
    assume_multiple,
    assume_multiple_strides,
    has_sums,
    joined_block,
    load_taps,
    near,
    read_row,
    store_partial,
    sum_where,
    take_row,
    tile_coords,
)


@kernel
def cheap_epilogue_bwd_kernel(
    z, z_n, z_c, z_h, z_w, grad, grad_n, grad_c, grad_h, grad_w,
    primary_bias, primary_gamma, primary_beta, primary_mean, primary_var, primary_eps, primary_slopes,
    primary_slopes_stride, primary_slope,
    cheap_weight, cheap_weight_c, cheap_weight_tap,
    cheap_bias, cheap_gamma, cheap_beta, cheap_mean, cheap_var, cheap_eps, cheap_slopes, cheap_slopes_stride,
    cheap_slope,
    grad_z2, partials, join_counters, join_count, join_gamma, join_mean, join_var, join_eps, join_coefficients,
    join_grad_bias, join_grad_beta, join_grad_gamma, join_grad_slopes,
    H, W, M, OUT_CHANNELS, splits, per_split, vectors, join_BATCH: tl.constexpr,
    PRIMARY_ACT: tl.constexpr, CHEAP_ACT: tl.constexpr, BATCH: tl.constexpr, D: tl.constexpr, MULTIPLIER: tl.constexpr,
    WIDE: tl.constexpr, UNIT: tl.constexpr,
    BW: tl.constexpr, BM: tl.constexpr, DOUBLINGS: tl.constexpr,
):  # fmt: skip
    """B1: the sums of g2, and ∂z2 into ``grad_z2``, [pixels, M * MULTIPLIER]; with BATCH, where the sums must be known
    first, z2 itself. ``partials``: [groups, 3, M * MULTIPLIER]."""
    M, OUT_CHANNELS = assume_multiple(M, UNIT), assume_multiple(OUT_CHANNELS, UNIT)
    z_n, z_h, z_w = assume_multiple_strides(z_n, z_h, z_w, UNIT)
    grad_n, grad_h, grad_w = assume_multiple_strides(grad_n, grad_h, grad_w, UNIT)
    # columns: [BW]; channels, wanted: [BM]
    image, split, group, columns, channels, wanted, top, bottom = tile_coords(
        M, H, W, splits, per_split, BW, BM, WIDE, vectors
    )
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
    mask = (columns < W)[:, None] & wanted  # [BW, BM]
    for q in tl.static_range(MULTIPLIER):
        cheap_channels = channels * MULTIPLIER + q  # [BM]
        # center, scale, shift: [BM]
        center, scale, shift = affine(
            cheap_bias, cheap_gamma, cheap_beta, cheap_mean, cheap_var, cheap_eps, cheap_channels, wanted
        )
        neg_slope = slopes(cheap_slopes, cheap_slopes_stride, cheap_channels, wanted, cheap_slope, CHEAP_ACT)
        taps = load_taps(cheap_weight, cheap_weight_c, cheap_weight_tap, cheap_channels, wanted, D)  # D * D of [BM]
        in_output = mask & ((M + cheap_channels) < OUT_CHANNELS)  # [BW, BM]
        grad_place = columns[:, None] * grad_w + (M + cheap_channels) * grad_c  # [BW, BM]
        place = columns[:, None] * CHEAP_CHANNELS + cheap_channels  # [BW, BM]
        acc_next = (zeros,) * (D - 1)  # partial sums of the next D - 1 results
        first, second, third = zeros, zeros, zeros
        last = tl.minimum(bottom + D // 2, H)
        # ahead: D of [BW, BM]
        ahead = read_row(z, top - D // 2, columns, channels, last, W, z_c, z_h, z_w, wanted, D)
        grad_ahead = tl.load(grad + (top * grad_h + grad_place), mask=in_output, other=0.0)
        for below in range(top - D // 2, bottom + D // 2):
            seen, here = ahead, grad_ahead  # while this row is used, the next one is being loaded
            row = below - D // 2
            ahead = read_row(z, below + 1, columns, channels, last, W, z_c, z_h, z_w, wanted, D)
            if D <= 3:  # the taps of larger kernels leave no registers for it
                row_ahead = tl.minimum(tl.maximum(row + 1, top), bottom - 1)
                grad_ahead = tl.load(grad + (row_ahead * grad_h + grad_place), mask=in_output, other=0.0)
            inputs = as_inputs(
                seen, below, columns, H, W, wanted, primary_center, primary_scale, primary_shift, primary_neg_slope,
                PRIMARY_ACT, True, D,
            )  # fmt: skip
            acc = take_row(inputs, acc_next + (zeros,), taps, False, D)  # D of [BW, BM]
            z2, acc_next = acc[0], acc[1:]  # [BW, BM], and D - 1 of them
            if row >= top:
                at = grad_z2 + (row * W * CHEAP_CHANNELS + place)
                if BATCH:
                    rounded = z2.to(grad_z2.dtype.element_ty)
                    tl.store(at, rounded, mask=mask)
                    z2 = rounded.to(tl.float32)  # as ``cheap_norm_bwd_kernel`` will see it
                if D > 3:
                    here = tl.load(grad + (row * grad_h + grad_place), mask=in_output, other=0.0)
                g = here.to(tl.float32)
                apart = z2 - center
                a2 = apart
                if cheap_mean is not None:
                    a2 = apart * scale + shift
                g2 = activate_backward(g, a2, CHEAP_ACT, neg_slope)
                if not BATCH:
                    tl.store(at, (scale * g2).to(grad_z2.dtype.element_ty), mask=mask)
                first += g2
                second += g2 * apart
                if CHEAP_ACT == PRELU:
                    third += tl.where(a2 > 0, 0.0, g * a2)
        store_partial(
            partials, group, cheap_channels, CHEAP_CHANNELS, has_sums(wanted, vectors, BW),
            sum_where(in_output, first, vectors, DOUBLINGS),
            sum_where(in_output, second, vectors, DOUBLINGS), sum_where(in_output, third, vectors, DOUBLINGS),
        )  # fmt: skip
        if join_counters is not None:
            blocks, block, begin, width = joined_block(M, vectors, BM)
            join_gradients_last(
                partials, join_counters, group, tl.num_programs(0) // blocks, block * MULTIPLIER + q, begin, width,
                MULTIPLIER, q, CHEAP_CHANNELS, join_count, join_gamma, join_mean, join_var, join_eps,
                join_coefficients, join_grad_bias, join_grad_beta, join_grad_gamma, join_grad_slopes, join_BATCH,
                BM if vectors is None else JOINED, 1024 if vectors is None else 256,
            )  # fmt: skip


@kernel
def cheap_norm_bwd_kernel(
    grad_z2, grad, grad_n, grad_c, grad_h, grad_w,
    cheap_bias, cheap_gamma, cheap_beta, cheap_mean, cheap_var, cheap_eps, cheap_slopes, cheap_slopes_stride,
    cheap_slope,
    coefficients, H, W, M, CHEAP_CHANNELS, OUT_CHANNELS, splits, per_split, vectors, CHEAP_ACT: tl.constexpr,
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
        CHEAP_CHANNELS, H, W, splits, per_split, BW, BM, WIDE, vectors
    )
    # middle, scale, shift: [BM]
    middle, scale, shift = affine(
        cheap_bias, cheap_gamma, cheap_beta, cheap_mean, cheap_var, cheap_eps, channels, wanted
    )
    neg_slope = slopes(cheap_slopes, cheap_slopes_stride, channels, wanted, cheap_slope, CHEAP_ACT)
    # factor, constant, linear, center: [BM]
    factor, constant, linear, center = load_coefficients(coefficients, channels, CHEAP_CHANNELS, wanted)
    grad += image * grad_n
    grad_z2 += image * (H * W) * CHEAP_CHANNELS
    mask = (columns < W)[:, None] & wanted
    in_output = mask & ((M + channels) < OUT_CHANNELS)  # [BW, BM]
    grad_place = columns[:, None] * grad_w + (M + channels) * grad_c  # [BW, BM]
    for row in range(top, bottom):
        at = grad_z2 + ((row * W + columns)[:, None] * CHEAP_CHANNELS + channels)
        z2 = tl.load(at, mask=mask, other=0.0).to(tl.float32)  # [BW, BM]
        a2 = normalized(z2, middle, scale, shift, True)
        g = tl.load(grad + (row * grad_h + grad_place), mask=in_output, other=0.0).to(tl.float32)
        g2 = activate_backward(g, a2, CHEAP_ACT, neg_slope)  # [BW, BM]
        gz = factor * (g2 - constant - linear * (z2 - center))
        tl.store(at, gz.to(grad_z2.dtype.element_ty), mask=mask)


@kernel
def cheap_conv_bwd_kernel(
    z, z_n, z_c, z_h, z_w, grad, grad_n, grad_c, grad_h, grad_w,
    primary_bias, primary_gamma, primary_beta, primary_mean, primary_var, primary_eps, primary_slopes,
    primary_slopes_stride, primary_slope,
    cheap_weight, cheap_weight_c, cheap_weight_tap, grad_z2, grad_z, to_n, to_c, to_h, to_w,
    partials, join_counters, join_count, join_gamma, join_mean, join_var, join_eps, join_coefficients, join_grad_bias,
    join_grad_beta, join_grad_gamma, join_grad_slopes,
    weights, H, W, M, splits, per_split, vectors, join_BATCH: tl.constexpr, PRIMARY_ACT: tl.constexpr, D: tl.constexpr,
    WIDE: tl.constexpr, UNIT: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr, DOUBLINGS: tl.constexpr,
):  # fmt: skip
    """B2 where a primary channel has one cheap channel: what ``primary_epilogue_bwd_kernel`` and
    ``cheap_weight_bwd_kernel`` compute, from one reading of ∂z2. ``weights``: [groups, D, D, M].

    A thread keeps the D rows of ∂z2 that read a row of y1. Each product with a tap goes to ∂y1, and each product with
    y1 to the tap's gradient. Past the map ∂z2 counts as 0. Where y1 is not finite, taps that read past the map get NaN
    too; the gradient of the channel's middle tap is not finite then, whatever one does.
    """
    M = assume_multiple(M, UNIT)
    z_n, z_h, z_w = assume_multiple_strides(z_n, z_h, z_w, UNIT)
    grad_n, grad_h, grad_w = assume_multiple_strides(grad_n, grad_h, grad_w, UNIT)
    to_n, to_h, to_w = assume_multiple_strides(to_n, to_h, to_w, UNIT)
    # columns: [BW]; channels, wanted: [BM]
    image, split, group, columns, channels, wanted, top, bottom = tile_coords(
        M, H, W, splits, per_split, BW, BM, WIDE, vectors
    )
    # middle, scale, shift: [BM]
    middle, scale, shift = affine(
        primary_bias, primary_gamma, primary_beta, primary_mean, primary_var, primary_eps, channels, wanted
    )
    neg_slope = slopes(primary_slopes, primary_slopes_stride, channels, wanted, primary_slope, PRIMARY_ACT)
    taps = load_taps(cheap_weight, cheap_weight_c, cheap_weight_tap, channels, wanted, D)  # D * D of [BM]
    mask = (columns < W)[:, None] & wanted  # [BW, BM]
    z += image * z_n
    grad += image * grad_n
    grad_z += image * to_n
    z_place = columns[:, None] * z_w + channels * z_c  # [BW, BM]
    grad_place = columns[:, None] * grad_w + channels * grad_c  # [BW, BM]
    place = columns[:, None] * to_w + channels * to_c  # [BW, BM]
    grad_z2 += image * (H * W) * M
    zeros = tl.zeros((BW, BM), tl.float32)
    first, second, third = zeros, zeros, zeros
    tap_sums = (zeros,) * (D * D)
    last = tl.minimum(bottom + D // 2, H)
    seen = ()  # D rows through D columns: D * D of [BW, BM]
    for i in tl.static_range(D):
        seen = seen + read_row(grad_z2, top - D // 2 + i, columns, channels, last, W, 1, W * M, M, wanted, D)
    z_ahead = tl.load(z + (top * z_h + z_place), mask=mask, other=0.0)
    grad_ahead = tl.load(grad + (top * grad_h + grad_place), mask=mask, other=0.0)
    for row in range(top, bottom):
        z1, g = z_ahead.to(tl.float32), grad_ahead.to(tl.float32)
        # While this row is computed, the next one is being loaded.
        ahead = read_row(grad_z2, row + D // 2 + 1, columns, channels, last, W, 1, W * M, M, wanted, D)
        row_ahead = tl.minimum(row + 1, bottom - 1)
        z_ahead = tl.load(z + (row_ahead * z_h + z_place), mask=mask, other=0.0)
        grad_ahead = tl.load(grad + (row_ahead * grad_h + grad_place), mask=mask, other=0.0)
        apart = z1 - middle
        a1 = apart * scale + shift
        y1 = activate(a1, PRIMARY_ACT, neg_slope)
        for k in tl.static_range(D * D):
            gz = seen[D * D - 1 - k].to(tl.float32)  # of the pixel that reads this one through the tap k
            g += gz * taps[k]
            tap_sums = tap_sums[:k] + (tap_sums[k] + gz * y1,) + tap_sums[k + 1 :]
        seen = seen[D:] + ahead
        g1 = activate_backward(g, a1, PRIMARY_ACT, neg_slope)  # [BW, BM]
        first += g1
        second += g1 * apart
        if PRIMARY_ACT == PRELU:
            third += tl.where(a1 > 0, 0.0, g * a1)
        tl.store(grad_z + (row * to_h + place), g1.to(grad_z.dtype.element_ty), mask=mask)
    sum_wanted = has_sums(wanted, vectors, BW)
    store_partial(
        partials, group, channels, M, sum_wanted, sum_where(mask, first, vectors, DOUBLINGS),
        sum_where(mask, second, vectors, DOUBLINGS), sum_where(mask, third, vectors, DOUBLINGS),
    )  # fmt: skip
    weights += group.to(tl.int64) * (D * D) * M + channels
    for k in tl.static_range(D * D):
        tl.store(weights + k * M, sum_where(mask, tap_sums[k], vectors, DOUBLINGS), mask=sum_wanted)
    if join_counters is not None:
        blocks, block, begin, width = joined_block(M, vectors, BM)
        join_gradients_last(
            partials, join_counters, group, tl.num_programs(0) // blocks, block, begin, width, 1, 0, M, join_count,
            join_gamma, join_mean, join_var, join_eps, join_coefficients, join_grad_bias, join_grad_beta,
            join_grad_gamma, join_grad_slopes, join_BATCH, BM if vectors is None else JOINED,
            1024 if vectors is None else 512 if D == 3 else 256,  # with 256, ptxas spills 8 bytes for sm_100
        )  # fmt: skip


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


@kernel
def primary_epilogue_bwd_kernel(
    z, z_n, z_c, z_h, z_w, grad, grad_n, grad_c, grad_h, grad_w,
    primary_bias, primary_gamma, primary_beta, primary_mean, primary_var, primary_eps, primary_slopes,
    primary_slopes_stride, primary_slope,
    cheap_weight, cheap_weight_c, cheap_weight_tap, grad_z2, grad_z, to_n, to_c, to_h, to_w,
    partials, join_counters, join_count, join_gamma, join_mean, join_var, join_eps, join_coefficients, join_grad_bias,
    join_grad_beta, join_grad_gamma, join_grad_slopes,
    H, W, M, splits, per_split, vectors, join_BATCH: tl.constexpr, PRIMARY_ACT: tl.constexpr, D: tl.constexpr,
    MULTIPLIER: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr,
    DOUBLINGS: tl.constexpr,
):  # fmt: skip
    """B2: g1, the gradient of the first BatchNorm's result (∂z1 without one), into ``grad_z``, and its sums.

    ``grad_z2``: [pixels, M * MULTIPLIER]; ``partials``: [groups, 3, M].
    """
    M = assume_multiple(M, UNIT)
    z_n, z_h, z_w = assume_multiple_strides(z_n, z_h, z_w, UNIT)
    grad_n, grad_h, grad_w = assume_multiple_strides(grad_n, grad_h, grad_w, UNIT)
    to_n, to_h, to_w = assume_multiple_strides(to_n, to_h, to_w, UNIT)
    # columns: [BW]; channels, wanted: [BM]
    image, split, group, columns, channels, wanted, top, bottom = tile_coords(
        M, H, W, splits, per_split, BW, BM, WIDE, vectors
    )
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
    mask = (columns < W)[:, None] & wanted  # [BW, BM]
    zeros = tl.zeros((BW, BM), tl.float32)
    first, second, third = zeros, zeros, zeros
    taps = ()  # MULTIPLIER * D * D of [BM]
    for q in tl.static_range(MULTIPLIER):
        taps = taps + load_taps(
            cheap_weight, cheap_weight_c, cheap_weight_tap, channels * MULTIPLIER + q, wanted, D
        )  # fmt: skip
    acc_next = (zeros,) * (D - 1)  # partial sums of the next D - 1 results
    last = tl.minimum(bottom + D // 2, H)
    # ahead: MULTIPLIER * D of [BW, BM]
    ahead = read_grad_z2_rows(grad_z2, top - D // 2, columns, channels, last, W, CHEAP_CHANNELS, wanted, MULTIPLIER, D)
    for below in range(top - D // 2, bottom + D // 2):
        seen = ahead  # while this row is used, the next one is being loaded
        ahead = read_grad_z2_rows(grad_z2, below + 1, columns, channels, last, W, CHEAP_CHANNELS, wanted, MULTIPLIER, D)
        acc = acc_next + (zeros,)  # D of [BW, BM]
        for q in tl.static_range(MULTIPLIER):
            inputs = ()  # D of [BW, BM]
            for j in tl.static_range(D):
                inputs = inputs + (seen[q * D + j].to(tl.float32),)
            acc = take_row(inputs, acc, taps[q * D * D : (q + 1) * D * D], True, D)
        acc_next = acc[1:]
        row = below - D // 2
        if row >= top:
            at = row * z_h + columns[:, None] * z_w + channels * z_c
            z1 = tl.load(z + at, mask=mask, other=0.0).to(tl.float32)  # [BW, BM]
            at = row * grad_h + columns[:, None] * grad_w + channels * grad_c
            g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32) + acc[0]
            a1 = (z1 - middle) * scale + shift
            g1 = tl.where(mask, activate_backward(g, a1, PRIMARY_ACT, neg_slope), 0.0)  # [BW, BM]
            first += g1
            second += tl.where(mask, g1 * (z1 - center), 0.0)
            if PRIMARY_ACT == PRELU:
                third += tl.where(mask & ~(a1 > 0), g * a1, 0.0)
            at = row * to_h + columns[:, None] * to_w + channels * to_c
            tl.store(grad_z + at, g1.to(grad_z.dtype.element_ty), mask=mask)
    store_partial(
        partials, group, channels, M, has_sums(wanted, vectors, BW), sum_where(mask, first, vectors, DOUBLINGS),
        sum_where(mask, second, vectors, DOUBLINGS), sum_where(mask, third, vectors, DOUBLINGS),
    )  # fmt: skip
    if join_counters is not None:
        blocks, block, begin, width = joined_block(M, vectors, BM)
        join_gradients_last(
            partials, join_counters, group, tl.num_programs(0) // blocks, block, begin, width, 1, 0, M, join_count,
            join_gamma, join_mean, join_var, join_eps, join_coefficients, join_grad_bias, join_grad_beta,
            join_grad_gamma, join_grad_slopes, join_BATCH, BM if vectors is None else JOINED,
            1024 if vectors is None else 256,
        )  # fmt: skip


@kernel
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
    mask = (columns < W)[:, None] & wanted  # [BW, BM]
    sums = (tl.zeros((BW, BM), tl.float32),) * (D * D)  # D * D of [BW, BM]
    for row in range(top, bottom):
        at = row * z_h + columns[:, None] * z_w + channels * z_c
        a1 = (tl.load(z + at, mask=mask, other=0.0).to(tl.float32) - middle) * scale + shift
        y1 = activate(a1, PRIMARY_ACT, neg_slope)  # [BW, BM]
        for i in tl.static_range(D):
            there = row + (D // 2 - i)
            for j in tl.static_range(D):
                # Outside of the map nothing is added, whatever y1 is.
                found = mask & near(there, columns, D - 1 - j, H, W, wanted, D)  # [BW, BM]
                at = (there * W + columns + (D // 2 - j))[:, None] * CHEAP_CHANNELS + cheap_channels
                gz = tl.load(grad_z2 + at, mask=found, other=0.0).to(tl.float32)  # [BW, BM]
                more = sums[i * D + j] + gz * tl.where(found, y1, 0.0)
                sums = sums[: i * D + j] + (more,) + sums[i * D + j + 1 :]
    to = weights + (group.to(tl.int64) * MULTIPLIER + q) * (D * D) * M + channels
    for k in tl.static_range(D * D):
        tl.store(to + k * M, tl.sum(sums[k], axis=0), mask=wanted)  # [BM]
