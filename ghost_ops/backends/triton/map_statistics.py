"""Statistics of a map that another library made, for the BatchNorm over the batch that follows it."""

from __future__ import annotations

import torch
import triton.language as tl

from . import launch, tiles
from .jit import kernel
from .joins import JOINED, Joins, join_statistics_last
from .maps import (
    assume_multiple,
    assume_multiple_strides,
    has_sums,
    joined_block,
    moments_of_lanes,
    store_partial,
    tile_coords,
)
from .norm import BatchNorm, NormVectors

ROWS = 4  # rows that a program reads before it computes: more bytes are under way


@kernel
def statistics_kernel(
    z, z_n, z_c, z_h, z_w, partials, join_counters, join_count, join_gamma, join_beta, join_eps, join_bias,
    join_running_mean, join_running_var, join_batches, join_momentum, join_mean_out, join_var_out, join_scale_out,
    join_shift_out, H, W, C, splits, per_split, vectors, ROWS: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr,
    BW: tl.constexpr, BM: tl.constexpr, DOUBLINGS: tl.constexpr,
):  # fmt: skip
    """Grid: see ``tile_coords``; blocks are of C. ``partials``: [groups, 3, C]; ``join_``: see
    ``join_statistics_last``."""
    C = assume_multiple(C, UNIT)
    z_n, z_h, z_w = assume_multiple_strides(z_n, z_h, z_w, UNIT)
    # columns: [BW]; channels, wanted: [BM]
    image, split, group, columns, channels, wanted, top, bottom = tile_coords(
        C, H, W, splits, per_split, BW, BM, WIDE, vectors
    )
    z += image * z_n
    mask = (columns < W)[:, None] & wanted  # [BW, BM]
    place = columns[:, None] * z_w + channels * z_c  # [BW, BM]
    origin = tl.load(z + top * z_h + place, mask=mask, other=0.0).to(tl.float32)  # each lane's own first value
    first = tl.zeros((BW, BM), tl.float32)
    second = tl.zeros((BW, BM), tl.float32)
    for start in range(top, bottom, ROWS):
        rows = ()  # ROWS of [BW, BM]
        for i in tl.static_range(ROWS):
            here = mask & (start + i < bottom)
            rows = rows + (tl.load(z + (start + i) * z_h + place, mask=here, other=0.0),)
        for i in tl.static_range(ROWS):
            apart = tl.where(start + i < bottom, rows[i].to(tl.float32) - origin, 0.0)
            first += apart
            second += apart * apart
    # count, mean, m2: [BM]
    count, mean, m2 = moments_of_lanes(mask, first, second, origin, bottom - top, vectors, DOUBLINGS)
    store_partial(partials, group, channels, C, has_sums(wanted, vectors, BW), count, mean, m2)
    blocks, block, begin, width = joined_block(C, vectors, BM)
    join_statistics_last(
        partials, join_counters, group, tl.num_programs(0) // blocks, block, begin, width, 1, 0, C, join_count,
        join_gamma, join_beta, join_eps, join_bias, join_running_mean, join_running_var, join_batches, join_momentum,
        join_mean_out, join_var_out, join_scale_out, join_shift_out, BM if vectors is None else JOINED,
        1024 if vectors is None else 256,
    )  # fmt: skip


def map_statistics(
    z: torch.Tensor, norm: BatchNorm, joins: Joins, vectors: NormVectors | None = None
) -> NormVectors:  # fmt: skip
    """The vectors of a BatchNorm over the statistics of z.

    Args:
        z: N x C x H x W of any strides.
        vectors: where they are written, by default new ones.
    """
    n, c, height, width = z.shape
    unit = launch.unit(z, counts=(c,))
    strips = tiles.strips("stencil", z, c, unit=unit)
    join = joins.statistics(norm, n * height * width, n * strips.splits, c, strips.blocks(c), vectors)
    arguments = {
        **launch.maps(z=z), **join.arguments, "H": height, "W": width, "C": c, "ROWS": ROWS,
        "WIDE": launch.is_wide(z), "UNIT": unit,
    }  # fmt: skip
    strips.start(statistics_kernel, z, c, arguments)
    return join.finish()
