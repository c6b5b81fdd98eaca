"""Passes of a BatchNorm over the batch that stand between two convolutions: after its statistics are known, the
normalisation, and the backward's sums; and its backward within other kernels.

In each, ``norm`` holds the BatchNorm and the activation after it: g is the gradient of the BatchNorm's result.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import launch, tiles
from .activation import PRELU, activate, activate_backward, affine, load_coefficients, normalized, slopes
from .epilogue import Epilogue, EpilogueGradients
from .jit import kernel
from .joins import JOINED, NO_GRADIENTS, Joins, join_gradients_last
from .maps import (
    assume_multiple,
    assume_multiple_strides,
    has_sums,
    joined_block,
    store_partial,
    sum_where,
    tile_coords,
)
from .norm import NormVectors

ROWS = 2  # rows that a program reads before it computes: more bytes are under way


@kernel
def normalise_kernel(
    z, z_n, z_c, z_h, z_w,
    norm_bias, norm_gamma, norm_beta, norm_mean, norm_var, norm_eps, norm_slopes, norm_slopes_stride, norm_slope,
    out, out_n, out_c, out_h, out_w, residual, residual_n, residual_c, residual_h, residual_w, sums, N, H, W, C, splits,
    per_split, vectors, NORM_ACT: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr,
    BW: tl.constexpr, BM: tl.constexpr, DOUBLINGS: tl.constexpr,
):  # fmt: skip
    """Grid: see ``tile_coords``; blocks are of C. ``sums``, [splits, N, C], are the output's, or None."""
    C = assume_multiple(C, UNIT)
    z_n, z_h, z_w = assume_multiple_strides(z_n, z_h, z_w, UNIT)
    out_n, out_h, out_w = assume_multiple_strides(out_n, out_h, out_w, UNIT)
    residual_n, residual_h, residual_w = assume_multiple_strides(residual_n, residual_h, residual_w, UNIT)
    # columns: [BW]; channels, wanted: [BM]
    image, split, group, columns, channels, wanted, top, bottom = tile_coords(
        C, H, W, splits, per_split, BW, BM, WIDE, vectors
    )
    z += image * z_n
    out += image * out_n
    if residual is not None:
        residual += image * residual_n
    # middle, scale, shift: [BM]
    middle, scale, shift = affine(norm_bias, norm_gamma, norm_beta, norm_mean, norm_var, norm_eps, channels, wanted)
    neg_slope = slopes(norm_slopes, norm_slopes_stride, channels, wanted, norm_slope, NORM_ACT)  # [BM]
    mask = (columns < W)[:, None] & wanted  # [BW, BM]
    place = columns[:, None] * z_w + channels * z_c  # [BW, BM]
    more = columns[:, None] * residual_w + channels * residual_c  # [BW, BM]
    found = tl.zeros((BW, BM), tl.float32)
    for start in range(top, bottom, ROWS):
        rows, shortcuts = (), ()  # ROWS of [BW, BM] each
        for i in tl.static_range(ROWS):
            here = mask & (start + i < bottom)
            rows = rows + (tl.load(z + (start + i) * z_h + place, mask=here, other=0.0),)
            if residual is not None:
                shortcuts = shortcuts + (tl.load(residual + (start + i) * residual_h + more, mask=here, other=0.0),)
        for i in tl.static_range(ROWS):
            here = mask & (start + i < bottom)
            v = normalized(rows[i].to(tl.float32), middle, scale, shift, norm_mean is not None)
            v = activate(v, NORM_ACT, neg_slope)
            if residual is not None:
                v += shortcuts[i].to(tl.float32)
            at = (start + i) * out_h + columns[:, None] * out_w + channels * out_c
            tl.store(out + at, v.to(out.dtype.element_ty), mask=here)
            if sums is not None:
                found += tl.where(here, v, 0.0)
    if sums is not None:
        found = sum_where(mask, found, vectors, DOUBLINGS)
        to = sums + (split.to(tl.int64) * N + image) * C + channels
        tl.store(to, found, mask=has_sums(wanted, vectors, BW))


