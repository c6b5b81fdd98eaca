"""Functions of kernels for maps: offsets of pixels, products over channels, depthwise sums, statistics.

There are two ways to go through a map. *Runs*, for products: pixels are numbered through all images, and a tile is BP
of them x BM channels. *Strips*, for depthwise convolutions: BW columns of one image x BM channels, row by row from top
to bottom, so that the offset of a neighbour needs no division, and a row is read once for all results that read it. The
tile of a strip may be *flat*: BW vectors of BM channels, one after the other in a row, ``vectors`` of them a column.
Then few lanes are idle where neither columns nor channels are a power of two.

Shapes are in brackets, here and in the kernels: BP pixels of a run, BW columns of a strip, BM channels of a block, BK
channels of one step of a product. What has no shape is a scalar. What is [BM] in a strip, for each of its channels, is
[BW, BM] in a flat tile, and so are sums over pixels, of which the first ``vectors`` lanes count.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .activation import activate, normalized


@triton.jit
def assume_multiple(v, UNIT: tl.constexpr):
    """v, which must be a multiple of UNIT: tells the compiler, which then reads and writes several channels at once."""
    if UNIT > 1:
        v = v // UNIT * UNIT
    return v


@triton.jit
def assume_multiple_strides(map_n, map_h, map_w, UNIT: tl.constexpr):
    return assume_multiple(map_n, UNIT), assume_multiple(map_h, UNIT), assume_multiple(map_w, UNIT)


@triton.jit
def block_of(block, B: tl.constexpr, WIDE: tl.constexpr):
    """The channels of a block, [B]; 64 bits where their offsets in a map may need them."""
    channels = block * B + tl.arange(0, B)
    if WIDE:
        channels = channels.to(tl.int64)
    return channels


@triton.jit
def run_of(group, per_group, t, PIXELS, BP: tl.constexpr):
    """A group's run t of pixels, which are numbered through all images: the first one's number, a scalar of 64 bits,
    the distances from there, and which pixels exist: [BP] both."""
    first = (group.to(tl.int64) * per_group + t) * BP
    lanes = tl.arange(0, BP)
    return first, lanes, lanes < tl.minimum(PIXELS - first, BP).to(tl.int32)


@triton.jit
def run_of_image(image, begin, PIXELS, H, W, BP: tl.constexpr):
    """As ``run_of``: the run that begins at pixel ``begin`` of an image and has none of the next. ``image`` may be past
    the last, where no pixel is."""
    first = image.to(tl.int64) * (H * W) + begin
    lanes = tl.arange(0, BP)
    return first, lanes, (lanes < H * W - begin) & (first < PIXELS)


@triton.jit
def in_batch(first, lanes, H, W, map_n, map_h, map_w, FLAT: tl.constexpr, WIDE: tl.constexpr):
    """Offsets in a map of pixels that are numbered through all images, as a scalar of 64 bits and offsets from there,
    [BP]: those of a FLAT map (see ``launch.is_flat``) are the same for every run, so that a loop computes one number.

    ``first``, ``lanes``: see ``run_of``.
    """
    if FLAT:
        if WIDE:
            lanes = lanes.to(tl.int64)
        start, places = first * map_w, lanes * map_w
    else:
        pixels = first + lanes
        if not WIDE:
            pixels = pixels.to(tl.int32)
        image = pixels // (H * W)
        rest = pixels - image * (H * W)
        row = rest // W
        column = rest - row * W
        start, places = first * 0, image * map_n + row * map_h + column * map_w
    return start, places


@triton.jit
def joined_block(CHANNELS, vectors, BM: tl.constexpr):
    """Number of blocks of CHANNELS, the program's, its first channel and its number of channels, for a join."""
    width = BM if vectors is None else BM * vectors
    blocks = tl.cdiv(CHANNELS, width)
    block = tl.program_id(0) % blocks
    return blocks, block, block * width, width


