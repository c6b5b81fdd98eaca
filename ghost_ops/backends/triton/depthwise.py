"""Depthwise convolutions of any stride: ``depthwise`` and its backward, and a program's, with what follows it and the
squeeze."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..activation import NONE
from ..reference import depthwise_backward as in_pytorch
from . import checks, launch, tiles
from .activation import activate, affine, normalized, slopes
from .half import Half
from .maps import near, read_tap, store_rows, strip_of, weights_of, whole, whole_strides
from .sums import OverSplits, by_taps, total
from .tape import taped

MOST_STRIDE = 3  # of a backward, in which a thread has the gradients of STRIDE x STRIDE pixels


@triton.jit
def depthwise_kernel(
    x, x_n, x_c, x_h, x_w, weight,
    one_bias, one_gamma, one_beta, one_mean, one_var, one_eps, one_slopes, one_slopes_stride, one_slope,
    out, out_n, out_c, out_h, out_w, sums, per_value, N, IN_H, IN_W, H, W, C, splits, per_split,
    ONE_ACT: tl.constexpr, D: tl.constexpr, STRIDE: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr,
    BW: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Grid: see ``strip_of``; strips are of ``out`` (H x W), blocks of C. ``sums``: as of ``cheap_kernel``."""
    C = whole(C, UNIT)
    x_n, x_h, x_w = whole_strides(x_n, x_h, x_w, UNIT)
    out_n, out_h, out_w = whole_strides(out_n, out_h, out_w, UNIT)
    image, split, group, columns, channels, wanted, top, bottom = strip_of(C, H, W, splits, per_split, BW, BM, WIDE)
    x += image * x_n
    out += image * out_n
    center, by, shift = affine(one_bias, one_gamma, one_beta, one_mean, one_var, one_eps, channels, wanted)
    bent = slopes(one_slopes, one_slopes_stride, channels, wanted, one_slope, ONE_ACT)
    held = weights_of(weight, channels, C, wanted, D)
    nothing = tl.zeros((BW, BM), tl.float32)
    found = nothing
    # A result takes in STRIDE rows that no result before it has to do with, and begins those after it.
    AHEAD: tl.constexpr = (D - 1) // STRIDE
    pending = (nothing,) * AHEAD
    for row in range(top - AHEAD, bottom):
        begun = pending + (nothing,)
        for t in tl.static_range(STRIDE - D if STRIDE > D else 0, STRIDE):
            below = row * STRIDE + (D // 2 - STRIDE + 1 + t)
            for j in tl.static_range(D):
                v = read_tap(x, below, columns * STRIDE, channels, j, IN_H, IN_W, x_c, x_h, x_w, wanted, D)
                v = v.to(tl.float32)
                for e in tl.static_range(AHEAD + 1):
                    if D - STRIDE + t - STRIDE * e >= 0:
                        by = held[(D - STRIDE + t - STRIDE * e) * D + j]
                        begun = begun[:e] + (begun[e] + v * by[None, :],) + begun[e + 1 :]
        pending = begun[1:]
        if row >= top:
            z = activate(normalized(begun[0], center, by, shift, one_mean is not None), ONE_ACT, bent[None, :])
            stored = store_rows(z, out, row, columns, channels, W, out_c, out_h, out_w, wanted, None, 0, 0, 0)
            if sums is not None:
                found += stored
    if sums is not None:
        at = sums + (split.to(tl.int64) * N + image) * C + channels
        tl.store(at, (tl.sum(found, axis=0) * per_value).to(sums.dtype.element_ty), mask=wanted)


@taped
def layer(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, slopes: torch.Tensor | None, stride: int,
    act: int, slope: float, squeeze: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """act(conv(x) + bias) and its means, N x C (empty if not asked for); weight C x 1 x K x K, padded by K // 2."""
    one = Half(bias, act, slope, slopes)
    height, width = checks.expect_depthwise(x, weight, one, stride)
    n, c, *sides = x.shape
    d = weight.shape[-1]
    out = launch.new_map(x, c, sides=(height, width))
    tile, splits, per_split = tiles.strips("stencil", out, c, d * d)
    found = launch.empty((n, c) if squeeze else (0,), x.dtype, x.device)
    sums = OverSplits(found if squeeze else None, splits, 1.0 / (height * width))
    arguments = {
        "x": x, **launch.strides("x", x), "weight": by_taps(weight), **one.arguments("one"), "out": out,
        **launch.strides("out", out), **sums.arguments, "N": n, "IN_H": sides[0], "IN_W": sides[1], "H": height,
        "W": width, "C": c, "D": d, "STRIDE": stride, "WIDE": launch.is_wide(x, out),
        "UNIT": launch.unit(x, out, counts=(c,)), **tile.strip(splits, per_split),
    }  # fmt: skip
    with launch.on_device_of(x):
        grid = (n * splits * launch.cdiv(c, tile.channels),)
        launch.run(depthwise_kernel, grid, arguments, tile.warps, tile.stages)
    sums.join()
    return out, found


@taped
def depthwise(x, weight, bias, stride):
    return layer(x, weight, bias, None, stride, NONE, 0.0, False)[0]


@triton.constexpr_function
def tap_of(phase, before, STRIDE, D):
    """The tap of a D x D kernel by which the result ``before`` squares of STRIDE pixels further reads a square's pixel
    ``phase``, in rows or in columns; -1 where it does not."""
    tap = phase + D // 2 - STRIDE * before
    return tap if 0 <= tap < D else -1


@triton.jit
def depthwise_input_gradient(
    grad, grad_n, grad_c, grad_h, grad_w, weight, to, to_n, to_c, to_h, to_w, IN_H, IN_W, OUT_H, OUT_W, H, W, C, splits,
    per_split, D: tl.constexpr, STRIDE: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr, BW: tl.constexpr,
    BM: tl.constexpr,
):  # fmt: skip
    """Gradient of the input (IN_H x IN_W) into ``to``. Grid: see ``strip_of``; strips are of squares of STRIDE x STRIDE
    input pixels (H x W), each of which has taps of its own; blocks are of C."""
    C = whole(C, UNIT)
    grad_n, grad_h, grad_w = whole_strides(grad_n, grad_h, grad_w, UNIT)
    to_n, to_h, to_w = whole_strides(to_n, to_h, to_w, UNIT)
    image, split, group, columns, channels, wanted, top, bottom = strip_of(C, H, W, splits, per_split, BW, BM, WIDE)
    grad += image * grad_n
    to += image * to_n
    held = weights_of(weight, channels, C, wanted, D)
    # Results that a square has to do with: from BEFORE before it to AFTER after it, in rows and in columns.
    BEFORE: tl.constexpr = D // 2 // STRIDE
    AFTER: tl.constexpr = (STRIDE - 1 + D // 2) // STRIDE
    for row in range(top, bottom):
        sums = (tl.zeros((BW, BM), tl.float32),) * (STRIDE * STRIDE)
        for e in tl.static_range(-BEFORE, AFTER + 1):
            for f in tl.static_range(-BEFORE, AFTER + 1):
                above, left = row + e, columns + f
                there = (above >= 0) & (above < OUT_H) & (left >= 0) & (left < OUT_W)
                at = above * grad_h + left[:, None] * grad_w + channels[None, :] * grad_c
                g = tl.load(grad + at, mask=there[:, None] & wanted[None, :], other=0.0).to(tl.float32)
                for p in tl.static_range(STRIDE * STRIDE):
                    if tap_of(p // STRIDE, e, STRIDE, D) >= 0 and tap_of(p % STRIDE, f, STRIDE, D) >= 0:
                        by = held[tap_of(p // STRIDE, e, STRIDE, D) * D + tap_of(p % STRIDE, f, STRIDE, D)]
                        sums = sums[:p] + (sums[p] + g * by[None, :],) + sums[p + 1 :]
        for p in tl.static_range(STRIDE * STRIDE):
            below, across = row * STRIDE + p // STRIDE, columns * STRIDE + p % STRIDE
            mask = ((across < IN_W) & (below < IN_H))[:, None] & wanted[None, :]
            at = below * to_h + across[:, None] * to_w + channels[None, :] * to_c
            tl.store(to + at, sums[p].to(to.dtype.element_ty), mask=mask)


@triton.jit
def depthwise_weight_gradient(
    x, x_n, x_c, x_h, x_w, grad, grad_n, grad_c, grad_h, grad_w, weights, biases, IN_H, IN_W, H, W, C, splits,
    per_split, D: tl.constexpr, STRIDE: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr, BW: tl.constexpr,
    BM: tl.constexpr,
):  # fmt: skip
    """Groups' sums over the results' pixels (H x W), of the weight (groups x D x D x C) and of the bias (groups x C):
    each may be None. Grid: see ``strip_of``; blocks are of C."""
    C = whole(C, UNIT)
    x_n, x_h, x_w = whole_strides(x_n, x_h, x_w, UNIT)
    grad_n, grad_h, grad_w = whole_strides(grad_n, grad_h, grad_w, UNIT)
    image, split, group, columns, channels, wanted, top, bottom = strip_of(C, H, W, splits, per_split, BW, BM, WIDE)
    x += image * x_n
    grad += image * grad_n
    mask = (columns < W)[:, None] & wanted[None, :]
    nothing = tl.zeros((BW, BM), tl.float32)
    sums, alone = (nothing,) * (D * D), nothing
    for row in range(top, bottom):
        at = row * grad_h + columns[:, None] * grad_w + channels[None, :] * grad_c
        g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
        if biases is not None:
            alone += g
        if weights is not None:
            for k in tl.static_range(D * D):
                below = row * STRIDE + (k // D - D // 2)
                # Outside of the map nothing is added, whatever the gradient is.
                seen = mask & near(below, columns * STRIDE, k % D, IN_H, IN_W, wanted, D)
                place = (columns * STRIDE + (k % D - D // 2))[:, None] * x_w + channels[None, :] * x_c
                v = tl.load(x + below * x_h + place, mask=seen, other=0.0).to(tl.float32)
                sums = sums[:k] + (sums[k] + v * tl.where(seen, g, 0.0),) + sums[k + 1 :]
    if weights is not None:
        to = weights + group.to(tl.int64) * (D * D) * C + channels
        for k in tl.static_range(D * D):
            tl.store(to + k * C, tl.sum(sums[k], axis=0), mask=wanted)
    if biases is not None:
        tl.store(biases + group.to(tl.int64) * C + channels, tl.sum(alone, axis=0), mask=wanted)


@taped
def depthwise_backward(grad_out, x, weight, bias, stride, input_wanted, weight_wanted):
    """Gradients of x, weight and bias: empty where they are not wanted, or there is no bias."""
    if stride > MOST_STRIDE:
        return in_pytorch(grad_out, x, weight, bias, stride, input_wanted, weight_wanted)
    height, width = checks.expect_depthwise(x, weight, Half(bias), stride)
    n, c, *sides = x.shape
    d = weight.shape[-1]
    checks.expect("grad_out", grad_out, (n, c, height, width), x)
    common = {
        "grad": grad_out, **launch.strides("grad", grad_out), "IN_H": sides[0], "IN_W": sides[1], "C": c, "D": d,
        "STRIDE": stride,
    }  # fmt: skip
    grad_x = launch.new_map(x, c) if input_wanted else launch.empty((0,), x.dtype, x.device)
    if input_wanted:
        squares = [launch.cdiv(side, stride) for side in sides]
        tile, splits, per_split = tiles.strips("stencil_gradient", grad_x, c, d * d, squares)
        arguments = common | {
            "weight": by_taps(weight), "to": grad_x, **launch.strides("to", grad_x), "OUT_H": height, "OUT_W": width,
            "H": squares[0], "W": squares[1], "WIDE": launch.is_wide(grad_out, grad_x),
            "UNIT": launch.unit(grad_out, grad_x, counts=(c,)), **tile.strip(splits, per_split),
        }  # fmt: skip
        with launch.on_device_of(x):
            grid = (n * splits * launch.cdiv(c, tile.channels),)
            launch.run(depthwise_input_gradient, grid, arguments, tile.warps, tile.stages)
    found = [launch.empty((0,), x.dtype, x.device) for _ in range(2)]
    if weight_wanted or bias is not None:
        tile, splits, per_split = tiles.strips("stencil_gradient", grad_out, c, d * d)
        rows = (d * d if weight_wanted else 0, 0 if bias is None else 1)
        partials = [launch.empty((n * splits, k, c), torch.float32, x.device) if k else None for k in rows]
        arguments = common | {
            "x": x, **launch.strides("x", x), "weights": partials[0], "biases": partials[1], "H": height, "W": width,
            "WIDE": launch.is_wide(grad_out, x), "UNIT": launch.unit(grad_out, x, counts=(c,)),
            **tile.strip(splits, per_split),
        }  # fmt: skip
        with launch.on_device_of(x):
            grid = (n * splits * launch.cdiv(c, tile.channels),)
            launch.run(depthwise_weight_gradient, grid, arguments, tile.warps, tile.stages)
        for i, (parameter, sums) in enumerate(zip((weight, bias), partials)):
            if sums is not None:
                to = launch.empty(tuple(parameter.shape), parameter.dtype, x.device)
                found[i] = total(sums, to, steps=(1, rows[i]))
    return grad_x, *found
