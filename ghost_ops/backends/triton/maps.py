"""What the kernels do with maps: places of pixels, products over channels, depthwise sums, statistics.

Two ways to go through a map. *Runs*: pixels are numbered through all images, a tile is BP of them x BM channels; for
products. *Windows*: a tile is BR rows x BW columns of one image x BM channels, so that a neighbour's place takes no
division; for what is depthwise.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .activation import activate


@triton.jit
def whole(v, UNIT: tl.constexpr):
    """v, a multiple of UNIT, so that the compiler sees it: then it reads and writes several channels at once."""
    if UNIT > 1:
        v = v // UNIT * UNIT
    return v


@triton.jit
def whole_strides(map_n, map_h, map_w, UNIT: tl.constexpr):
    return whole(map_n, UNIT), whole(map_h, UNIT), whole(map_w, UNIT)


@triton.jit
def block_of(block, B: tl.constexpr, WIDE: tl.constexpr):
    """The channels of a block; 64 bits where their offsets in a map may need them."""
    channels = block * B + tl.arange(0, B)
    if WIDE:
        channels = channels.to(tl.int64)
    return channels


@triton.jit
def run_of(group, per_group, t, BP: tl.constexpr, WIDE: tl.constexpr):
    """Pixels of a group's run t, numbered through all images."""
    if WIDE:
        group = group.to(tl.int64)
    return (group * per_group + t) * BP + tl.arange(0, BP)


@triton.jit
def in_batch(pixels, H, W, map_n, map_h, map_w, FLAT: tl.constexpr, WIDE: tl.constexpr):
    """Offsets of pixels that are numbered through all images; FLAT: see ``launch.is_flat``."""
    if FLAT:
        place = pixels * map_w
    else:
        image = pixels // (H * W)
        rest = pixels - image * (H * W)
        row = rest // W
        column = rest - row * W
        if WIDE:
            image, row, column = image.to(tl.int64), row.to(tl.int64), column.to(tl.int64)
        place = image * map_n + row * map_h + column * map_w
    return place


