"""``depthwise`` and its backward, of any stride; the depthwise step of programs, with an epilogue and squeeze; and the
convolution with the statistics that a BatchNorm over the batch needs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...activations import NONE
from ..reference import depthwise_backward as in_pytorch
from . import checks, launch, tiles
from .activation import activate, affine, normalized, slopes
from .depthwise_gradients import MOST_STRIDE, depthwise_gradients
from .epilogue import NO_EPILOGUE, Epilogue
from .jit import kernel
from .joins import NO_STATISTICS, Joins, join_statistics_last
from .launch_cache import cached_launches
from .maps import (
    assume_multiple,
    assume_multiple_strides,
    finish_moments,
    has_sums,
    load_taps,
    read_tap,
    store_partial,
    store_rows,
    sum_where,
    tile_coords,
)
from .norm import BatchNorm, NormVectors
from .sums import OverSplits
from .taps import tap_arguments

LEAST_WIDTH = 16  # of maps whose strips are split further for kernels larger than 3 x 3
PAIR = 2  # columns of a lane: it reads what both see once


@triton.jit
def read_rows(
    x, row, columns, channels, H, W, x_c, x_h, x_w, wanted, D: tl.constexpr, STRIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """What a row of results reads of the map x that no row before it does: up to STRIDE rows of it, each through the D
    columns of the kernel and those that only the other results of a lane see: a tuple of [BW, BM]."""
    found = ()
    for t in tl.static_range(STRIDE - D if STRIDE > D else 0, STRIDE):
        below = row * STRIDE + (D // 2 - STRIDE + 1 + t)
        for j in tl.static_range(D + STRIDE * (COLUMNS - 1)):
            v = read_tap(x, below, columns * STRIDE, channels, j, H, W, x_c, x_h, x_w, wanted, D)
            found = found + (v,)
    return found


@kernel
def depthwise_kernel(
    x, x_n, x_c, x_h, x_w, weight, weight_c, weight_tap,
    conv_bias, conv_gamma, conv_beta, conv_mean, conv_var, conv_eps, conv_slopes, conv_slopes_stride, conv_slope,
    out, out_n, out_c, out_h, out_w, sums, per_value,
    partials, join_counters, join_count, join_gamma, join_beta, join_eps, join_bias, join_running_mean,
    join_running_var, join_batches, join_momentum, join_mean_out, join_var_out, join_scale_out, join_shift_out,
    N, IN_H, IN_W, H, W, C, splits, per_split, vectors,
    CONV_ACT: tl.constexpr, D: tl.constexpr, STRIDE: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr,
    UNIT: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr, DOUBLINGS: tl.constexpr,
):  # fmt: skip
    """Grid: see ``tile_coords``; strips are of ``out`` (H x W), blocks of C. A lane has COLUMNS results side by side.
    ``sums``: as of ``cheap_kernel``. ``partials``: statistics of the convolution's result, of lanes of one column and
    no flat tile, or None; ``join_``: see ``join_statistics_last``."""
    C = assume_multiple(C, UNIT)
    x_n, x_h, x_w = assume_multiple_strides(x_n, x_h, x_w, UNIT)
    out_n, out_h, out_w = assume_multiple_strides(out_n, out_h, out_w, UNIT)
    # columns: [BW]; channels, wanted: [BM]
    image, split, group, columns, channels, wanted, top, bottom = tile_coords(
        C, H, tl.cdiv(W, COLUMNS), splits, per_split, BW, BM, WIDE, vectors
    )
    columns = columns * COLUMNS  # the first of each lane's
    x += image * x_n
    out += image * out_n
    # center, scale, shift: [BM]
    center, scale, shift = affine(conv_bias, conv_gamma, conv_beta, conv_mean, conv_var, conv_eps, channels, wanted)
    neg_slope = slopes(conv_slopes, conv_slopes_stride, channels, wanted, conv_slope, CONV_ACT)  # [BM]
    taps = load_taps(weight, weight_c, weight_tap, channels, wanted, D)  # D * D of [BM]
    zeros = tl.zeros((BW, BM), tl.float32)
    found, squares = zeros, zeros
    origin = tl.zeros((BM,), tl.float32)
    mask = (columns < W)[:, None] & wanted  # [BW, BM]
    size = tl.maximum(tl.sum((columns < W).to(tl.float32), axis=0), 1.0)  # the strip's columns, a scalar
    # Each result reads STRIDE rows that no result before it reads, and the first rows of the AHEAD results after it.
    AHEAD: tl.constexpr = (D - 1) // STRIDE
    SEEN: tl.constexpr = D + STRIDE * (COLUMNS - 1)  # columns of the input that a lane reads
    FIRST: tl.constexpr = STRIDE - D if STRIDE > D else 0
    acc_next = (zeros,) * (AHEAD * COLUMNS)  # AHEAD of [BW, BM] for each column
    ahead = ()
    if vectors is not None:
        last = tl.minimum((bottom - 1) * STRIDE + D // 2 + 1, IN_H)
        ahead = read_rows(x, top - AHEAD, columns, channels, last, IN_W, x_c, x_h, x_w, wanted, D, STRIDE, COLUMNS)
    for row in range(top - AHEAD, bottom):
        if vectors is None:  # a thread has more values of a row, and no registers for another
            seen = read_rows(x, row, columns, channels, IN_H, IN_W, x_c, x_h, x_w, wanted, D, STRIDE, COLUMNS)
        else:
            seen = ahead  # while these rows are used, the next ones are being loaded
            ahead = read_rows(x, row + 1, columns, channels, last, IN_W, x_c, x_h, x_w, wanted, D, STRIDE, COLUMNS)
        acc = ()  # AHEAD + 1 of [BW, BM] for each column
        for p in tl.static_range(COLUMNS):
            acc = acc + acc_next[p * AHEAD : (p + 1) * AHEAD] + (zeros,)
        for t in tl.static_range(FIRST, STRIDE):
            for j in tl.static_range(SEEN):
                v = seen[(t - FIRST) * SEEN + j].to(tl.float32)  # [BW, BM]
                for p in tl.static_range(COLUMNS):
                    for e in tl.static_range(AHEAD + 1):
                        if (j >= p * STRIDE) and (j < p * STRIDE + D) and (D - STRIDE + t - STRIDE * e >= 0):
                            tap = taps[(D - STRIDE + t - STRIDE * e) * D + j - p * STRIDE]
                            more = acc[p * (AHEAD + 1) + e] + v * tap
                            acc = acc[: p * (AHEAD + 1) + e] + (more,) + acc[p * (AHEAD + 1) + e + 1 :]
        acc_next = ()
        for p in tl.static_range(COLUMNS):
            acc_next = acc_next + acc[p * (AHEAD + 1) + 1 : (p + 1) * (AHEAD + 1)]
        if row >= top:
            if partials is not None:
                if row == top:
                    origin = tl.sum(tl.where(mask, acc[0], 0.0), axis=0) / size  # [BM]
                apart = tl.where(mask, acc[0] - origin, 0.0)
                found += apart
                squares += apart * apart
            for p in tl.static_range(COLUMNS):
                z = acc[p * (AHEAD + 1)]  # [BW, BM]
                z = activate(normalized(z, center, scale, shift, conv_mean is not None), CONV_ACT, neg_slope)
                stored = store_rows(z, out, row, columns + p, channels, W, out_c, out_h, out_w, wanted, None, 0, 0, 0)
                if sums is not None:
                    found += stored
    if partials is not None:
        values = size * (bottom - top).to(tl.float32) + tl.zeros((BM,), tl.float32)  # [BM]
        mean, m2 = finish_moments(tl.sum(found, axis=0), tl.sum(squares, axis=0), origin, values)  # [BM] each
        store_partial(partials, group, channels, C, wanted, values, mean, m2)
        blocks = tl.cdiv(C, BM)
        block = tl.program_id(0) % blocks
        join_statistics_last(
            partials, join_counters, group, tl.num_programs(0) // blocks, block, block * BM, BM, 1, 0, C,
            join_count, join_gamma, join_beta, join_eps, join_bias, join_running_mean, join_running_var,
            join_batches, join_momentum, join_mean_out, join_var_out, join_scale_out, join_shift_out, BM,
        )  # fmt: skip
    elif sums is not None:
        at = sums + (split.to(tl.int64) * N + image) * C + channels  # [BM]
        joined = sum_where(mask, found, vectors, DOUBLINGS) * per_value  # [BM]
        tl.store(at, joined.to(sums.dtype.element_ty), mask=has_sums(wanted, vectors, BW))


def _convolve(x, weight, stride, to, epilogue=NO_EPILOGUE, squeeze=None, joins=None, norm=None, vectors=None):
    """Depthwise convolution of x into ``to``. ``squeeze``: where the means of ``to`` go, N x C. The others: see
    ``depthwise_before_norm``."""
    n, c, *sides = x.shape
    d, (height, width) = weight.shape[-1], to.shape[2:]
    unit = launch.unit(x, to, counts=(c,))
    # Beside the taps of a large kernel a thread has two channels, so that twice as many warps fit on a processor, and
    # two columns, which share what they read. Where maps are narrow it has four channels, or programs would be too
    # short, and then no registers for the next rows, which flat tiles load ahead.
    few = d > 3 and width > LEAST_WIDTH
    is_flat = norm is None and (few or d <= 3)
    columns = PAIR if is_flat and few and unit > 1 and stride > 1 else 1
    lanes = height, launch.cdiv(width, columns)
    strips = tiles.strips("stencil", to, c, (2 if few else 1) * d * d, lanes, unit if is_flat else 1)
    sums, join = OverSplits(squeeze, strips.splits, 1.0 / (height * width)), None
    if norm is not None:
        groups, blocks = n * strips.splits, launch.cdiv(c, strips.tile.channels)
        join = joins.statistics(norm, n * height * width, groups, c, blocks, vectors)
    arguments = {
        **launch.maps(x=x, out=to), **tap_arguments("weight", weight), **epilogue.arguments("conv"), **sums.arguments,
        **(join.arguments if join else NO_STATISTICS), "N": n, "IN_H": sides[0], "IN_W": sides[1], "H": height,
        "W": width, "C": c, "D": d, "STRIDE": stride, "COLUMNS": columns,
        "WIDE": launch.is_wide(x, to), "UNIT": unit,
    }  # fmt: skip
    strips.start(depthwise_kernel, x, c, arguments)
    sums.join()
    return join and join.finish()


@cached_launches
def depthwise_with_epilogue(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, slopes: torch.Tensor | None, stride: int,
    act: int, slope: float, squeeze: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """act(conv(x) + bias) and its means, N x C (empty if not asked for); weight C x 1 x K x K, padded by K // 2."""
    epilogue = Epilogue(bias, act, slope, slopes)
    sides = checks.expect_depthwise(x, weight, epilogue, stride)
    out = launch.new_map(x, x.shape[1], sides)
    means = launch.empty(tuple(x.shape[:2]) if squeeze else (0,), x.dtype, x.device)
    _convolve(x, weight, stride, out, epilogue, means if squeeze else None)
    return out, means


