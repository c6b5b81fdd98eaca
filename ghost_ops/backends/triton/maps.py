"""What the kernels do with maps: places of pixels, products over channels, depthwise sums, statistics of a tile."""

from __future__ import annotations

import triton
import triton.language as tl

from .activation import activate


@triton.jit
def block_of(block, B: tl.constexpr, WIDE: tl.constexpr):
    """The channels of a block; 64 bits where their offsets in a map may need them."""
    channels = block * B + tl.arange(0, B)
    if WIDE:
        channels = channels.to(tl.int64)
    return channels


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
def in_image(pixels, W, map_h, map_w, FLAT: tl.constexpr, WIDE: tl.constexpr):
    """Offsets of an image's pixels, of either sign of FLAT (see ``launch.is_flat``)."""
    if WIDE:
        pixels = pixels.to(tl.int64)
    if FLAT:
        place = pixels * map_w
    else:
        place = (pixels // W) * map_h + (pixels % W) * map_w
    return place


@triton.jit
def numbers(group, per_group, t, BP: tl.constexpr, WIDE: tl.constexpr):
    """Pixels of a group's tile t, numbered through all images."""
    if WIDE:
        group = group.to(tl.int64)
    return (group * per_group + t) * BP + tl.arange(0, BP)


@triton.jit
def in_batch(pixels, H, W, map_n, map_h, map_w, WIDE: tl.constexpr):
    """Offsets of pixels that are numbered through all images."""
    image = pixels // (H * W)
    rest = pixels - image * (H * W)
    row = rest // W
    column = rest - row * W
    if WIDE:
        image, row, column = image.to(tl.int64), row.to(tl.int64), column.to(tl.int64)
    return image * map_n + row * map_h + column * map_w


@triton.jit
def product(
    x, places, valid, channel_stride, scale, weight, C, columns, wanted,
    PRECISION: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """BP pixels x BM columns of a 1x1 convolution, in float32.

    Args:
        x: the map; ``places`` are the pixels' offsets in it, ``valid`` which of them there are.
        scale: of its C channels, or None.
        weight: columns x C; ``columns`` are those of the tile, ``wanted`` which of them there are.
    """
    acc = tl.zeros((BP, BM), tl.float32)
    for k in range(0, C, BK):
        channels = k + tl.arange(0, BK)
        known = channels < C
        a = tl.load(
            x + (places[:, None] + channels[None, :].to(places.dtype) * channel_stride),
            mask=valid[:, None] & known[None, :],
            other=0.0,
        )
        if scale is not None:
            by = tl.load(scale + channels, mask=known, other=0.0).to(tl.float32)
            a = (a.to(tl.float32) * by[None, :]).to(x.dtype.element_ty)
        b = tl.load(
            weight + (columns[None, :].to(tl.int64) * C + channels[:, None]),
            mask=wanted[None, :] & known[:, None],
            other=0.0,
        )
        acc = tl.dot(a, b.to(x.dtype.element_ty), acc, input_precision=PRECISION)
    return acc


@triton.jit
def depthwise(
    y, places, valid, rows, columns, H, W, map_h, map_w, weight, made, wanted, center, scale, shift, slope,
    ACT: tl.constexpr, AFFINE: tl.constexpr, D: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr, CACHE: tl.constexpr,
):  # fmt: skip
    """BP pixels x BM channels of a depthwise convolution padded by D // 2, in float32.

    Args:
        y: pointers of the tile's channels (1 x BM) in the map; ``places`` are the pixels' offsets (BP), at ``rows`` and
            ``columns``, ``valid`` which of them there are.
        weight: made channels x D x D; ``made`` are the tile's, ``wanted`` which of them there are.
        center, scale, shift, slope: with AFFINE the input is ACT((y - center) * scale + shift), within the map.
    """
    acc = tl.zeros((BP, BM), tl.float32)
    # In loops: with all taps unrolled, each with its mask, there would be more under way than there are registers. Of
    # 3 x 3 kernels a row of taps is.
    ROWS: tl.constexpr = D if D <= 3 else D * D
    COLUMNS: tl.constexpr = D if D <= 3 else 1
    for i in range(ROWS):
        for j in tl.static_range(COLUMNS):
            tap = i * COLUMNS + j
            down, right = tap // D - D // 2, tap % D - D // 2
            row, column = rows + down, columns + right
            inside = valid & (row >= 0) & (row < H) & (column >= 0) & (column < W)
            mask = inside[:, None] & wanted[None, :]
            at = y + (places + (down * map_h + right * map_w))[:, None]
            v = tl.load(at, mask=mask, other=0.0, cache_modifier=CACHE).to(tl.float32)
            if AFFINE:
                a = (v - center[None, :]) * scale[None, :] + shift[None, :]
                v = tl.where(mask, activate(a, ACT, slope[None, :]), 0.0)
            by = tl.load(weight + made * (D * D) + tap, mask=wanted, other=0.0).to(tl.float32)
            acc += v * by[None, :]
    return acc


@triton.jit
def merge(count, mean, m2, z, valid):
    """Count, means and sums of squared deviations with those of one more tile z (Chan, Golub and LeVeque).

    The tile's deviations are from its own mean, so that nothing cancels; what rounding left of their sum corrects both.
    """
    fresh = tl.sum(valid.to(tl.float32), axis=0)
    size = tl.maximum(fresh, 1.0)
    tile_mean = tl.sum(tl.where(valid[:, None], z, 0.0), axis=0) / size
    deviation = tl.where(valid[:, None], z - tile_mean[None, :], 0.0)
    left = tl.sum(deviation, axis=0) / size
    total = tl.maximum(count + fresh, 1.0)
    delta = (tile_mean - mean) + left
    m2 += tl.sum(deviation * deviation, axis=0) - fresh * left * left + delta * delta * (count * fresh / total)
    mean += delta * (fresh / total)
    return count + fresh, mean, m2


@triton.jit
def store_partial(partials, group, channels, CHANNELS, wanted, first, second, third):
    """One group's three rows of the partial results, groups x 3 x CHANNELS."""
    at = partials + group.to(tl.int64) * 3 * CHANNELS + channels
    tl.store(at, first, mask=wanted)
    tl.store(at + CHANNELS, second, mask=wanted)
    tl.store(at + 2 * CHANNELS, third, mask=wanted)