@triton.jit
def share_of(
    CHANNELS, H, W, splits, per_split, BR: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr, WIDE: tl.constexpr
):
    """What a program over windows works on: image, split and both as one group, channels and which of them there are,
    the first window and the one past the last. Grid: images x splits of their windows x blocks of CHANNELS."""
    blocks = tl.cdiv(CHANNELS, BM)
    group = tl.program_id(0) // blocks
    split = group % splits
    channels = block_of(tl.program_id(0) % blocks, BM, WIDE)
    begin = split * per_split
    end = tl.minimum(begin + per_split, tl.cdiv(H, BR) * tl.cdiv(W, BW))
    return (group // splits).to(tl.int64), split, group, channels, channels < CHANNELS, begin, end


@triton.jit
def window_of(t, H, W, BR: tl.constexpr, BW: tl.constexpr, WIDE: tl.constexpr):
    """Rows (BR x 1 x 1) and columns (1 x BW x 1) of an image's window t, which of its pixels there are, how many."""
    across = tl.cdiv(W, BW)
    top, left = t // across * BR, t % across * BW
    rows = (top + tl.arange(0, BR))[:, None, None]
    columns = (left + tl.arange(0, BW))[None, :, None]
    count = tl.minimum(H - top, BR) * tl.minimum(W - left, BW)
    valid = (rows < H) & (columns < W)
    if WIDE:
        rows, columns = rows.to(tl.int64), columns.to(tl.int64)
    return rows, columns, valid, count


@triton.jit
def across_pixels(v, BR: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr):
    """Sums of a window (BR x BW x BM) over its pixels."""
    return tl.sum(tl.reshape(v, (BR * BW, BM)), axis=0)


@triton.jit
def product_rows(x, places, valid, channel_stride, scale, images, C, k, BK: tl.constexpr):
    channels = k + tl.arange(0, BK)
    mask = valid[:, None] & (channels < C)[None, :]
    a = tl.load(x + (places[:, None] + channels[None, :].to(places.dtype) * channel_stride), mask=mask, other=0.0)
    if scale is not None:
        by = tl.load(scale + (images[:, None] * C + channels[None, :]), mask=mask, other=0.0).to(tl.float32)
        a = (a.to(tl.float32) * by).to(x.dtype.element_ty)
    return a


@triton.jit
def product_columns(weight, C, columns, wanted, k, kind: tl.constexpr, BK: tl.constexpr):
    channels = k + tl.arange(0, BK)
    at = weight + (columns[None, :].to(tl.int64) * C + channels[:, None])
    return tl.load(at, mask=wanted[None, :] & (channels < C)[:, None], other=0.0).to(kind)


@triton.jit
def product(
    x, places, valid, channel_stride, scale, images, weight, C, columns, wanted,
    PRECISION: tl.constexpr, ONE_STEP: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """BP pixels x BM columns of a 1x1 convolution, in float32.

    Args:
        x: the map; ``places`` are the pixels' offsets in it, ``valid`` which of them there are.
        scale: images x C, of x's channels, or None; ``images`` are the pixels' (BP).
        weight: columns x C; ``columns`` are those of the tile, ``wanted`` which of them there are.
        ONE_STEP: C is at most BK. Then there is no loop here, so that the compiler overlaps the caller's.
    """
    acc = tl.zeros((BP, BM), tl.float32)
    if ONE_STEP:
        a = product_rows(x, places, valid, channel_stride, scale, images, C, 0, BK)
        b = product_columns(weight, C, columns, wanted, 0, x.dtype.element_ty, BK)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    else:
        for k in range(0, C, BK):
            a = product_rows(x, places, valid, channel_stride, scale, images, C, k, BK)
            b = product_columns(weight, C, columns, wanted, k, x.dtype.element_ty, BK)
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def depthwise(
    y, rows, columns, channels, H, W, map_c, map_h, map_w, weight, made, MADE, wanted, center, scale, shift, slope,
    ACT: tl.constexpr, AFFINE: tl.constexpr, D: tl.constexpr, BR: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """A window of a depthwise convolution padded by D // 2, in float32.

    Args:
        y: the image; ``rows`` and ``columns`` are the window's, ``channels`` (BM) those that are read.
        weight: D x D x MADE, so that a tap's channels are read at once; ``made`` are the window's, ``wanted`` which of
            them there are.
        center, scale, shift, slope: with AFFINE the input is ACT((y - center) * scale + shift), within the map.
    """
    acc = tl.zeros((BR, BW, BM), tl.float32)
    # A row of taps of a 3 x 3 kernel is unrolled: all nine, each with its mask, need more registers than there are.
    ROWS: tl.constexpr = D if D <= 3 else D * D
    COLUMNS: tl.constexpr = D if D <= 3 else 1
    for i in range(ROWS):
        for j in tl.static_range(COLUMNS):
            tap = i * COLUMNS + j
            row, column = rows + (tap // D - D // 2), columns + (tap % D - D // 2)
            inside = (row >= 0) & (row < H) & (column >= 0) & (column < W)
            mask = inside & wanted[None, None, :]
            at = y + ((row * map_h + column * map_w) + channels[None, None, :] * map_c)
            v = tl.load(at, mask=mask, other=0.0).to(tl.float32)
            if AFFINE:
                a = (v - center[None, None, :]) * scale[None, None, :] + shift[None, None, :]
                v = tl.where(mask, activate(a, ACT, slope[None, None, :]), 0.0)
            by = tl.load(weight + (tap * MADE + made), mask=wanted, other=0.0).to(tl.float32)
            acc += v * by[None, None, :]
    return acc


@triton.jit
def finish_moments(first, second, origin, count):
    """Mean and sum of squared deviations of ``count`` values, from the sums of their deviations from ``origin`` and of
    the squares of these. Where the origin is one of the values' own means, nothing cancels."""
    size = tl.maximum(count, 1.0)
    left = first / size
    return origin + left, tl.maximum(second - first * left, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def store_partial(partials, group, channels, CHANNELS, wanted, first, second, third):
    """One group's three rows of the partial results, groups x 3 x CHANNELS."""
    at = partials + group.to(tl.int64) * 3 * CHANNELS + channels
    tl.store(at, first, mask=wanted)
    tl.store(at + CHANNELS, second, mask=wanted)
    tl.store(at + 2 * CHANNELS, third, mask=wanted)