def depthwise_before_norm(
    x: torch.Tensor, weight: torch.Tensor, stride: int, *, joins: Joins | None = None, norm: BatchNorm | None = None,
    vectors: NormVectors | None = None,
) -> tuple[torch.Tensor, NormVectors | None]:  # fmt: skip
    """The depthwise convolution of x, padded by half its kernel, as a scratch map, and the vectors of ``norm``.

    Args:
        norm: the BatchNorm that follows, over the statistics of the unrounded results; None: it needs none.
        joins: those of its statistics; ``vectors``: where they are written, by default new ones.
    """
    sides = checks.expect_depthwise(x, weight, NO_EPILOGUE, stride)
    z = launch.scratch(x, x.shape[1], sides)
    return z, _convolve(x, weight, stride, z, joins=joins, norm=norm, vectors=vectors)


@cached_launches
def depthwise(x, weight, bias, stride):
    return depthwise_with_epilogue(x, weight, bias, None, stride, NONE, 0.0, False)[0]


@cached_launches
def depthwise_backward(grad_out, x, weight, bias, stride, input_wanted, weight_wanted):
    """Gradients of x, weight and bias: empty where they are not wanted, or there is no bias."""
    height, width = checks.expect_depthwise(x, weight, Epilogue(bias), stride)
    checks.expect("grad_out", grad_out, (*x.shape[:2], height, width), x)
    if stride > MOST_STRIDE or weight.shape[-1] % 2 == 0:
        return in_pytorch(grad_out, x, weight, bias, stride, input_wanted, weight_wanted)
    gradients = depthwise_gradients(
        grad_out, x, weight, stride, bias=bias, input_wanted=input_wanted, weight_wanted=weight_wanted
    )
    return tuple(launch.empty((0,), x.dtype, x.device) if g is None else g for g in gradients)
