"""The cheap convolution of y1: its statistics (F2), or the output with residual and squeeze (F3)."""

from __future__ import annotations

import torch
import triton.language as tl

from . import launch, tiles
from .activation import activate, affine, normalized, slopes
from .epilogue import NO_EPILOGUE, Epilogue
from .jit import kernel
from .joins import JOINED, NO_STATISTICS, Joins, join_statistics_last
from .maps import (
    as_inputs,
    assume_multiple,
    assume_multiple_strides,
    has_sums,
    joined_block,
    load_taps,
    moments_of_lanes,
    read_row,
    store_partial,
    store_rows,
    sum_where,
    take_row,
    tile_coords,
)
from .norm import BatchNorm, NormVectors
from .sums import OverSplits
from .taps import tap_arguments


@kernel
def cheap_kernel(
    y, y_n, y_c, y_h, y_w,
    primary_bias, primary_gamma, primary_beta, primary_mean, primary_var, primary_eps, primary_slopes,
    primary_slopes_stride, primary_slope,
    cheap_weight, cheap_weight_c, cheap_weight_tap,
    cheap_bias, cheap_gamma, cheap_beta, cheap_mean, cheap_var, cheap_eps, cheap_slopes, cheap_slopes_stride,
    cheap_slope,
    out, out_n, out_c, out_h, out_w, residual, residual_n, residual_c, residual_h, residual_w,
    residual_mean, residual_scale, residual_shift, sums, per_value, partials, join_counters, join_count, join_gamma,
    join_beta, join_eps, join_bias, join_running_mean, join_running_var, join_batches, join_momentum, join_mean_out,
    join_var_out, join_scale_out, join_shift_out,
    N, H, W, M, OUT_CHANNELS, splits, per_split, vectors,
    PRIMARY_ACT: tl.constexpr, CHEAP_ACT: tl.constexpr, AFFINE: tl.constexpr, D: tl.constexpr, MULTIPLIER: tl.constexpr,
    WIDE: tl.constexpr, UNIT: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr,
    DOUBLINGS: tl.constexpr,
):  # fmt: skip
    """Grid: see ``tile_coords``; blocks are of M.

    With AFFINE y is z1, the primary convolution's result, and y1 is computed from it here. The first half of ``out`` is
    written then, and where a ``residual`` is added; else it is y itself. With ``partials``, [groups, 3, M *
    MULTIPLIER], the statistics of z2 are written and joined (``join_statistics_last``), and no output. ``sums``: splits
    x images x OUT_CHANNELS sums of the output, times ``per_value``.
    """
    M, OUT_CHANNELS = assume_multiple(M, UNIT), assume_multiple(OUT_CHANNELS, UNIT)
    y_n, y_h, y_w = assume_multiple_strides(y_n, y_h, y_w, UNIT)
    out_n, out_h, out_w = assume_multiple_strides(out_n, out_h, out_w, UNIT)
    residual_n, residual_h, residual_w = assume_multiple_strides(residual_n, residual_h, residual_w, UNIT)
    # columns: [BW]; channels, wanted: [BM]
    image, split, group, columns, channels, wanted, top, bottom = tile_coords(
        M, H, W, splits, per_split, BW, BM, WIDE, vectors
    )
    y += image * y_n
    out += image * out_n
    if residual is not None:
        residual += image * residual_n
    if sums is not None:
        sums += (split.to(tl.int64) * N + image) * OUT_CHANNELS
    # primary_center, primary_scale, primary_shift: [BM]
    primary_center, primary_scale, primary_shift = affine(
        primary_bias, primary_gamma, primary_beta, primary_mean, primary_var, primary_eps, channels, wanted
    )
    # primary_neg_slope: [BM]
    primary_neg_slope = slopes(primary_slopes, primary_slopes_stride, channels, wanted, primary_slope, PRIMARY_ACT)
    # of_residual: three of [BM]
    of_residual = affine(None, residual_scale, residual_shift, residual_mean, None, 0.0, channels, wanted)
    WRITES_FIRST: tl.constexpr = (AFFINE or (residual is not None)) and (partials is None)
    mask = (columns < W)[:, None] & wanted  # [BW, BM]
    zeros = tl.zeros((BW, BM), tl.float32)
    for q in tl.static_range(MULTIPLIER):
        cheap_channels = channels * MULTIPLIER + q  # [BM]
        in_output = wanted & (cheap_channels < OUT_CHANNELS - M)
        # cheap_center, cheap_scale, cheap_shift: [BM]
        cheap_center, cheap_scale, cheap_shift = affine(
            cheap_bias, cheap_gamma, cheap_beta, cheap_mean, cheap_var, cheap_eps, cheap_channels, in_output
        )
        # cheap_neg_slope: [BM]
        cheap_neg_slope = slopes(cheap_slopes, cheap_slopes_stride, cheap_channels, in_output, cheap_slope, CHEAP_ACT)
        of_cheap = affine(  # the same for the second half
            None, residual_scale, residual_shift, residual_mean, None, 0.0, M + cheap_channels, in_output
        )
        taps = load_taps(cheap_weight, cheap_weight_c, cheap_weight_tap, cheap_channels, in_output, D)  # D * D of [BM]
        acc_next = (zeros,) * (D - 1)  # partial sums of the next D - 1 results
        first, second, origin, squares = zeros, zeros, zeros, zeros
        last = tl.minimum(bottom + D // 2, H)
        ahead = read_row(y, top - D // 2, columns, channels, last, W, y_c, y_h, y_w, wanted, D)  # D of [BW, BM]
        for below in range(top - D // 2, bottom + D // 2):
            seen = ahead  # while this row is used, the next one is being loaded
            ahead = read_row(y, below + 1, columns, channels, last, W, y_c, y_h, y_w, wanted, D)
            inputs = as_inputs(
                seen, below, columns, H, W, wanted, primary_center, primary_scale, primary_shift, primary_neg_slope,
                PRIMARY_ACT, AFFINE, D,
            )  # fmt: skip
            acc = take_row(inputs, acc_next + (zeros,), taps, False, D)  # D of [BW, BM]
            z, acc_next = acc[0], acc[1:]  # [BW, BM], and D - 1 of them
            if (q == 0) and (WRITES_FIRST or (sums is not None)) and (below >= top) & (below < bottom):
                y1 = inputs[D // 2]  # [BW, BM], 0 where there is no pixel
                if WRITES_FIRST:
                    y1 = store_rows(
                        y1, out, below, columns, channels, W, out_c, out_h, out_w, wanted, residual, residual_c,
                        residual_h, residual_w,
                        of_residual[0], of_residual[1], of_residual[2], residual_mean is not None,
                    )  # fmt: skip
                if sums is not None:
                    first += y1
            row = below - D // 2
            if row >= top:
                if partials is not None:
                    if row == top:
                        origin = z  # each lane's own first value
                    second += z - origin
                    squares += (z - origin) * (z - origin)
                else:
                    z = normalized(z, cheap_center, cheap_scale, cheap_shift, cheap_mean is not None)
                    stored = store_rows(
                        activate(z, CHEAP_ACT, cheap_neg_slope), out, row, columns, M + cheap_channels, W,
                        out_c, out_h, out_w, in_output, residual, residual_c, residual_h, residual_w,
                        of_cheap[0], of_cheap[1], of_cheap[2], residual_mean is not None,
                    )  # fmt: skip
                    if sums is not None:
                        second += stored
        at = channels * MULTIPLIER + q  # [BM]
        sum_wanted = has_sums(wanted, vectors, BW)
        at_wanted = sum_wanted & (at < OUT_CHANNELS - M)
        if partials is not None:
            # count, mean, m2: [BM]
            count, mean, m2 = moments_of_lanes(mask, second, squares, origin, bottom - top, vectors, DOUBLINGS)
            store_partial(partials, group, at, OUT_CHANNELS - M, at_wanted, count, mean, m2)
            blocks, block, begin, width = joined_block(M, vectors, BM)
            join_statistics_last(
                partials, join_counters, group, tl.num_programs(0) // blocks, block * MULTIPLIER + q, begin, width,
                MULTIPLIER, q, OUT_CHANNELS - M, join_count, join_gamma, join_beta, join_eps, join_bias,
                join_running_mean, join_running_var, join_batches, join_momentum, join_mean_out, join_var_out,
                join_scale_out, join_shift_out, BM if vectors is None else JOINED, 1024 if vectors is None else 256,
            )  # fmt: skip
        elif sums is not None:
            joined = sum_where(mask, second, vectors, DOUBLINGS) * per_value  # [BM]
            tl.store(sums + M + at, joined.to(sums.dtype.element_ty), mask=at_wanted)
        if (q == 0) and (sums is not None):
            joined = sum_where(mask, first, vectors, DOUBLINGS) * per_value  # [BM]
            tl.store(sums + channels, joined.to(sums.dtype.element_ty), mask=sum_wanted)


def cheap_half(
    y: torch.Tensor,
    out: torch.Tensor,
    weight: torch.Tensor,
    cheap: Epilogue,
    *,
    m: int,
    primary: Epilogue | None = None,
    residual: torch.Tensor | None = None,
    residual_norm: NormVectors | None = None,
    squeeze: torch.Tensor | None = None,
    split_sums: bool = False,
    joins: Joins | None = None,
    norm: BatchNorm | None = None,
    vectors: NormVectors | None = None,
) -> NormVectors | torch.Tensor | None:
    """The output's channels from m on, of y1, which is the first m channels of y.

    Args:
        weight: m(s - 1) x 1 x d x d.
        primary: where given, y is the primary convolution's result, whose epilogue is applied here, and the output's
            first m channels are written too.
        residual: added to the output, whose first m channels are written then too; y is another map.
        residual_norm: of the BatchNorm that the residual goes through before it is added.
        squeeze: where means of the output go, N x channels.
        split_sums: return the sums of the output over the splits of each image, splits x N x channels, float32.
        norm: the BatchNorm after the convolution, over its statistics: its vectors are returned, and no output is
            written. ``cheap`` is not looked at.
        joins: those of the statistics; ``vectors``: where the vectors are written, by default new ones.
    """
    n, out_channels, height, width = out.shape
    multiplier = weight.shape[0] // m
    trains = primary is not None
    kernel, taps = "stencil_gradient" if trains else "stencil", multiplier * weight.shape[-1] ** 2
    unit = launch.unit(y, out, residual, counts=(m, out_channels if norm is None else m * (1 + multiplier)))
    # A flat tile has less of a row, so that means would be joined by a launch of their own more often.
    is_flat = multiplier == 1 and squeeze is None
    strips = tiles.strips(kernel, y, m, taps, unit=unit if is_flat else 1)
    join, sums = None, OverSplits(squeeze, strips.splits, 1.0 / (height * width))
    if split_sums:
        made = launch.empty((strips.splits, n, out_channels), torch.float32, y.device)
        sums.arguments = {"sums": made, "per_value": 1.0}
    if norm is not None:
        out_channels = m * (1 + multiplier)
        blocks = strips.blocks(m) * multiplier
        join = joins.statistics(norm, n * height * width, n * strips.splits, m * multiplier, blocks, vectors)
    arguments = {
        **{f"residual_{name}": getattr(residual_norm, name, None) for name in ("mean", "scale", "shift")},
        **launch.maps(y=y, out=out, residual=residual), "AFFINE": trains,
        **(primary or NO_EPILOGUE).arguments("primary", at_run_time=trains), **tap_arguments("cheap_weight", weight),
        **cheap.arguments("cheap", at_run_time=trains), **sums.arguments,
        **(NO_STATISTICS if join is None else join.arguments), "N": n, "H": height, "W": width, "M": m,
        "OUT_CHANNELS": out_channels, "D": weight.shape[-1], "MULTIPLIER": multiplier,
        "WIDE": launch.is_wide(y, out, residual), "UNIT": unit,
    }  # fmt: skip
    strips.start(cheap_kernel, y, m, arguments)
    sums.join()
    if split_sums:
        return made
    return None if join is None else join.finish()
