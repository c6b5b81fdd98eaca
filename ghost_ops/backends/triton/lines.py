"""A depthwise convolution along rows or columns, in training through the BatchNorm before it; the step of programs."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ... import activations as plain
from . import checks, launch, tiles
from .activation import activate, affine, normalized
from .epilogue import NO_EPILOGUE, Epilogue
from .jit import kernel
from .joins import JOINED, NO_STATISTICS, Joins, join_statistics_last
from .launch_cache import cached_launches
from .maps import (
    as_inputs,
    assume_multiple,
    assume_multiple_strides,
    has_sums,
    joined_block,
    moments_of_lanes,
    near,
    read_row,
    store_partial,
    tile_coords,
)
from .norm import BatchNorm, NormVectors
from .taps import tap_arguments

NONE = tl.constexpr(plain.NONE)
FIELDS = ("gamma", "beta", "mean", "var", "eps")  # of a BatchNorm, as kernels here take it


class Line(NamedTuple):
    """A depthwise convolution along an axis, and what is around it.

    Attributes:
        weight: C x 1 x 1 x K with K odd, along columns too.
        vertical: whether it is along columns.
        before: the BatchNorm that its input goes through, if any.
        after: the bias or BatchNorm and the activation that follow it; the kernels here take none with slopes.
    """

    weight: torch.Tensor
    vertical: bool
    before: Epilogue = NO_EPILOGUE
    after: Epilogue = NO_EPILOGUE

    @property
    def taps(self) -> int:
        return self.weight.shape[3]


@triton.jit
def load_line(weight, weight_c, weight_tap, channels, wanted, K: tl.constexpr):
    """The taps of a line in registers: K of [BM]; see ``maps.load_taps``."""
    found = ()
    for k in tl.static_range(K):
        at = weight + (channels * weight_c + k * weight_tap)
        found = found + (tl.load(at, mask=wanted, other=0.0).to(tl.float32),)
    return found


@kernel
def line_kernel(
    source, source_n, source_c, source_h, source_w, before_gamma, before_beta, before_mean, before_var, before_eps,
    weight, weight_c, weight_tap, after_bias, after_gamma, after_beta, after_mean, after_var, after_eps,
    out, out_n, out_c, out_h, out_w, partials, join_counters, join_count, join_gamma, join_beta, join_eps, join_bias,
    join_running_mean, join_running_var, join_batches, join_momentum, join_mean_out, join_var_out, join_scale_out,
    join_shift_out, H, W, C, splits, per_split, vectors, AFTER_ACT: tl.constexpr, ACROSS: tl.constexpr,
    ALONG: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr,
    DOUBLINGS: tl.constexpr,
):  # fmt: skip
    """Grid: see ``tile_coords``; blocks are of C. ACROSS, ALONG: columns and rows of the convolution's kernel, of which
    one is 1. ``out`` and ``partials``, [groups, 3, C], the statistics of the convolution's result: either may be None.
    ``join_``: see ``join_statistics_last``."""
    C = assume_multiple(C, UNIT)
    source_n, source_h, source_w = assume_multiple_strides(source_n, source_h, source_w, UNIT)
    out_n, out_h, out_w = assume_multiple_strides(out_n, out_h, out_w, UNIT)
    # columns: [BW]; channels, wanted: [BM]
    image, split, group, columns, channels, wanted, top, bottom = tile_coords(
        C, H, W, splits, per_split, BW, BM, WIDE, vectors
    )
    source += image * source_n
    if out is not None:
        out += image * out_n
    # center, scale, shift: [BM], and the same of what follows
    center, scale, shift = affine(
        None, before_gamma, before_beta, before_mean, before_var, before_eps, channels, wanted
    )  # fmt: skip
    after_center, after_scale, after_shift = affine(
        after_bias, after_gamma, after_beta, after_mean, after_var, after_eps, channels, wanted
    )
    taps = load_line(weight, weight_c, weight_tap, channels, wanted, ALONG * ACROSS)  # ALONG * ACROSS of [BM]
    mask = (columns < W)[:, None] & wanted  # [BW, BM]
    zeros = tl.zeros((BW, BM), tl.float32)
    # Along rows a lane reads the same columns in all of them: what is outside of the map is in its taps, and the
    # BatchNorm's factor too.
    fixed, lane_taps = zeros, ()  # [BW, BM], and ACROSS of them
    if ALONG == 1:
        for j in tl.static_range(ACROSS):
            beside = near(0, columns, j, 1, W, wanted, ACROSS)
            fixed += tl.where(beside, taps[j] * shift, 0.0)
            lane_taps = lane_taps + (tl.where(beside, taps[j] * scale, 0.0),)
    acc_next = (zeros,) * (ALONG - 1)  # partial sums of the next ALONG - 1 results
    first, second, origin = zeros, zeros, zeros
    last = tl.minimum(bottom + ALONG // 2, H)
    # ahead: ACROSS of [BW, BM]
    ahead = read_row(
        source, top - ALONG // 2, columns, channels, last, W, source_c, source_h, source_w, wanted, ACROSS
    )  # fmt: skip
    for below in range(top - ALONG // 2, bottom + ALONG // 2):
        seen = ahead  # while this row is used, the next one is being loaded
        ahead = read_row(source, below + 1, columns, channels, last, W, source_c, source_h, source_w, wanted, ACROSS)
        if ALONG == 1:
            v = fixed  # [BW, BM]
            for j in tl.static_range(ACROSS):
                v += (seen[j].to(tl.float32) - center) * lane_taps[j]
        else:
            # inputs: one of [BW, BM]
            inputs = as_inputs(
                seen, below, columns, H, W, wanted, center, scale, shift, 0.0, NONE, before_mean is not None, ACROSS
            )  # fmt: skip
            acc = acc_next + (zeros,)  # ALONG of [BW, BM]
            for i in tl.static_range(ALONG):
                acc = acc[:i] + (acc[i] + inputs[0] * taps[ALONG - 1 - i],) + acc[i + 1 :]
            v, acc_next = acc[0], acc[1:]  # [BW, BM], and ALONG - 1 of them
        row = below - ALONG // 2
        if row >= top:
            if partials is not None:
                if row == top:
                    origin = v  # each lane's own first value
                first += v - origin
                second += (v - origin) * (v - origin)
            if out is not None:
                v = normalized(v, after_center, after_scale, after_shift, after_mean is not None)
                at = row * out_h + columns[:, None] * out_w + channels * out_c
                tl.store(out + at, activate(v, AFTER_ACT, 0.0).to(out.dtype.element_ty), mask=mask)
    if partials is not None:
        # count, mean, m2: [BM]
        count, mean, m2 = moments_of_lanes(mask, first, second, origin, bottom - top, vectors, DOUBLINGS)
        store_partial(partials, group, channels, C, has_sums(wanted, vectors, BW), count, mean, m2)
        blocks, block, begin, width = joined_block(C, vectors, BM)
        join_statistics_last(
            partials, join_counters, group, tl.num_programs(0) // blocks, block, begin, width, 1, 0, C, join_count,
            join_gamma, join_beta, join_eps, join_bias, join_running_mean, join_running_var, join_batches,
            join_momentum, join_mean_out, join_var_out, join_scale_out, join_shift_out,
            BM if vectors is None else JOINED, 1024 if vectors is None else 256,
        )  # fmt: skip


def norm_values(name: str, epilogue: Epilogue) -> dict:
    """The BatchNorm of an epilogue as arguments of a kernel."""
    arguments = epilogue.arguments(name)
    return {f"{name}_{field}": arguments[f"{name}_{field}"] for field in FIELDS}


def convolve_line(
    source: torch.Tensor, line: Line, *, to: torch.Tensor | None = None, joins: Joins | None = None,
    norm: BatchNorm | None = None, vectors: NormVectors | None = None,
) -> NormVectors | None:  # fmt: skip
    """The line's result on ``source``, with what follows it, into ``to``, if that is given.

    Args:
        norm: the BatchNorm after the convolution, over the statistics of its unrounded results; its vectors are
            returned.
        joins: those of the statistics; ``vectors``: where the vectors are written, by default new ones.
    """
    n, c, height, width = source.shape
    unit = launch.unit(source, to, counts=(c,))
    strips = tiles.strips("stencil", source, c, line.taps, unit=unit)
    join = None
    if norm is not None:
        join = joins.statistics(norm, n * height * width, n * strips.splits, c, strips.blocks(c), vectors)
    arguments = {
        **launch.maps(source=source, out=to), **norm_values("before", line.before), **norm_values("after", line.after),
        **tap_arguments("weight", line.weight), "after_bias": launch.vector(line.after.bias),
        **(NO_STATISTICS if join is None else join.arguments),
        "AFTER_ACT": line.after.act, "ACROSS": 1 if line.vertical else line.taps,
        "ALONG": line.taps if line.vertical else 1, "H": height, "W": width, "C": c,
        "WIDE": launch.is_wide(source, to), "UNIT": unit,
    }  # fmt: skip
    strips.start(line_kernel, source, c, arguments)
    return join and join.finish()


@cached_launches
def line_with_epilogue(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, vertical: bool, act: int
) -> torch.Tensor:  # fmt: skip
    """act(conv(x) + bias) in x's memory format; weight C x 1 x 1 x K, along columns too, padded by K // 2."""
    checks.expect("weight", weight, (x.shape[1], 1, 1, weight.shape[-1]), x)
    checks.expect("bias", bias, (x.shape[1],), x)
    out = launch.new_map(x, x.shape[1])
    convolve_line(x, Line(weight, vertical, after=Epilogue(bias, act)), to=out)
    return out
