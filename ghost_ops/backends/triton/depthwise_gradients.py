"""Gradients of a depthwise convolution: of its input and of its weight in one pass, through a BatchNorm over the batch
and an activation after it, if there are any."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import launch, tiles
from .activation import affine, load_coefficients, slopes
from .epilogue import NO_EPILOGUE, Epilogue
from .maps import assume_multiple, assume_multiple_strides, load_taps, tile_coords
from .normalise import norm_gradient, read_result, result_gradient
from .sums import Totals
from .taps import tap_arguments

MOST_STRIDE = 3  # a thread holds STRIDE x STRIDE pixels of the input and their gradients
MOST_HELD = 9  # gradients of results that a thread holds from row to row


@triton.constexpr_function
def tap_of(p, e, f, STRIDE, D):
    """The tap by which the result e squares of STRIDE x STRIDE pixels below and f beside a square reads its pixel p, by
    its number in a D x D kernel; -1 where it does not."""
    i, j = p // STRIDE + D // 2 - STRIDE * e, p % STRIDE + D // 2 - STRIDE * f
    return i * D + j if 0 <= i < D and 0 <= j < D else -1


@triton.jit
def added(sums, place: tl.constexpr, v):
    """The tuple with v added at a place."""
    return sums[:place] + (sums[place] + v,) + sums[place + 1 :]


@triton.jit
def read_square(x, row, columns, channels, H, W, x_c, x_h, x_w, wanted, STRIDE: tl.constexpr):
    """A row of squares of STRIDE x STRIDE pixels, pixel by pixel: STRIDE * STRIDE of [BW, BM], 0 outside of the map.
    ``columns``: [BW], of squares; ``channels``, ``wanted``: [BM]."""
    found = ()
    for p in tl.static_range(STRIDE * STRIDE):
        below, across = row * STRIDE + p // STRIDE, columns * STRIDE + p % STRIDE  # a scalar, and [BW]
        mask = ((across < W) & (below < H))[:, None] & wanted  # [BW, BM]
        found = found + (tl.load(x + below * x_h + across[:, None] * x_w + channels * x_c, mask=mask, other=0.0),)
    return found


@triton.jit
def read_results(
    grad, grad_c, grad_h, grad_w, z, z_c, z_h, z_w, row, columns, channels, H, W, wanted, BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
):  # fmt: skip
    """``read_result`` from BEFORE columns before to AFTER columns after: two of [BW, BM] for each."""
    found = ()
    for f in tl.static_range(-BEFORE, AFTER + 1):
        found = found + read_result(
            grad, grad_c, grad_h, grad_w, z, z_c, z_h, z_w, row, columns + f, channels, H, W, wanted
        )  # fmt: skip
    return found


@triton.jit
def depthwise_bwd_kernel(
    grad, grad_n, grad_c, grad_h, grad_w, z, z_n, z_c, z_h, z_w,
    norm_bias, norm_gamma, norm_beta, norm_mean, norm_var, norm_eps, norm_slopes, norm_slopes_stride, norm_slope,
    coefficients, x, x_n, x_c, x_h, x_w, weight, weight_c, weight_tap, to, to_n, to_c, to_h, to_w,
    residual, residual_n, residual_c, residual_h, residual_w, weights, biases, IN_H, IN_W, OUT_H, OUT_W, H, W, C,
    splits, per_split, NORM_ACT: tl.constexpr, PARTIAL: tl.constexpr, HELD: tl.constexpr, D: tl.constexpr,
    STRIDE: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Gradient of the input (IN_H x IN_W), plus ``residual``, if any, into ``to``; groups' sums over the results
    (OUT_H x OUT_W) of the weight, [groups, D, D, C], and of the bias, [groups, C]. Each of the three may be None.

    Grid: see ``tile_coords``; strips are of squares of STRIDE x STRIDE input pixels (H x W), blocks are of C. A square
    and the results that read it meet here once: in the square's gradient, and in that of the tap between them. HELD:
    the results' gradients stay in registers from row to row; without it z is None. PARTIAL: the last squares have rows
    outside of the map.
    """
    C = assume_multiple(C, UNIT)
    grad_n, grad_h, grad_w = assume_multiple_strides(grad_n, grad_h, grad_w, UNIT)
    z_n, z_h, z_w = assume_multiple_strides(z_n, z_h, z_w, UNIT)
    x_n, x_h, x_w = assume_multiple_strides(x_n, x_h, x_w, UNIT)
    to_n, to_h, to_w = assume_multiple_strides(to_n, to_h, to_w, UNIT)
    residual_n, residual_h, residual_w = assume_multiple_strides(residual_n, residual_h, residual_w, UNIT)
    # columns: [BW]; channels, wanted: [BM]
    image, split, group, columns, channels, wanted, top, bottom = tile_coords(C, H, W, splits, per_split, BW, BM, WIDE)
    grad += image * grad_n
    if z is not None:
        z += image * z_n
    if weights is not None:
        x += image * x_n
    if to is not None:
        to += image * to_n
    if residual is not None:
        residual += image * residual_n
    vectors = affine(norm_bias, norm_gamma, norm_beta, norm_mean, norm_var, norm_eps, channels, wanted)
    vectors = vectors + (slopes(norm_slopes, norm_slopes_stride, channels, wanted, norm_slope, NORM_ACT),)
    vectors = vectors + load_coefficients(coefficients, channels, C, wanted)
    NORM: tl.constexpr = z is not None
    taps = ()
    if to is not None:
        taps = load_taps(weight, weight_c, weight_tap, channels, wanted, D)  # D * D of [BM]
    zeros = tl.zeros((BW, BM), tl.float32)
    # A square is read by the results from BEFORE before it to AFTER after it, in rows and in columns.
    BEFORE: tl.constexpr = D // 2 // STRIDE
    AFTER: tl.constexpr = (STRIDE - 1 + D // 2) // STRIDE
    SIDE: tl.constexpr = BEFORE + AFTER + 1
    held, ahead, pixels_ahead = (), (), ()  # (SIDE - 1) * SIDE, SIDE * 2, and STRIDE * STRIDE of [BW, BM]
    if HELD:
        for e in tl.static_range(SIDE - 1):
            row = top + (e - BEFORE)
            seen = read_results(
                grad, grad_c, grad_h, grad_w, z, z_c, z_h, z_w, row, columns, channels, OUT_H, OUT_W, wanted, BEFORE,
                AFTER,
            )  # fmt: skip
            for f in tl.static_range(SIDE):
                g = result_gradient(
                    seen[2 * f], seen[2 * f + 1], row, columns + (f - BEFORE), OUT_H, OUT_W, wanted, vectors, NORM_ACT,
                    NORM,
                )  # fmt: skip
                held = held + (g,)
        ahead = read_results(
            grad, grad_c, grad_h, grad_w, z, z_c, z_h, z_w, top + AFTER, columns, channels, OUT_H, OUT_W, wanted,
            BEFORE, AFTER,
        )  # fmt: skip
    if weights is not None:
        pixels_ahead = read_square(x, top, columns, channels, IN_H, IN_W, x_c, x_h, x_w, wanted, STRIDE)
    sums, bias_sum = (zeros,) * (D * D), zeros  # D * D of [BW, BM], and one
    last = tl.minimum(bottom + AFTER, OUT_H)
    last_pixel = tl.minimum(bottom * STRIDE, IN_H)
    for row in range(top, bottom):
        # While this row is used, the next one is being loaded.
        pixels, seen = pixels_ahead, ahead
        if weights is not None:
            pixels_ahead = read_square(x, row + 1, columns, channels, last_pixel, IN_W, x_c, x_h, x_w, wanted, STRIDE)
        if HELD:
            ahead = read_results(
                grad, grad_c, grad_h, grad_w, z, z_c, z_h, z_w, row + (AFTER + 1), columns, channels, last, OUT_W,
                wanted, BEFORE, AFTER,
            )  # fmt: skip
            for f in tl.static_range(SIDE):
                g = result_gradient(
                    seen[2 * f], seen[2 * f + 1], row + AFTER, columns + (f - BEFORE), OUT_H, OUT_W, wanted, vectors,
                    NORM_ACT, NORM,
                )  # fmt: skip
                held = held + (g,)
        acc = (zeros,) * (STRIDE * STRIDE)  # STRIDE * STRIDE of [BW, BM]
        for e in tl.static_range(-BEFORE, AFTER + 1):
            within = (row + e >= 0) & (row + e < OUT_H)
            for f in tl.static_range(-BEFORE, AFTER + 1):
                if HELD:
                    g = held[(e + BEFORE) * SIDE + (f + BEFORE)]  # [BW, BM]
                else:
                    g, _ = read_result(
                        grad, grad_c, grad_h, grad_w, None, 0, 0, 0, row + e, columns + f, channels, OUT_H, OUT_W,
                        wanted,
                    )  # fmt: skip
                    g = g.to(tl.float32)
                if (e == 0) and (f == 0) and (biases is not None):
                    bias_sum += g
                for p in tl.static_range(STRIDE * STRIDE):
                    if tap_of(p, e, f, STRIDE, D) >= 0:
                        if to is not None:
                            acc = added(acc, p, g * taps[tap_of(p, e, f, STRIDE, D)])
                        if weights is not None:
                            # Outside of the map nothing is added, whatever the factor within it is.
                            v = pixels[p].to(tl.float32)
                            if e != 0:
                                v = tl.where(within, v, 0.0)
                            if PARTIAL and p >= STRIDE:
                                v *= tl.where(row * STRIDE + p // STRIDE < IN_H, g, 0.0)
                            else:
                                v *= g
                            sums = added(sums, tap_of(p, e, f, STRIDE, D), v)
        if HELD:
            held = held[SIDE:]
        if to is not None:
            for p in tl.static_range(STRIDE * STRIDE):
                below, across = row * STRIDE + p // STRIDE, columns * STRIDE + p % STRIDE  # a scalar, and [BW]
                mask = ((across < IN_W) & (below < IN_H))[:, None] & wanted  # [BW, BM]
                v = acc[p]
                if residual is not None:
                    at = below * residual_h + across[:, None] * residual_w + channels * residual_c
                    v += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
                at = below * to_h + across[:, None] * to_w + channels * to_c
                tl.store(to + at, v.to(to.dtype.element_ty), mask=mask)
    if weights is not None:
        to_weights = weights + group.to(tl.int64) * (D * D) * C + channels
        for e in tl.static_range(-BEFORE, AFTER + 1):
            for f in tl.static_range(-BEFORE, AFTER + 1):
                for p in tl.static_range(STRIDE * STRIDE):
                    if tap_of(p, e, f, STRIDE, D) >= 0:
                        inside = (columns + f >= 0) & (columns + f < OUT_W) & (columns * STRIDE + p % STRIDE < IN_W)
                        found = tl.sum(tl.where(inside[:, None], sums[tap_of(p, e, f, STRIDE, D)], 0.0), axis=0)  # [BM]
                        tl.store(to_weights + tap_of(p, e, f, STRIDE, D) * C, found, mask=wanted)
    if biases is not None:
        tl.store(biases + group.to(tl.int64) * C + channels, tl.sum(bias_sum, axis=0), mask=wanted)  # [BM]


def depthwise_gradients(
    grad_out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: int,
    *,
    z: torch.Tensor | None = None,
    norm: Epilogue = NO_EPILOGUE,
    coefficients: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    input_wanted: bool = True,
    weight_wanted: bool = True,
    totals: Totals | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Gradients of x, of the weight and of ``bias``, each None where it is not wanted or not there.

    Args:
        grad_out: the gradient of the convolution's result, or, with z, of what the BatchNorm and the activation
            ``norm`` make of it; of any strides, also expanded.
        weight: C x 1 x K x K, with K odd; the convolution is padded by K // 2.
        stride: at most ``MOST_STRIDE``.
        z: the convolution's result; ``coefficients`` are those of the BatchNorm's backward (``load_coefficients``).
        residual: a map of x's shape, which is added to its gradient.
        totals: where the gradients of weight and bias are joined, later; by default they are joined here.
    """
    c, d = x.shape[1], weight.shape[-1]
    grad_x = launch.new_map(x, c) if input_wanted else None
    side = d // 2 // stride + (stride - 1 + d // 2) // stride + 1
    held = side * side <= MOST_HELD
    if z is not None and not held:  # a gradient that is read many times
        grad_out, z, norm, coefficients = norm_gradient(grad_out, z, norm, coefficients), None, NO_EPILOGUE, None
    maps = {"grad": grad_out, "z": z, "x": x, "to": grad_x, "residual": residual}
    squares = [launch.cdiv(size, stride) for size in x.shape[2:]]
    strips = tiles.strips("stencil_gradient", x, c, 2 * d * d, squares)
    arguments = {
        **launch.maps(**maps), **norm.arguments("norm"), "coefficients": coefficients,
        **tap_arguments("weight", weight), "weights": None, "biases": None, "IN_H": x.shape[2], "IN_W": x.shape[3],
        "OUT_H": grad_out.shape[2], "OUT_W": grad_out.shape[3], "H": squares[0], "W": squares[1], "C": c,
        "PARTIAL": x.shape[2] % stride != 0, "HELD": held, "D": d, "STRIDE": stride,
        "WIDE": launch.is_wide(*maps.values()), "UNIT": launch.unit(*maps.values(), counts=(c,)),
    }  # fmt: skip
    rows = (d * d if weight_wanted else 0, 0 if bias is None else 1)
    if input_wanted and not held and any(rows):  # the taps and the sums of a large kernel do not fit into registers
        strips.start(depthwise_bwd_kernel, x, c, arguments)
        arguments["to"] = arguments["residual"] = None
    partials = [launch.empty((x.shape[0] * strips.splits, k, c), torch.float32, x.device) if k else None for k in rows]
    if arguments["to"] is not None or any(rows):
        strips.start(depthwise_bwd_kernel, x, c, arguments | {"weights": partials[0], "biases": partials[1]})
    own, found = totals or Totals(), []
    for t, sums, row in zip((weight, bias), partials, rows):
        found.append(None if sums is None else launch.empty(tuple(t.shape), t.dtype, x.device))
        if sums is not None:
            own.add(sums, found[-1], steps=(1, row))
    if totals is None:
        own.start()
    return grad_x, *found