def normalise(
    z: torch.Tensor,
    norm: Epilogue,
    *,
    to: torch.Tensor | None = None,
    like: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    squeeze: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """act(BatchNorm(z)) + residual, and its sums over the splits of each image (splits x N x C, float32) for a squeeze.

    Args:
        to: the map that is written, of z's shape; by default a new one in the memory format of ``like``, or of z.
    """
    n, c, height, width = z.shape
    to = launch.new_map(z if like is None else like, c, (height, width)) if to is None else to
    unit = launch.unit(z, to, residual, counts=(c,))
    strips = tiles.strips("stencil", z, c, unit=unit)
    sums = launch.empty((strips.splits, n, c), torch.float32, z.device) if squeeze else None
    arguments = {
        **launch.maps(z=z, out=to, residual=residual), **norm.arguments("norm"), "sums": sums, "N": n, "H": height,
        "W": width, "C": c, "ROWS": ROWS, "WIDE": launch.is_wide(z, to, residual),
        "UNIT": unit,
    }  # fmt: skip
    strips.start(normalise_kernel, z, c, arguments)
    return to, sums


@kernel
def norm_bwd_kernel(
    grad, grad_n, grad_c, grad_h, grad_w, z, z_n, z_c, z_h, z_w,
    norm_bias, norm_gamma, norm_beta, norm_mean, norm_var, norm_eps, norm_slopes, norm_slopes_stride, norm_slope,
    coefficients, to, to_n, to_c, to_h, to_w, partials, join_counters, join_count, join_gamma, join_mean, join_var,
    join_eps, join_coefficients, join_grad_bias, join_grad_beta, join_grad_gamma, join_grad_slopes,
    H, W, C, splits, per_split, vectors, join_BATCH: tl.constexpr, NORM_ACT: tl.constexpr, ROWS: tl.constexpr,
    WIDE: tl.constexpr, UNIT: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr, DOUBLINGS: tl.constexpr,
):  # fmt: skip
    """The sums of g, ``partials``, [groups, 3, C], or the gradient of z, ``to``: the other is None. Grid: see
    ``tile_coords``; blocks are of C. ``join_``: see ``join_gradients_last``."""
    C = assume_multiple(C, UNIT)
    grad_n, grad_h, grad_w = assume_multiple_strides(grad_n, grad_h, grad_w, UNIT)
    z_n, z_h, z_w = assume_multiple_strides(z_n, z_h, z_w, UNIT)
    to_n, to_h, to_w = assume_multiple_strides(to_n, to_h, to_w, UNIT)
    # columns: [BW]; channels, wanted: [BM]
    image, split, group, columns, channels, wanted, top, bottom = tile_coords(
        C, H, W, splits, per_split, BW, BM, WIDE, vectors
    )
    grad += image * grad_n
    z += image * z_n
    if to is not None:
        to += image * to_n
    # middle, scale, shift: [BM]
    middle, scale, shift = affine(norm_bias, norm_gamma, norm_beta, norm_mean, norm_var, norm_eps, channels, wanted)
    neg_slope = slopes(norm_slopes, norm_slopes_stride, channels, wanted, norm_slope, NORM_ACT)  # [BM]
    # factor, constant, linear, center: [BM]
    factor, constant, linear, center = load_coefficients(coefficients, channels, C, wanted)
    mask = (columns < W)[:, None] & wanted  # [BW, BM]
    place = columns[:, None] * z_w + channels * z_c  # [BW, BM]
    grad_place = columns[:, None] * grad_w + channels * grad_c  # [BW, BM]
    zeros = tl.zeros((BW, BM), tl.float32)
    first, second, third = zeros, zeros, zeros
    for start in range(top, bottom, ROWS):
        rows, gradients = (), ()  # ROWS of [BW, BM] each
        for i in tl.static_range(ROWS):
            here = mask & (start + i < bottom)
            rows = rows + (tl.load(z + (start + i) * z_h + place, mask=here, other=0.0),)
            gradients = gradients + (tl.load(grad + (start + i) * grad_h + grad_place, mask=here, other=0.0),)
        for i in tl.static_range(ROWS):
            here = mask & (start + i < bottom)
            v, above = rows[i].to(tl.float32), gradients[i].to(tl.float32)
            a = normalized(v, middle, scale, shift, norm_mean is not None)  # [BW, BM]
            g = activate_backward(above, a, NORM_ACT, neg_slope)
            if to is not None:
                g = factor * (g - constant - linear * (v - center))
                at = (start + i) * to_h + columns[:, None] * to_w + channels * to_c
                tl.store(to + at, g.to(to.dtype.element_ty), mask=here)
            else:
                g = tl.where(here, g, 0.0)
                first += g
                second += tl.where(here, g * (v - middle), 0.0)
                if NORM_ACT == PRELU:
                    third += tl.where(here & ~(a > 0), above * a, 0.0)
    if partials is not None:
        store_partial(
            partials, group, channels, C, has_sums(wanted, vectors, BW), sum_where(mask, first, vectors, DOUBLINGS),
            sum_where(mask, second, vectors, DOUBLINGS), sum_where(mask, third, vectors, DOUBLINGS),
        )  # fmt: skip
        if join_counters is not None:
            blocks, block, begin, width = joined_block(C, vectors, BM)
            join_gradients_last(
                partials, join_counters, group, tl.num_programs(0) // blocks, block, begin, width, 1, 0, C, join_count,
                join_gamma, join_mean, join_var, join_eps, join_coefficients, join_grad_bias, join_grad_beta,
                join_grad_gamma, join_grad_slopes, join_BATCH, BM if vectors is None else JOINED,
                1024 if vectors is None else 256,
            )  # fmt: skip


def _strips(grad_out, z, to=None):
    """The strips of ``norm_bwd_kernel``, and its UNIT."""
    unit = launch.unit(grad_out, z, to, counts=(z.shape[1],))
    return tiles.strips("stencil", z, z.shape[1], unit=unit), unit


def _norm_backward(grad_out, z, norm, strips, unit, coefficients, to, joined):
    arguments = {
        **launch.maps(grad=grad_out, z=z, to=to), **norm.arguments("norm"), "coefficients": coefficients, **joined,
        "H": z.shape[2], "W": z.shape[3], "C": z.shape[1], "ROWS": ROWS, "WIDE": launch.is_wide(grad_out, z, to),
        "UNIT": unit,
    }  # fmt: skip
    strips.start(norm_bwd_kernel, z, z.shape[1], arguments)


def norm_gradient_sums(
    grad_out: torch.Tensor, z: torch.Tensor, norm: Epilogue, *, joins: Joins, own: Epilogue,
    vectors: NormVectors | None = None,
) -> tuple[torch.Tensor, EpilogueGradients]:  # fmt: skip
    """The coefficients of the BatchNorm's backward, 4 x C, and the gradients of its parameters and of PReLU's slopes.

    Args:
        grad_out: of any strides, also expanded.
        joins: of the sums; ``own``, ``vectors``: see ``norm.join_gradients``.
    """
    n, c, height, width = z.shape
    strips, unit = _strips(grad_out, z)
    join = joins.gradients(own, n * strips.splits, c, strips.blocks(c), n * height * width, vectors)
    _norm_backward(grad_out, z, norm, strips, unit, None, None, join.arguments)
    return join.finish()


def norm_gradient(
    grad_out: torch.Tensor, z: torch.Tensor, norm: Epilogue, coefficients: torch.Tensor, *,
    to: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """The gradient of z, where no kernel that needs it computes it on the way.

    Args:
        coefficients: those of the BatchNorm's backward, see ``load_coefficients``.
        to: the map that is written, which may be ``grad_out``; by default a scratch map.
    """
    to = launch.scratch(z, z.shape[1]) if to is None else to
    _norm_backward(grad_out, z, norm, *_strips(grad_out, z, to), coefficients, to, NO_GRADIENTS)
    return to


@triton.jit
def read_result(grad, grad_c, grad_h, grad_w, z, z_c, z_h, z_w, row, columns, channels, H, W, wanted):
    """A row of a gradient and of z, [BW, BM] each, as they are in memory, 0 outside of the map (H x W); of the gradient
    twice where z is None. ``columns``: [BW]; ``channels``, ``wanted``: [BM]."""
    there = ((row >= 0) & (row < H) & (columns >= 0) & (columns < W))[:, None] & wanted  # [BW, BM]
    g = tl.load(grad + row * grad_h + columns[:, None] * grad_w + channels * grad_c, mask=there, other=0.0)
    v = g
    if z is not None:
        v = tl.load(z + row * z_h + columns[:, None] * z_w + channels * z_c, mask=there, other=0.0)
    return g, v


@triton.jit
def result_gradient(g, v, row, columns, H, W, wanted, vectors, ACT: tl.constexpr, NORM: tl.constexpr):
    """What ``read_result`` read as the gradient of a convolution's results, [BW, BM], float32, 0 outside of the map.

    With NORM the gradient that was read is that of the activation ACT of a BatchNorm of the results, v. ``vectors``:
    what ``affine`` gives, the activation's slope, and what ``load_coefficients`` gives, [BM] each.
    """
    g = g.to(tl.float32)
    if NORM:
        middle, scale, shift, slope, factor, constant, linear, center = vectors
        v = v.to(tl.float32)
        g = activate_backward(g, normalized(v, middle, scale, shift, True), ACT, slope)
        g = factor * (g - constant - linear * (v - center))
        there = ((row >= 0) & (row < H) & (columns >= 0) & (columns < W))[:, None] & wanted  # [BW, BM]
        g = tl.where(there, g, 0.0)
    return g
