"""The backward of a depthwise convolution along an axis that stands between two BatchNorms over the batch.

One pass computes the gradient of the convolution's result on the way, from that of what follows it, and makes of it the
gradient of the weight, and that of the result of the BatchNorm before it, with its sums.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import launch, tiles
from .activation import activate_backward, affine, load_coefficients, normalized, slopes
from .epilogue import EpilogueGradients
from .jit import kernel
from .joins import JOINED, Joins, join_gradients_last
from .lines import Line, load_line, norm_values
from .maps import (
    assume_multiple,
    assume_multiple_strides,
    has_sums,
    joined_block,
    near,
    store_partial,
    sum_where,
    tile_coords,
)
from .normalise import read_result, result_gradient
from .sums import Totals
from .taps import tap_arguments


@triton.jit
def read_results_across(
    grad, grad_c, grad_h, grad_w, z, z_c, z_h, z_w, row, columns, channels, H, W, wanted, K: tl.constexpr
):
    """``read_result`` from K // 2 columns before to as many after: two of [BW, BM] for each."""
    found = ()
    for f in tl.static_range(K):
        found = found + read_result(
            grad, grad_c, grad_h, grad_w, z, z_c, z_h, z_w, row, columns + (f - K // 2), channels, H, W, wanted
        )  # fmt: skip
    return found


@kernel
def line_bwd_kernel(
    grad, grad_n, grad_c, grad_h, grad_w, z, z_n, z_c, z_h, z_w, norm_gamma, norm_beta, norm_mean, norm_var, norm_eps,
    coefficients, source, source_n, source_c, source_h, source_w, before_gamma, before_beta, before_mean, before_var,
    before_eps, weight, weight_c, weight_tap, to, to_n, to_c, to_h, to_w, weights,
    partials, join_counters, join_count, join_gamma, join_mean, join_var, join_eps, join_coefficients, join_grad_bias,
    join_grad_beta, join_grad_gamma, join_grad_slopes, H, W, C, splits, per_split, vectors, join_BATCH: tl.constexpr,
    NORM_ACT: tl.constexpr, K: tl.constexpr, VERTICAL: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr,
    BW: tl.constexpr, BM: tl.constexpr, DOUBLINGS: tl.constexpr,
):  # fmt: skip
    """Grid: see ``tile_coords``; blocks are of C. ``weights``: [groups, K, C]; ``partials``: [groups, 3, C]; ``join_``:
    see ``join_gradients_last``. VERTICAL: along columns; then a thread keeps the K results that read a pixel."""
    C = assume_multiple(C, UNIT)
    grad_n, grad_h, grad_w = assume_multiple_strides(grad_n, grad_h, grad_w, UNIT)
    z_n, z_h, z_w = assume_multiple_strides(z_n, z_h, z_w, UNIT)
    source_n, source_h, source_w = assume_multiple_strides(source_n, source_h, source_w, UNIT)
    to_n, to_h, to_w = assume_multiple_strides(to_n, to_h, to_w, UNIT)
    # columns: [BW]; channels, wanted: [BM]
    image, split, group, columns, channels, wanted, top, bottom = tile_coords(
        C, H, W, splits, per_split, BW, BM, WIDE, vectors
    )
    grad += image * grad_n
    z += image * z_n
    source += image * source_n
    to += image * to_n
    # middle, scale, shift, of_norm: [BM] each
    middle, scale, shift = affine(None, norm_gamma, norm_beta, norm_mean, norm_var, norm_eps, channels, wanted)
    slope = slopes(None, 0, channels, wanted, 0.0, NORM_ACT)
    # factor, constant, linear, middle: [BM], as middle is of a BatchNorm over the batch
    factor, constant, linear, _ = load_coefficients(coefficients, channels, C, wanted)
    of_norm = (middle, scale, shift, slope, factor, constant, linear, middle)
    # center, before_scale, before_shift: [BM]
    center, before_scale, before_shift = affine(
        None, before_gamma, before_beta, before_mean, before_var, before_eps, channels, wanted
    )
    taps = load_line(weight, weight_c, weight_tap, channels, wanted, K)  # K of [BM]
    mask = (columns < W)[:, None] & wanted  # [BW, BM]
    if not VERTICAL:
        # A lane reads the same columns in all rows: what is outside of the map is in its taps, and the factor too.
        lane_taps = ()  # K of [BW, BM]
        for k in tl.static_range(K):
            beside = near(0, columns, K - 1 - k, 1, W, wanted, K)
            lane_taps = lane_taps + (tl.where(beside, taps[k] * factor, 0.0),)
        taps = lane_taps
    place = columns[:, None] * source_w + channels * source_c  # [BW, BM]
    zeros = tl.zeros((BW, BM), tl.float32)
    first, second = zeros, zeros
    tap_sums = (zeros,) * K
    held = ()  # along columns: gradients of the results of K - 1 rows, [BW, BM]
    last = tl.minimum(bottom + K // 2, H) if VERTICAL else bottom
    if VERTICAL:
        for i in tl.static_range(K - 1):
            above = read_result(
                grad, grad_c, grad_h, grad_w, z, z_c, z_h, z_w, top - K // 2 + i, columns, channels, last, W, wanted
            )  # fmt: skip
            held = held + (
                result_gradient(above[0], above[1], top - K // 2 + i, columns, H, W, wanted, of_norm, NORM_ACT, True),
            )
        ahead = read_result(
            grad, grad_c, grad_h, grad_w, z, z_c, z_h, z_w, top + K // 2, columns, channels, last, W, wanted
        )  # fmt: skip
    else:
        ahead = read_results_across(
            grad, grad_c, grad_h, grad_w, z, z_c, z_h, z_w, top, columns, channels, last, W, wanted, K
        )  # fmt: skip
    source_ahead = tl.load(source + (top * source_h + place), mask=mask, other=0.0)
    for row in range(top, bottom):
        seen, y = ahead, source_ahead.to(tl.float32)
        # While this row is computed, the next one is being loaded.
        source_ahead = tl.load(source + (tl.minimum(row + 1, bottom - 1) * source_h + place), mask=mask, other=0.0)
        gradients = held  # of the K results that read this row's pixels, the first one first
        if VERTICAL:
            ahead = read_result(
                grad, grad_c, grad_h, grad_w, z, z_c, z_h, z_w, row + 1 + K // 2, columns, channels, last, W, wanted
            )  # fmt: skip
            gradients = gradients + (
                result_gradient(seen[0], seen[1], row + K // 2, columns, H, W, wanted, of_norm, NORM_ACT, True),
            )
            held = gradients[1:]
        else:
            ahead = read_results_across(
                grad, grad_c, grad_h, grad_w, z, z_c, z_h, z_w, row + 1, columns, channels, last, W, wanted, K
            )  # fmt: skip
            for f in tl.static_range(K):
                apart = seen[2 * f + 1].to(tl.float32) - middle
                above = activate_backward(seen[2 * f].to(tl.float32), apart * scale + shift, NORM_ACT, slope)
                gradients = gradients + (above - constant - linear * apart,)
        v = normalized(y, center, before_scale, before_shift, True)  # what the convolution reads, [BW, BM]
        g = zeros
        for k in tl.static_range(K):
            gz = gradients[K - 1 - k]  # of the pixel that reads this one through the tap k
            g += gz * taps[k]
            tap_sums = tap_sums[:k] + (tap_sums[k] + gz * v,) + tap_sums[k + 1 :]
        first += g
        second += g * (y - center)
        at = row * to_h + columns[:, None] * to_w + channels * to_c
        tl.store(to + at, g.to(to.dtype.element_ty), mask=mask)
    sum_wanted = has_sums(wanted, vectors, BW)
    nothing = sum_where(mask, zeros, vectors, DOUBLINGS)
    store_partial(
        partials, group, channels, C, sum_wanted, sum_where(mask, first, vectors, DOUBLINGS),
        sum_where(mask, second, vectors, DOUBLINGS), nothing,
    )  # fmt: skip
    weights += group.to(tl.int64) * K * C + channels
    for k in tl.static_range(K):
        found = tap_sums[k]
        if not VERTICAL:
            found = tl.where(near(0, columns, K - 1 - k, 1, W, wanted, K), found * factor, 0.0)
        tl.store(weights + k * C, sum_where(mask, found, vectors, DOUBLINGS), mask=sum_wanted)
    blocks, block, begin, width = joined_block(C, vectors, BM)
    join_gradients_last(
        partials, join_counters, group, tl.num_programs(0) // blocks, block, begin, width, 1, 0, C, join_count,
        join_gamma, join_mean, join_var, join_eps, join_coefficients, join_grad_bias, join_grad_beta, join_grad_gamma,
        join_grad_slopes, join_BATCH, BM if vectors is None else JOINED, 1024 if vectors is None else 256,
    )  # fmt: skip


def line_gradients(
    grad: torch.Tensor, z: torch.Tensor, line: Line, coefficients: torch.Tensor, source: torch.Tensor, *, joins: Joins,
    totals: Totals,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, EpilogueGradients]:  # fmt: skip
    """What the backward of a line finds.

    Args:
        grad: the gradient of what follows the line, of any strides, also expanded.
        z: the line's result; ``coefficients``: of the backward of the BatchNorm after it, see ``load_coefficients``.
        source: the map that goes through the BatchNorm before the line, and then along it.
        totals: where the weight's gradient is joined, later.

    Returns:
        The gradient of the result of the BatchNorm before the line, a scratch map; the weight's, C x 1 x 1 x K; and of
        that BatchNorm the coefficients of its backward, and its parameters' gradients.
    """
    n, c, height, width = z.shape
    k, to = line.taps, launch.scratch(z, c)
    maps = {"grad": grad, "z": z, "source": source, "to": to}
    unit = launch.unit(*maps.values(), counts=(c,))
    strips = tiles.strips("stencil_gradient", z, c, 4 * k, unit=unit)
    join = joins.gradients(line.before, n * strips.splits, c, strips.blocks(c), n * height * width)
    weights = launch.empty((n * strips.splits, k, c), torch.float32, z.device)
    arguments = {
        **launch.maps(**maps), **norm_values("norm", line.after), **norm_values("before", line.before),
        **tap_arguments("weight", line.weight), **join.arguments, "coefficients": coefficients, "weights": weights,
        "NORM_ACT": line.after.act, "K": k, "VERTICAL": line.vertical, "H": height, "W": width, "C": c,
        "WIDE": launch.is_wide(*maps.values()), "UNIT": unit,
    }  # fmt: skip
    strips.start(line_bwd_kernel, z, c, arguments)
    found, gradients = join.finish()
    grad_weight = launch.empty((c, 1, 1, k), line.weight.dtype, z.device)
    totals.add(weights, grad_weight, steps=(1, k))
    return to, grad_weight, found, gradients