@triton.jit
def tile_coords(
    CHANNELS, H, W, splits, per_split, BW: tl.constexpr, BM: tl.constexpr, WIDE: tl.constexpr, vectors=None
):  # fmt: skip
    """Coordinates of a program over strips: image, split, both as one group, columns [BW], channels [BM], which of
    these exist [BM], first row, and the row after the last. Of a flat tile the channels are [BW, BM], and which of them
    exist [BW, 1].

    Grid: images x splits (strips side by side, ``per_split`` rows of each) x blocks of CHANNELS.
    """
    blocks = tl.cdiv(CHANNELS, BM if vectors is None else BM * vectors)
    group = tl.program_id(0) // blocks
    split = group % splits
    if vectors is None:
        channels = block_of(tl.program_id(0) % blocks, BM, WIDE)
        wanted = channels < CHANNELS
        across = tl.cdiv(W, BW)
        columns = split % across * BW + tl.arange(0, BW)
    else:
        across = tl.cdiv(W * vectors, BW)
        lanes = split % across * BW + tl.arange(0, BW)
        columns = lanes // vectors
        first = (tl.program_id(0) % blocks * vectors + lanes - columns * vectors) * BM
        wanted = (first < CHANNELS)[:, None]
        channels = first[:, None] + tl.arange(0, BM)[None, :]
        if WIDE:
            channels = channels.to(tl.int64)
    top = split // across * per_split
    bottom = tl.minimum(top + per_split, H)
    if WIDE:
        columns, top, bottom = columns.to(tl.int64), top.to(tl.int64), bottom.to(tl.int64)
    return (group // splits).to(tl.int64), split, group, columns, channels, wanted, top, bottom


@triton.jit
def has_sums(wanted, vectors, BW: tl.constexpr):
    """Which of a tile's channels ``sum_where`` sums up, in its shape. ``wanted``: of ``tile_coords``."""
    if vectors is not None:
        wanted = wanted & (tl.arange(0, BW) < vectors)[:, None]
    return wanted


@triton.jit
def sum_where(mask, values, vectors, DOUBLINGS: tl.constexpr):
    """The sums of a tile over its pixels, [BM]; of a flat tile [BW, BM], in its first ``vectors`` lanes.

    ``mask``, ``values``: [BW, BM]. What lanes without a pixel have summed meanwhile, which may be NaN, does not count:
    a mask once a program costs less than one in every row. A flat tile's lanes are added to those ``vectors`` before
    them, then to those twice as far before them, and so on: DOUBLINGS times, so that how many vectors there are
    compiles nothing.
    """
    values = tl.where(mask, values, 0.0)
    if vectors is None:
        found = tl.sum(values, axis=0)
    else:
        BW: tl.constexpr = values.shape[0]
        BM: tl.constexpr = values.shape[1]
        lane = tl.arange(0, BW)
        found = values
        for i in tl.static_range(DOUBLINGS):
            after = lane + vectors * (1 << i)
            seen = tl.gather(found, tl.broadcast_to(tl.minimum(after, BW - 1)[:, None], BW, BM), 0)
            found += tl.where((after < BW)[:, None], seen, 0.0)
    return found


@triton.jit
def product_rows(x, places, valid, channel_stride, C, k, BK: tl.constexpr):
    """The step of ``product`` from channel k on: pixels of x, [BP, BK]; same arguments."""
    channels = k + tl.arange(0, BK)  # [BK]
    mask = valid[:, None] & (channels < C)[None, :]
    return tl.load(x + (places[:, None] + channels[None, :].to(places.dtype) * channel_stride), mask=mask, other=0.0)


@triton.jit
def product_columns(weight, C, columns, wanted, k, kind: tl.constexpr, BK: tl.constexpr):
    """The step of ``product`` from channel k on: the weight, transposed, [BK, BM]; same arguments."""
    channels = k + tl.arange(0, BK)  # [BK]
    at = weight + (columns[None, :].to(tl.int64) * C + channels[:, None])  # [BK, BM]
    return tl.load(at, mask=wanted[None, :] & (channels < C)[:, None], other=0.0).to(kind)


@triton.jit
def scaled_columns(b, scale, C, k, BK: tl.constexpr):
    """A step's weight b, [BK, BM], times an image's excitation ``scale``, [C], from channel k on; rounded, as b is."""
    channels = k + tl.arange(0, BK)  # [BK]
    excitation = tl.load(scale + channels, mask=channels < C, other=0.0).to(tl.float32)
    return (b.to(tl.float32) * excitation[:, None]).to(b.dtype)


@triton.jit
def product(
    x, places, valid, channel_stride, scale, weight, columns_of_step, C, columns, wanted,
    PRECISION: tl.constexpr, ONE_STEP: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """BP pixels x BM columns of a 1x1 convolution, [BP, BM], in float32.

    Args:
        x: the map; ``places``, [BP], are the pixels' offsets in it, ``valid``, [BP], which of them there are.
        scale: [C], the factors of x's channels where all pixels are of one image, or None. The weight is multiplied.
        weight: [all columns, C]; ``columns``, [BM], are the tile's, ``wanted``, [BM], which of them there are.
        ONE_STEP: C is at most BK. Then there is no loop here, so that the compiler overlaps the caller's, and
            ``columns_of_step``, [BK, BM], is the weight, which a caller reads once: ``product_columns`` of channel 0.
    """
    acc = tl.zeros((BP, BM), tl.float32)
    if ONE_STEP:
        a = product_rows(x, places, valid, channel_stride, C, 0, BK)  # [BP, BK]
        b = columns_of_step
        if scale is not None:
            b = scaled_columns(b, scale, C, 0, BK)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    else:
        for k in range(0, C, BK):
            a = product_rows(x, places, valid, channel_stride, C, k, BK)
            b = product_columns(weight, C, columns, wanted, k, x.dtype.element_ty, BK)
            if scale is not None:
                b = scaled_columns(b, scale, C, k, BK)
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def near(row, columns, tap, H, W, wanted, D: tl.constexpr):
    """Which pixels of a row are within the map, as a column ``tap`` of a D x D kernel sees it: [BW, BM].

    ``columns``: [BW]; ``wanted``: [BM].
    """
    there = columns + (tap - D // 2)
    beside = ((there >= 0) & (there < W))[:, None] & wanted  # of all rows, which the compiler sees
    return beside & ((row >= 0) & (row < H))


@triton.jit
def read_tap(y, row, columns, channels, tap, H, W, map_c, map_h, map_w, wanted, D: tl.constexpr):
    """A strip's row as a column ``tap`` of a D x D kernel sees it: [BW, BM], 0 outside of the map.

    ``columns``: [BW]; ``channels``, ``wanted``: [BM].
    """
    place = (columns + (tap - D // 2))[:, None] * map_w + channels * map_c  # [BW, BM]
    return tl.load(y + row * map_h + place, mask=near(row, columns, tap, H, W, wanted, D), other=0.0)


@triton.jit
def read_row(y, row, columns, channels, H, W, map_c, map_h, map_w, wanted, D: tl.constexpr):
    """A strip's row through every column of a D x D kernel: D of [BW, BM]. Arguments as of ``read_tap``."""
    found = ()
    for j in tl.static_range(D):
        found = found + (read_tap(y, row, columns, channels, j, H, W, map_c, map_h, map_w, wanted, D),)
    return found


@triton.jit
def load_taps(weight, weight_c, weight_tap, channels, wanted, D: tl.constexpr):
    """The taps of a strip's channels, in registers: D * D of [BM]; ``tiles.strips`` keeps BM small enough.

    ``weight_c``, ``weight_tap``: its strides, see ``taps.tap_arguments``; ``channels``, ``wanted``: [BM].
    """
    found = ()
    for k in tl.static_range(D * D):
        at = weight + (channels * weight_c + k * weight_tap)
        found = found + (tl.load(at, mask=wanted, other=0.0).to(tl.float32),)
    return found


@triton.jit
def as_inputs(
    seen, row, columns, H, W, wanted, center, scale, shift, slope, ACT: tl.constexpr, AFFINE: tl.constexpr,
    D: tl.constexpr,
):  # fmt: skip
    """A row of a depthwise convolution's input, from what ``read_row`` loaded, both D of [BW, BM], the result float32.

    With AFFINE the input is ACT((y - center) * scale + shift) of the map y, and 0 outside of it. ``columns``: [BW];
    ``wanted``, ``center``, ``scale``, ``shift``, ``slope``: [BM].
    """
    found = ()
    for j in tl.static_range(D):
        v = seen[j].to(tl.float32)
        if AFFINE:
            a = activate(normalized(v, center, scale, shift, True), ACT, slope)
            v = tl.where(near(row, columns, j, H, W, wanted, D), a, 0.0)
        found = found + (v,)
    return found


@triton.jit
def take_row(inputs, sums, taps, FLIPPED: tl.constexpr, D: tl.constexpr):
    """Adds a row to the sums of the D depthwise results, padded by D // 2, that read it.

    Args:
        inputs: the row, float32: D of [BW, BM], see ``as_inputs``; ``taps``: D * D of [BM], see ``load_taps``.
        sums: the sums of the D results that read the row, from D // 2 rows before it on, float32: D of [BW, BM].
        FLIPPED: the kernel is turned by 180 degrees, as for gradients.
    """
    for j in tl.static_range(D):
        for i in tl.static_range(D):
            tap = taps[(i * D + D - 1 - j) if FLIPPED else ((D - 1 - i) * D + j)]
            sums = sums[:i] + (sums[i] + inputs[j] * tap,) + sums[i + 1 :]
    return sums


@triton.jit
def store_rows(
    v, out, row, columns, channels, W, out_c, out_h, out_w, wanted, residual, residual_c, residual_h, residual_w,
    residual_center=None, residual_scale=None, residual_shift=None, NORMED: tl.constexpr = False,
):  # fmt: skip
    """Stores a strip's row v, [BW, BM], with the residual, if any, added; returns what was stored, [BW, BM], float32, 0
    where nothing is. ``columns``: [BW]; ``channels``, ``wanted``, and with NORMED what normalises the residual: [BM].
    """
    mask = (columns < W)[:, None] & wanted  # [BW, BM]
    if residual is not None:
        at = row * residual_h + columns[:, None] * residual_w + channels * residual_c
        r = tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
        if NORMED:
            r = normalized(r, residual_center, residual_scale, residual_shift, True)
        v += r
    at = row * out_h + columns[:, None] * out_w + channels * out_c
    tl.store(out + at, v.to(out.dtype.element_ty), mask=mask)
    return tl.where(mask, v, 0.0)


@triton.jit
def finish_moments(first, second, origin, count):
    """Mean and sum of squared deviations of ``count`` values, from the sums of their deviations from ``origin`` and of
    the squares of these, all [BM]. Where the origin is one of the values' own means, nothing cancels."""
    size = tl.maximum(count, 1.0)
    left = first / size
    return origin + left, tl.maximum(second - first * left, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def moments_of_lanes(mask, first, second, origin, rows, vectors, DOUBLINGS: tl.constexpr):
    """Count, mean and sum of squared deviations of a strip's values, in the shape of ``sum_where``.

    ``first``, ``second``: sums over ``rows`` rows of each lane's deviations from its ``origin``, one of its own values,
    and of the squares of these; all and ``mask`` are [BW, BM].
    """
    BW: tl.constexpr = first.shape[0]
    BM: tl.constexpr = first.shape[1]
    size = tl.maximum(rows, 1).to(tl.float32)
    left = first / size
    mean = origin + left  # of the lane, [BW, BM]
    second = tl.maximum(second - first * left, 0.0, propagate_nan=tl.PropagateNan.ALL)  # around that mean
    # Lanes are joined around the mean of the first lane of their channel, so that nothing cancels.
    lane = tl.arange(0, BW)
    if vectors is None:
        center = tl.sum(tl.where((lane == 0)[:, None], mean, 0.0), axis=0)  # [BM]
    else:
        center = tl.gather(mean, tl.broadcast_to((lane % vectors)[:, None], BW, BM), 0)  # [BW, BM]
        center = tl.where(mask, center, 0.0)  # where a channel has no pixel in the tile, another tile may read it
    apart = mean - center
    columns = sum_where(mask, tl.full(first.shape, 1.0, tl.float32), vectors, DOUBLINGS)
    first = sum_where(mask, apart, vectors, DOUBLINGS) * size
    second = sum_where(mask, second + size * apart * apart, vectors, DOUBLINGS)
    mean, m2 = finish_moments(first, second, center, columns * size)
    return columns * size, mean, m2


@triton.jit
def store_partial(partials, group, channels, CHANNELS, wanted, first, second, third):
    """One group's three rows, [BM] each, of the partial results, [groups, 3, CHANNELS], at ``channels``, [BM]."""
    at = partials + group.to(tl.int64) * 3 * CHANNELS + channels
    tl.store(at, first, mask=wanted)
    tl.store(at + CHANNELS, second, mask=wanted)
    tl.store(at + 2 * CHANNELS, third, mask=wanted)
