"""The primary convolution with its epilogue: F1 of docs/gradients.md, and the first pass of inference."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import launch, tiles
from .activation import activate, affine, normalized, slopes
from .epilogue import NO_EPILOGUE, Epilogue
from .jit import kernel
from .joins import NO_STATISTICS, Joins, clear_counters, join_statistics_last
from .maps import (
    assume_multiple,
    assume_multiple_strides,
    block_of,
    finish_moments,
    in_batch,
    product,
    product_columns,
    run_of,
    run_of_image,
    store_partial,
)
from .norm import BatchNorm, NormVectors

MOST_SUMS = 4096  # values of a tile of which sums are kept, so that a processor has registers for two programs


@triton.jit
def sampled_mean(
    x, start, count, H, W, x_n, x_c, x_h, x_w, columns_of_step, C, channels, wanted, PRECISION: tl.constexpr,
    FLAT_IN: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The mean of a few of ``count`` pixels from ``start`` on, at equal distances, [BM]; see ``product``."""
    BP: tl.constexpr = max(2048 // BK, 16)  # so that a thread reads several channels
    lanes = tl.arange(0, BP) * count // BP  # [BP]
    at, places = in_batch(start, lanes, H, W, x_n, x_h, x_w, FLAT_IN, WIDE)  # a scalar, [BP]
    z = product(
        x + at, places, lanes >= 0, x_c, None, x, columns_of_step, C, channels, wanted, PRECISION, True, BP, BM, BK
    )
    return tl.sum(z, axis=0) / BP


@kernel
def product_kernel(
    x, x_n, x_c, x_h, x_w, scale, weight,
    primary_bias, primary_gamma, primary_beta, primary_mean, primary_var, primary_eps, primary_slopes,
    primary_slopes_stride, primary_slope,
    y, y_n, y_c, y_h, y_w, residual, residual_n, residual_c, residual_h, residual_w,
    partials, join_counters, join_count, join_gamma, join_beta, join_eps, join_bias, join_running_mean,
    join_running_var, join_batches, join_momentum, join_mean_out, join_var_out, join_scale_out, join_shift_out,
    H, W, C, M, PIXELS, per_group, cleared, PRIMARY_ACT: tl.constexpr, PRECISION: tl.constexpr, ONE_STEP: tl.constexpr,
    FLAT_IN: tl.constexpr, FLAT: tl.constexpr, WIDE: tl.constexpr, UNIT_IN: tl.constexpr, UNIT: tl.constexpr,
    BP: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
    COUNTERS: tl.constexpr,
):  # fmt: skip
    """Grid: groups of runs x blocks of M. y and ``partials`` (statistics of the convolution's result, without a
    ``scale``): either may be None. Runs are of one image each where there is a ``scale``, [images, C], the factors of
    x's channels. ``join_``: see ``join_statistics_last``. COUNTERS: how many counters of later joins are set to zero
    where ``cleared`` is 1; 0 where they are this kernel's."""
    C, M = assume_multiple(C, UNIT_IN), assume_multiple(M, UNIT)
    x_n, x_h, x_w = assume_multiple_strides(x_n, x_h, x_w, UNIT_IN)
    y_n, y_h, y_w = assume_multiple_strides(y_n, y_h, y_w, UNIT)
    residual_n, residual_h, residual_w = assume_multiple_strides(residual_n, residual_h, residual_w, UNIT)
    blocks = tl.cdiv(M, BM)
    group = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    channels = block_of(block, BM, WIDE)  # [BM]
    wanted = channels < M
    # primary_center, primary_scale, primary_shift: [BM]
    primary_center, primary_scale, primary_shift = affine(
        primary_bias, primary_gamma, primary_beta, primary_mean, primary_var, primary_eps, channels, wanted
    )
    # primary_neg_slope: [BM]
    primary_neg_slope = slopes(primary_slopes, primary_slopes_stride, channels, wanted, primary_slope, PRIMARY_ACT)
    begin = group.to(tl.int64) * per_group * BP
    here = tl.minimum(PIXELS - begin, per_group * BP)  # pixels of the group
    columns_of_step = tl.zeros((BK, BM), x.dtype.element_ty)
    if ONE_STEP:
        columns_of_step = product_columns(weight, C, channels, wanted, 0, x.dtype.element_ty, BK)  # [BK, BM]
    origin = tl.zeros((BM,), tl.float32)
    if (partials is not None) and ONE_STEP:
        origin = sampled_mean(
            x, begin, here, H, W, x_n, x_c, x_h, x_w, columns_of_step, C, channels, wanted, PRECISION, FLAT_IN, WIDE,
            BM, BK,
        )  # fmt: skip
    first = tl.zeros((BP, BM), tl.float32)
    second = tl.zeros((BP, BM), tl.float32)
    # With an excitation every run is of one image; where the first one begins:
    runs = tl.cdiv(H * W, BP)
    image = group * per_group // runs
    of_image = (group * per_group - image * runs) * BP
    for t in range(per_group):
        if scale is None:
            excitation = None
            start, lanes, valid = run_of(group, per_group, t, PIXELS, BP)  # a scalar, [BP], [BP]
        else:
            start, lanes, valid = run_of_image(image, of_image, PIXELS, H, W, BP)
            excitation = scale + tl.where(start < PIXELS, image, 0).to(tl.int64) * C
            of_image += BP
            image += (of_image >= H * W).to(tl.int32)
            of_image = tl.where(of_image >= H * W, 0, of_image)
        mask = valid[:, None] & wanted[None, :]  # [BP, BM]
        at, places = in_batch(start, lanes, H, W, x_n, x_h, x_w, FLAT_IN, WIDE)  # a scalar, [BP]
        # z: [BP, BM]
        z = product(
            x + at, places, valid, x_c, excitation, weight, columns_of_step, C, channels, wanted, PRECISION, ONE_STEP,
            BP, BM, BK,
        )  # fmt: skip
        if partials is not None:
            if (not ONE_STEP) and (t == 0):
                size = tl.maximum(tl.sum(valid.to(tl.float32), axis=0), 1.0)
                origin = tl.sum(tl.where(mask, z, 0.0), axis=0) / size  # [BM]
            apart = tl.where(mask, z - origin[None, :], 0.0)
            first += apart
            second += apart * apart
        if y is not None:
            v = activate(
                normalized(z, primary_center, primary_scale, primary_shift, primary_mean is not None),
                PRIMARY_ACT,
                primary_neg_slope[None, :],
            )
            if residual is not None:
                at, places = in_batch(start, lanes, H, W, residual_n, residual_h, residual_w, FLAT, WIDE)
                more = residual + at + (places[:, None] + channels[None, :] * residual_c)  # [BP, BM]
                v += tl.load(more, mask=mask, other=0.0).to(tl.float32)
            at, places = in_batch(start, lanes, H, W, y_n, y_h, y_w, FLAT, WIDE)
            tl.store(y + at + (places[:, None] + channels[None, :] * y_c), v.to(y.dtype.element_ty), mask=mask)
    if partials is not None:
        count = here.to(tl.float32) + tl.zeros((BM,), tl.float32)
        mean, m2 = finish_moments(tl.sum(first, axis=0), tl.sum(second, axis=0), origin, count)  # [BM] each
        store_partial(partials, group, channels, M, wanted, count, mean, m2)
        join_statistics_last(
            partials, join_counters, group, tl.num_programs(0) // blocks, block, block * BM, BM, 1, 0, M, join_count,
            join_gamma, join_beta, join_eps, join_bias, join_running_mean, join_running_var, join_batches,
            join_momentum, join_mean_out, join_var_out, join_scale_out, join_shift_out, BM,
        )  # fmt: skip
    if (COUNTERS > 0) and ((tl.program_id(0) == 0) & (cleared > 0)):
        clear_counters(join_counters, COUNTERS)


def primary_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    primary: Epilogue = NO_EPILOGUE,
    *,
    to: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    joins: Joins | None = None,
    norm: BatchNorm | None = None,
    vectors: NormVectors | None = None,
) -> NormVectors | None:
    """The primary convolution of x, with the epilogue ``primary``, into the first channels of ``to``, if that is given.

    Args:
        scale: N x C, the excitation of x.
        residual: added to the output last.
        joins: where there is a ``norm``, those of its statistics; else those whose counters this launch sets to zero,
            unless they are started.
        norm: the BatchNorm after the convolution without epilogue, over the statistics of its unrounded results.
        vectors: where the vectors of ``norm``, which are returned, are written; by default new ones.
    """
    n, c, height, width = x.shape
    m, pixels = weight.shape[0], n * height * width
    tile, per_group, groups = tiles.flat(
        "product", x, m, c, None if norm is None else MOST_SUMS, of_images=scale is not None,
        in_inference=primary is not NO_EPILOGUE,
    )  # fmt: skip
    join, joined, cleared, counters = None, NO_STATISTICS, False, 0
    if norm is not None:
        join = joins.statistics(norm, pixels, groups, m, launch.cdiv(m, tile.channels), vectors)
        joined = join.arguments
    elif joins is not None:
        joined, counters = joined | {"join_counters": joins.counters}, joins.counters.numel()
        cleared, joins.started = not joins.started, True
    arguments = {
        **launch.maps(x=x, y=to, residual=residual), "scale": launch.vector(scale), "weight": launch.vector(weight),
        **primary.arguments("primary"), **joined, "H": height, "W": width, "C": c, "M": m,
        "PIXELS": pixels, "per_group": per_group, "PRECISION": launch.precision(x.dtype),
        "FLAT_IN": launch.is_flat(x), "FLAT": launch.is_flat(to, residual),
        "WIDE": launch.is_wide(x, to, residual, images=True), "UNIT_IN": launch.unit(x, counts=(c,)),
        "UNIT": launch.unit(to, residual, counts=(m,)), "BP": tile.pixels, "BM": tile.channels, "BK": tile.depth,
        "ONE_STEP": c <= tile.depth, "COUNTERS": counters, "cleared": int(cleared),
    }  # fmt: skip
    with launch.on_device_of(x):
        grid = (groups * launch.cdiv(m, tile.channels),)
        launch.start_kernel(product_kernel, grid, arguments, tile.warps, tile.stages)
    return join and join.finish()
