"""The first convolution of a net, which is dense and has few input channels: with its epilogue in one pass, or with
the statistics of its results; and the gradient of its weight through a BatchNorm and an activation."""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl

from ..layout import strides_are_channels_last
from . import launch, tiles
from .activation import activate, affine, load_coefficients, normalized, slopes
from .epilogue import NO_EPILOGUE, Epilogue
from .jit import kernel
from .joins import NO_STATISTICS, Joins, join_statistics_last
from .launch_cache import cached_launches
from .maps import assume_multiple, assume_multiple_strides, finish_moments, store_partial, tile_coords
from .norm import BatchNorm, NormVectors
from .normalise import read_result, result_gradient
from .sums import Totals

MOST_INPUTS = 2048  # of a row's pixels, which a program has in registers


@triton.jit
def places_of_inputs(
    columns, W, IN_W, x_c, x_h, x_w, weight_c, weight_h, weight_w, C: tl.constexpr, D: tl.constexpr,
    STRIDE: tl.constexpr, PADDING: tl.constexpr, WIDE: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The C x D x D inputs of a row's pixels: their rows in the kernel, [BK], their places in a filter, [BK], which of
    them there are, [BK], which are within the map's columns, [BW, BK], and their offsets in it, [BW, BK]."""
    k = tl.arange(0, BK)  # inputs of a pixel in memory's order where maps are channels_last
    i, j, c = k // (D * C), k // C % D, k % C  # [BK] each
    there = k < C * D * D
    in_filter = c * weight_c + i * weight_h + j * weight_w
    if WIDE:
        i, j, c = i.to(tl.int64), j.to(tl.int64), c.to(tl.int64)
    seen = (columns * STRIDE - PADDING)[:, None] + j[None, :]  # [BW, BK]
    inside = (seen >= 0) & (seen < IN_W) & (columns < W)[:, None] & there[None, :]
    return i, in_filter, there, inside, seen * x_w + (i * x_h + c * x_c)[None, :]


@triton.jit
def read_inputs(x, above, i, inside, places, IN_H, x_h):
    """The inputs of a row whose first one is in row ``above`` of x: [BW, BK]; see ``places_of_inputs``."""
    mask = inside & ((above + i >= 0) & (above + i < IN_H))[None, :]
    return tl.load(x + above * x_h + places, mask=mask, other=0.0)


@kernel
def convolution_kernel(
    x, x_n, x_c, x_h, x_w, weight, weight_n, weight_c, weight_h, weight_w,
    conv_bias, conv_gamma, conv_beta, conv_mean, conv_var, conv_eps, conv_slopes, conv_slopes_stride, conv_slope,
    out, out_n, out_c, out_h, out_w,
    partials, join_counters, join_count, join_gamma, join_beta, join_eps, join_bias, join_running_mean,
    join_running_var, join_batches, join_momentum, join_mean_out, join_var_out, join_scale_out, join_shift_out,
    IN_H, IN_W, H, W, M, splits, per_split,
    C: tl.constexpr, D: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, CONV_ACT: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr,
    BW: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Grid: see ``tile_coords``; strips are of ``out`` (H x W), blocks of M. A row is a product over the C x D x D
    inputs of each pixel, whose places in x do not depend on the row. ``partials``: statistics of the
    product, or None; ``join_``: see ``join_statistics_last``."""
    M = assume_multiple(M, UNIT)
    out_n, out_h, out_w = assume_multiple_strides(out_n, out_h, out_w, UNIT)
    # columns: [BW]; channels, wanted: [BM]
    image, split, group, columns, channels, wanted, top, bottom = tile_coords(M, H, W, splits, per_split, BW, BM, WIDE)
    x += image * x_n
    out += image * out_n
    # center, scale, shift: [BM]
    center, scale, shift = affine(conv_bias, conv_gamma, conv_beta, conv_mean, conv_var, conv_eps, channels, wanted)
    neg_slope = slopes(conv_slopes, conv_slopes_stride, channels, wanted, conv_slope, CONV_ACT)  # [BM]
    i, in_filter, there, inside, places = places_of_inputs(
        columns, W, IN_W, x_c, x_h, x_w, weight_c, weight_h, weight_w, C, D, STRIDE, PADDING, WIDE, BK
    )
    at = weight + (channels[None, :] * weight_n + in_filter[:, None])  # [BK, BM]
    b = tl.load(at, mask=there[:, None] & wanted[None, :], other=0.0).to(x.dtype.element_ty)  # [BK, BM]
    mask = (columns < W)[:, None] & wanted[None, :]  # [BW, BM]
    to = columns[:, None] * out_w + channels[None, :] * out_c  # [BW, BM]
    zeros = tl.zeros((BW, BM), tl.float32)
    first, second, origin = zeros, zeros, tl.zeros((BM,), tl.float32)
    size = tl.maximum(tl.sum((columns < W).to(tl.float32), axis=0), 1.0)  # the strip's columns, a scalar
    for row in range(top, bottom):
        a = read_inputs(x, row * STRIDE - PADDING, i, inside, places, IN_H, x_h)  # [BW, BK]
        z = tl.dot(a, b, input_precision=PRECISION)  # [BW, BM]
        if partials is not None:
            if row == top:
                origin = tl.sum(tl.where(mask, z, 0.0), axis=0) / size
            apart = tl.where(mask, z - origin[None, :], 0.0)
            first += apart
            second += apart * apart
        v = activate(normalized(z, center, scale, shift, conv_mean is not None), CONV_ACT, neg_slope[None, :])
        tl.store(out + row * out_h + to, v.to(out.dtype.element_ty), mask=mask)
    if partials is not None:
        values = size * (bottom - top).to(tl.float32) + tl.zeros((BM,), tl.float32)  # [BM]
        mean, m2 = finish_moments(tl.sum(first, axis=0), tl.sum(second, axis=0), origin, values)  # [BM] each
        store_partial(partials, group, channels, M, wanted, values, mean, m2)
        blocks = tl.cdiv(M, BM)
        block = tl.program_id(0) % blocks
        join_statistics_last(
            partials, join_counters, group, tl.num_programs(0) // blocks, block, block * BM, BM, 1, 0, M,
            join_count, join_gamma, join_beta, join_eps, join_bias, join_running_mean, join_running_var,
            join_batches, join_momentum, join_mean_out, join_var_out, join_scale_out, join_shift_out, BM,
        )  # fmt: skip


def _strips(x: torch.Tensor, weight: torch.Tensor, z: torch.Tensor, block: int) -> tuple[tiles.Strips, int]:
    """The strips of a kernel over the convolution's results z, in blocks of at most so many channels; and the inputs of
    a pixel that a row's product takes."""
    (n, m, height, width), depth = z.shape, _side(weight[0].numel())
    tile = tiles.lookup("product", tiles.shape_class(z), x.device)
    columns, block = min(_side(width), max(MOST_INPUTS // depth, tiles.LEAST)), min(_side(m), tile.channels, block)
    tile = replace(tile, channels=block, columns=columns, warps=8 if depth > 128 else 4, stages=1)
    across = launch.cdiv(width, columns)
    per_split = tiles.rows_of_strips(height, n * across * launch.cdiv(m, block))
    return tiles.Strips(tile, across * launch.cdiv(height, per_split), per_split), depth


def _side(needed: int) -> int:
    return max(1 << (needed - 1).bit_length(), tiles.LEAST)


def _arguments(x: torch.Tensor, weight: torch.Tensor, z: torch.Tensor, stride: int, padding: int) -> dict:
    """Arguments of a kernel over the convolution's results z."""
    c, *sides = x.shape[1:]
    return {
        **launch.maps(x=x), **launch.strides("weight", weight), "IN_H": sides[0], "IN_W": sides[1],
        "H": z.shape[2], "W": z.shape[3], "M": z.shape[1],
        "C": c, "D": weight.shape[-1], "STRIDE": stride, "PADDING": padding, "PRECISION": launch.precision(x.dtype),
    }  # fmt: skip


def _dense(weight: torch.Tensor) -> torch.Tensor:
    """The weight, whose numbers follow each other in the order of either memory format."""
    dense = weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)
    return weight if dense else weight.contiguous()


def _convolve(x, weight, stride, padding, to, epilogue=NO_EPILOGUE, joins=None, norm=None, vectors=None):
    """The convolution of x into ``to``; the last arguments are those of ``convolution_before_norm``."""
    weight = _dense(weight)
    strips, depth = _strips(x, weight, to, 64)
    (n, m, height, width), join = to.shape, None
    if norm is not None:
        blocks = launch.cdiv(m, strips.tile.channels)
        join = joins.statistics(norm, n * height * width, n * strips.splits, m, blocks, vectors)
    arguments = {
        **_arguments(x, weight, to, stride, padding), **launch.maps(out=to), "weight": weight,
        **epilogue.arguments("conv"), **(join.arguments if join else NO_STATISTICS), "WIDE": launch.is_wide(x, to),
        "UNIT": launch.unit(to, counts=(m,)), "BK": depth,
    }  # fmt: skip
    strips.start(convolution_kernel, x, m, arguments)
    return join and join.finish()


def _sides(x: torch.Tensor, weight: torch.Tensor, stride: int, padding: int) -> tuple[int, int]:
    height, width = ((side + 2 * padding - weight.shape[-1]) // stride + 1 for side in x.shape[2:])
    return height, width


@cached_launches
def convolution(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, slopes: torch.Tensor | None, stride: int,
    padding: int, act: int, slope: float,
) -> torch.Tensor:  # fmt: skip
    """act(conv(x) + bias); weight M x C x D x D of at most ``program.training.MOST_FILTER`` numbers a filter."""
    out = launch.new_map(x, weight.shape[0], _sides(x, weight, stride, padding))
    _convolve(x, weight, stride, padding, out, Epilogue(bias, act, slope, slopes))
    return out


def convolution_before_norm(
    x: torch.Tensor, weight: torch.Tensor, stride: int, padding: int, *, joins: Joins | None = None,
    norm: BatchNorm | None = None, vectors: NormVectors | None = None,
) -> tuple[torch.Tensor, NormVectors | None]:  # fmt: skip
    """The convolution of x as a scratch map, and the vectors of ``norm``; weight as of ``convolution``.

    Args:
        norm: the BatchNorm that follows, over the statistics of the unrounded results; None: it needs none.
        joins: those of its statistics; ``vectors``: where they are written, by default new ones.
    """
    z = launch.scratch(x, weight.shape[0], _sides(x, weight, stride, padding))
    return z, _convolve(x, weight, stride, padding, z, joins=joins, norm=norm, vectors=vectors)


@kernel
def convolution_weight_bwd_kernel(
    grad, grad_n, grad_c, grad_h, grad_w, z, z_n, z_c, z_h, z_w,
    norm_bias, norm_gamma, norm_beta, norm_mean, norm_var, norm_eps, norm_slopes, norm_slopes_stride, norm_slope,
    coefficients, x, x_n, x_c, x_h, x_w, partials, weight_n, weight_c, weight_h, weight_w,
    IN_H, IN_W, H, W, M, splits, per_split, C: tl.constexpr, D: tl.constexpr, STRIDE: tl.constexpr,
    PADDING: tl.constexpr, NORM_ACT: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr,
    BW: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Groups' sums over the results (H x W) of the weight's gradient, each with the strides of a weight. Grid as of
    ``convolution_kernel``; a row adds the product of its inputs and of its gradients."""
    M = assume_multiple(M, UNIT)
    grad_n, grad_h, grad_w = assume_multiple_strides(grad_n, grad_h, grad_w, UNIT)
    z_n, z_h, z_w = assume_multiple_strides(z_n, z_h, z_w, UNIT)
    # columns: [BW]; channels, wanted: [BM]
    image, split, group, columns, channels, wanted, top, bottom = tile_coords(M, H, W, splits, per_split, BW, BM, WIDE)
    x += image * x_n
    grad += image * grad_n
    if z is not None:
        z += image * z_n
    vectors = affine(norm_bias, norm_gamma, norm_beta, norm_mean, norm_var, norm_eps, channels, wanted)
    vectors = vectors + (slopes(norm_slopes, norm_slopes_stride, channels, wanted, norm_slope, NORM_ACT),)
    vectors = vectors + load_coefficients(coefficients, channels, M, wanted)
    i, in_filter, there, inside, places = places_of_inputs(
        columns, W, IN_W, x_c, x_h, x_w, weight_c, weight_h, weight_w, C, D, STRIDE, PADDING, WIDE, BK
    )
    acc = tl.zeros((BK, BM), tl.float32)
    ahead = read_inputs(x, top * STRIDE - PADDING, i, inside, places, IN_H, x_h)  # [BW, BK]
    ahead_g = read_result(grad, grad_c, grad_h, grad_w, z, z_c, z_h, z_w, top, columns, channels, H, W, wanted)
    for row in range(top, bottom):
        a, seen = ahead, ahead_g  # while this row is used, the next one is being loaded
        ahead = read_inputs(x, (row + 1) * STRIDE - PADDING, i, inside & (row + 1 < bottom), places, IN_H, x_h)
        ahead_g = read_result(
            grad, grad_c, grad_h, grad_w, z, z_c, z_h, z_w, row + 1, columns, channels, bottom, W, wanted
        )  # fmt: skip
        # g: [BW, BM]
        g = result_gradient(seen[0], seen[1], row, columns, H, W, wanted, vectors, NORM_ACT, z is not None)
        acc = tl.dot(tl.trans(a), g.to(x.dtype.element_ty), acc, input_precision=PRECISION)  # [BK, BM]
    to = partials + group.to(tl.int64) * (M * C * D * D) + channels[None, :] * weight_n + in_filter[:, None]  # [BK, BM]
    tl.store(to, acc, mask=there[:, None] & wanted[None, :])


def convolution_weight_gradient(
    grad_out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: int,
    padding: int,
    *,
    z: torch.Tensor | None = None,
    norm: Epilogue = NO_EPILOGUE,
    coefficients: torch.Tensor | None = None,
    totals: Totals | None = None,
) -> torch.Tensor:
    """The gradient of the weight of ``convolution``; arguments as of ``depthwise_gradients``."""
    weight = _dense(weight)
    strips, depth = _strips(x, weight, grad_out, 32 if weight[0].numel() <= 64 else 16)
    m, groups = weight.shape[0], x.shape[0] * strips.splits
    partials = launch.empty((groups, 1, weight.numel()), torch.float32, x.device)
    arguments = {
        **_arguments(x, weight, grad_out, stride, padding), **launch.maps(grad=grad_out, z=z),
        **norm.arguments("norm"), "coefficients": coefficients, "partials": partials,
        "WIDE": launch.is_wide(x, grad_out, z), "UNIT": launch.unit(grad_out, z, counts=(m,)), "BK": depth,
    }  # fmt: skip
    strips.start(convolution_weight_bwd_kernel, x, m, arguments)
    layout = torch.channels_last if strides_are_channels_last(weight) else torch.contiguous_format
    grad_weight = torch.empty(tuple(weight.shape), dtype=weight.dtype, device=x.device, memory_format=layout)
    own = totals or Totals()
    own.add(partials, grad_weight)
    if totals is None:
        own.start()
    return grad_weight
