"""``depthwise`` and its backward, of any stride; and the depthwise step of programs, with an epilogue and squeeze."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...activations import NONE
from ..reference import depthwise_backward as in_pytorch
from . import checks, launch, tiles
from .activation import activate, affine, normalized, slopes
from .epilogue import Epilogue
from .launch_cache import cached_launches
from .maps import assume_multiple, assume_multiple_strides, load_taps, near, read_tap, store_rows, tile_coords
from .sums import OverSplits, total
from .taps import tap_arguments

MOST_STRIDE = 3  # in the backward, where a thread holds the gradients of STRIDE x STRIDE pixels


@triton.jit
def depthwise_kernel(
    x, x_n, x_c, x_h, x_w, weight, weight_c, weight_tap,
    conv_bias, conv_gamma, conv_beta, conv_mean, conv_var, conv_eps, conv_slopes, conv_slopes_stride, conv_slope,
    out, out_n, out_c, out_h, out_w, sums, per_value, N, IN_H, IN_W, H, W, C, splits, per_split,
    CONV_ACT: tl.constexpr, D: tl.constexpr, STRIDE: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr,
    BW: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Grid: see ``tile_coords``; strips are of ``out`` (H x W), blocks of C. ``sums``: as of ``cheap_kernel``."""
    C = assume_multiple(C, UNIT)
    x_n, x_h, x_w = assume_multiple_strides(x_n, x_h, x_w, UNIT)
    out_n, out_h, out_w = assume_multiple_strides(out_n, out_h, out_w, UNIT)
    # columns: [BW]; channels, wanted: [BM]
    image, split, group, columns, channels, wanted, top, bottom = tile_coords(C, H, W, splits, per_split, BW, BM, WIDE)
    x += image * x_n
    out += image * out_n
    # center, scale, shift: [BM]
    center, scale, shift = affine(conv_bias, conv_gamma, conv_beta, conv_mean, conv_var, conv_eps, channels, wanted)
    neg_slope = slopes(conv_slopes, conv_slopes_stride, channels, wanted, conv_slope, CONV_ACT)  # [BM]
    taps = load_taps(weight, weight_c, weight_tap, channels, wanted, D)  # D * D of [BM]
    zeros = tl.zeros((BW, BM), tl.float32)
    found = zeros
    # Each result reads STRIDE rows that no result before it reads, and the first rows of the AHEAD results after it.
    AHEAD: tl.constexpr = (D - 1) // STRIDE
    acc_next = (zeros,) * AHEAD  # AHEAD of [BW, BM]
    for row in range(top - AHEAD, bottom):
        acc = acc_next + (zeros,)  # AHEAD + 1 of [BW, BM]
        for t in tl.static_range(STRIDE - D if STRIDE > D else 0, STRIDE):
            below = row * STRIDE + (D // 2 - STRIDE + 1 + t)
            for j in tl.static_range(D):
                # v: [BW, BM]
                v = read_tap(x, below, columns * STRIDE, channels, j, IN_H, IN_W, x_c, x_h, x_w, wanted, D)
                v = v.to(tl.float32)
                for e in tl.static_range(AHEAD + 1):
                    if D - STRIDE + t - STRIDE * e >= 0:
                        tap = taps[(D - STRIDE + t - STRIDE * e) * D + j]
                        acc = acc[:e] + (acc[e] + v * tap[None, :],) + acc[e + 1 :]
        acc_next = acc[1:]
        if row >= top:
            # z: [BW, BM]
            z = activate(normalized(acc[0], center, scale, shift, conv_mean is not None), CONV_ACT, neg_slope[None, :])
            stored = store_rows(z, out, row, columns, channels, W, out_c, out_h, out_w, wanted, None, 0, 0, 0)
            if sums is not None:
                found += stored
    if sums is not None:
        at = sums + (split.to(tl.int64) * N + image) * C + channels  # [BM]
        tl.store(at, (tl.sum(found, axis=0) * per_value).to(sums.dtype.element_ty), mask=wanted)


@cached_launches
def depthwise_with_epilogue(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, slopes: torch.Tensor | None, stride: int,
    act: int, slope: float, squeeze: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """act(conv(x) + bias) and its means, N x C (empty if not asked for); weight C x 1 x K x K, padded by K // 2."""
    epilogue = Epilogue(bias, act, slope, slopes)
    height, width = checks.expect_depthwise(x, weight, epilogue, stride)
    n, c, *sides = x.shape
    d = weight.shape[-1]
    out = launch.new_map(x, c, sides=(height, width))
    strips = tiles.strips("stencil", out, c, d * d)
    found = launch.empty((n, c) if squeeze else (0,), x.dtype, x.device)
    sums = OverSplits(found if squeeze else None, strips.splits, 1.0 / (height * width))
    arguments = {
        **launch.maps(x=x, out=out), **tap_arguments("weight", weight), **epilogue.arguments("conv"), **sums.arguments,
        "N": n, "IN_H": sides[0], "IN_W": sides[1], "H": height, "W": width, "C": c, "D": d, "STRIDE": stride,
        "WIDE": launch.is_wide(x, out), "UNIT": launch.unit(x, out, counts=(c,)),
    }  # fmt: skip
    strips.start(depthwise_kernel, x, c, arguments)
    sums.join()
    return out, found


@cached_launches
def depthwise(x, weight, bias, stride):
    return depthwise_with_epilogue(x, weight, bias, None, stride, NONE, 0.0, False)[0]


@triton.constexpr_function
def tap_of(phase, before, STRIDE, D):
    """The tap of a D x D kernel by which the result ``before`` squares of STRIDE pixels further reads a square's pixel
    ``phase``, in rows or in columns; -1 where it does not."""
    tap = phase + D // 2 - STRIDE * before
    return tap if 0 <= tap < D else -1


@triton.jit
def depthwise_input_bwd_kernel(
    grad, grad_n, grad_c, grad_h, grad_w, weight, weight_c, weight_tap, to, to_n, to_c, to_h, to_w, IN_H, IN_W,
    OUT_H, OUT_W, H, W, C, splits, per_split, D: tl.constexpr, STRIDE: tl.constexpr, WIDE: tl.constexpr,
    UNIT: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Gradient of the input (IN_H x IN_W) into ``to``. Grid: see ``tile_coords``; strips are of squares of STRIDE x
    STRIDE input pixels (H x W), each of which has its own taps; blocks are of C."""
    C = assume_multiple(C, UNIT)
    grad_n, grad_h, grad_w = assume_multiple_strides(grad_n, grad_h, grad_w, UNIT)
    to_n, to_h, to_w = assume_multiple_strides(to_n, to_h, to_w, UNIT)
    # columns: [BW]; channels, wanted: [BM]
    image, split, group, columns, channels, wanted, top, bottom = tile_coords(C, H, W, splits, per_split, BW, BM, WIDE)
    grad += image * grad_n
    to += image * to_n
    taps = load_taps(weight, weight_c, weight_tap, channels, wanted, D)  # D * D of [BM]
    # A square is read by the results from BEFORE before it to AFTER after it, in rows and in columns.
    BEFORE: tl.constexpr = D // 2 // STRIDE
    AFTER: tl.constexpr = (STRIDE - 1 + D // 2) // STRIDE
    for row in range(top, bottom):
        sums = (tl.zeros((BW, BM), tl.float32),) * (STRIDE * STRIDE)  # STRIDE * STRIDE of [BW, BM]
        for e in tl.static_range(-BEFORE, AFTER + 1):
            for f in tl.static_range(-BEFORE, AFTER + 1):
                above, left = row + e, columns + f  # above is a scalar, left: [BW]
                there = (above >= 0) & (above < OUT_H) & (left >= 0) & (left < OUT_W)  # [BW]
                at = above * grad_h + left[:, None] * grad_w + channels[None, :] * grad_c  # [BW, BM]
                g = tl.load(grad + at, mask=there[:, None] & wanted[None, :], other=0.0).to(tl.float32)
                for p in tl.static_range(STRIDE * STRIDE):
                    if tap_of(p // STRIDE, e, STRIDE, D) >= 0 and tap_of(p % STRIDE, f, STRIDE, D) >= 0:
                        tap = taps[tap_of(p // STRIDE, e, STRIDE, D) * D + tap_of(p % STRIDE, f, STRIDE, D)]
                        sums = sums[:p] + (sums[p] + g * tap[None, :],) + sums[p + 1 :]
        for p in tl.static_range(STRIDE * STRIDE):
            below, across = row * STRIDE + p // STRIDE, columns * STRIDE + p % STRIDE  # below is a scalar, across: [BW]
            mask = ((across < IN_W) & (below < IN_H))[:, None] & wanted[None, :]  # [BW, BM]
            at = below * to_h + across[:, None] * to_w + channels[None, :] * to_c
            tl.store(to + at, sums[p].to(to.dtype.element_ty), mask=mask)


@triton.jit
def depthwise_weight_bwd_kernel(
    x, x_n, x_c, x_h, x_w, grad, grad_n, grad_c, grad_h, grad_w, weights, biases, IN_H, IN_W, H, W, C, splits,
    per_split, D: tl.constexpr, STRIDE: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr, BW: tl.constexpr,
    BM: tl.constexpr,
):  # fmt: skip
    """Groups' sums over the results' pixels (H x W), of the weight (groups x D x D x C) and of the bias (groups x C):
    each may be None. Grid: see ``tile_coords``; blocks are of C."""
    C = assume_multiple(C, UNIT)
    x_n, x_h, x_w = assume_multiple_strides(x_n, x_h, x_w, UNIT)
    grad_n, grad_h, grad_w = assume_multiple_strides(grad_n, grad_h, grad_w, UNIT)
    # columns: [BW]; channels, wanted: [BM]
    image, split, group, columns, channels, wanted, top, bottom = tile_coords(C, H, W, splits, per_split, BW, BM, WIDE)
    x += image * x_n
    grad += image * grad_n
    mask = (columns < W)[:, None] & wanted[None, :]  # [BW, BM]
    zeros = tl.zeros((BW, BM), tl.float32)
    sums, bias_sum = (zeros,) * (D * D), zeros  # D * D of [BW, BM], and one
    for row in range(top, bottom):
        at = row * grad_h + columns[:, None] * grad_w + channels[None, :] * grad_c
        g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)  # [BW, BM]
        if biases is not None:
            bias_sum += g
        if weights is not None:
            for k in tl.static_range(D * D):
                below = row * STRIDE + (k // D - D // 2)
                # Outside of the map nothing is added, whatever the gradient is.
                seen = mask & near(below, columns * STRIDE, k % D, IN_H, IN_W, wanted, D)  # [BW, BM]
                place = (columns * STRIDE + (k % D - D // 2))[:, None] * x_w + channels[None, :] * x_c  # [BW, BM]
                v = tl.load(x + below * x_h + place, mask=seen, other=0.0).to(tl.float32)
                sums = sums[:k] + (sums[k] + v * tl.where(seen, g, 0.0),) + sums[k + 1 :]
    if weights is not None:
        to = weights + group.to(tl.int64) * (D * D) * C + channels
        for k in tl.static_range(D * D):
            tl.store(to + k * C, tl.sum(sums[k], axis=0), mask=wanted)  # [BM]
    if biases is not None:
        tl.store(biases + group.to(tl.int64) * C + channels, tl.sum(bias_sum, axis=0), mask=wanted)  # [BM]


@cached_launches
def depthwise_backward(grad_out, x, weight, bias, stride, input_wanted, weight_wanted):
    """Gradients of x, weight and bias: empty where they are not wanted, or there is no bias."""
    if stride > MOST_STRIDE:
        return in_pytorch(grad_out, x, weight, bias, stride, input_wanted, weight_wanted)
    height, width = checks.expect_depthwise(x, weight, Epilogue(bias), stride)
    n, c, *sides = x.shape
    d = weight.shape[-1]
    checks.expect("grad_out", grad_out, (n, c, height, width), x)
    common = {
        **launch.maps(grad=grad_out), "IN_H": sides[0], "IN_W": sides[1], "C": c, "D": d, "STRIDE": stride,
    }  # fmt: skip
    grad_x = launch.new_map(x, c) if input_wanted else launch.empty((0,), x.dtype, x.device)
    if input_wanted:
        squares = [launch.cdiv(side, stride) for side in sides]
        strips = tiles.strips("stencil_gradient", grad_x, c, d * d, squares)
        arguments = common | {
            **tap_arguments("weight", weight), **launch.maps(to=grad_x), "OUT_H": height, "OUT_W": width,
            "H": squares[0], "W": squares[1], "WIDE": launch.is_wide(grad_out, grad_x),
            "UNIT": launch.unit(grad_out, grad_x, counts=(c,)),
        }  # fmt: skip
        strips.start(depthwise_input_bwd_kernel, x, c, arguments)
    found = [launch.empty((0,), x.dtype, x.device) for _ in range(2)]
    if weight_wanted or bias is not None:
        strips = tiles.strips("stencil_gradient", grad_out, c, d * d)
        rows = (d * d if weight_wanted else 0, 0 if bias is None else 1)
        partials = [launch.empty((n * strips.splits, k, c), torch.float32, x.device) if k else None for k in rows]
        arguments = common | {
            **launch.maps(x=x), "weights": partials[0], "biases": partials[1], "H": height, "W": width,
            "WIDE": launch.is_wide(grad_out, x), "UNIT": launch.unit(grad_out, x, counts=(c,)),
        }  # fmt: skip
        strips.start(depthwise_weight_bwd_kernel, x, c, arguments)
        for i, (parameter, sums) in enumerate(zip((weight, bias), partials)):
            if sums is not None:
                to = launch.empty(tuple(parameter.shape), parameter.dtype, x.device)
                found[i] = total(sums, to, steps=(1, rows[i]))
    return grad_x, *found
