"""The gradients of a 1x1 convolution: of its input and of its weight (B3 of docs/gradients.md, section 2).

The gradient of the convolution's result z is not in memory: it is made here, of the gradient g of a BatchNorm's result,
z and the coefficients of the BatchNorm's backward. Where the weight's gradient fits into the registers of a program,
one kernel computes both gradients and reads g and z once. Grids: groups of runs x blocks of channels; see ``maps.py``.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl

from . import launch, tiles
from .activation import load_coefficients
from .launch import cdiv
from .maps import assume_multiple, assume_multiple_strides, block_of, in_batch, run_of
from .sums import Totals

MOST_WEIGHTS = 8192  # elements of a weight whose gradient a program keeps, with both sides powers of two
MOST_SUMS = 4096  # values of a tile of x's gradient, where tiles of z's gradient are kept
MOST_STEPS = 2  # steps of a product over z's channels that are kept while a program goes through x's channels


@triton.jit
def through_norm(
    grad, places, grad_c, z, lanes, valid, channels, M, factor, constant, linear, center, NORM: tl.constexpr
):  # fmt: skip
    """A tile of the gradient of z, [BP, B], float32; NORM: through a BatchNorm.

    ``grad`` and z, [all pixels, M], begin where the run does; ``places``: offsets of its pixels in ``grad``, [BP];
    ``lanes``, ``valid``: see ``run_of``; ``channels`` and the coefficients (see ``load_coefficients``): [B].
    """
    mask = valid[:, None] & (channels < M)[None, :]
    g = tl.load(grad + (places[:, None] + channels[None, :] * grad_c), mask=mask, other=0.0).to(tl.float32)  # [BP, B]
    if NORM:
        z1 = tl.load(z + (lanes[:, None] * M + channels[None, :]), mask=mask, other=0.0).to(tl.float32)
        g = factor[None, :] * (g - constant[None, :] - linear[None, :] * (z1 - center[None, :]))
        g = tl.where(mask, g, 0.0)
    return g


@triton.jit
def weight_rows(weight, M, C, k, columns, wanted, kind: tl.constexpr, BK: tl.constexpr):
    """Rows of the weight, [M, C], from k on: [BK, BC]. ``columns``, ``wanted``: [BC]."""
    channels = k + tl.arange(0, BK)  # [BK]
    at = weight + (channels[:, None].to(tl.int64) * C + columns[None, :])
    return tl.load(at, mask=(channels < M)[:, None] & wanted[None, :], other=0.0).to(kind)


@triton.jit
def store_input_gradient(
    v, to, to_n, to_c, to_h, to_w, residual, residual_n, residual_c, residual_h, residual_w,
    start, lanes, valid, columns, wanted, H, W, FLAT_IN: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Stores a tile of the gradient of x, [BP, BC], with ``residual``, if any, added. ``start``, ``lanes``, ``valid``:
    see ``run_of``; ``columns``, ``wanted``: [BC]."""
    mask = valid[:, None] & wanted[None, :]
    if residual is not None:
        at, places = in_batch(start, lanes, H, W, residual_n, residual_h, residual_w, FLAT_IN, WIDE)
        more = residual + at + (places[:, None] + columns[None, :] * residual_c)  # [BP, BC]
        v += tl.load(more, mask=mask, other=0.0).to(tl.float32)
    at, places = in_batch(start, lanes, H, W, to_n, to_h, to_w, FLAT_IN, WIDE)
    tl.store(to + at + (places[:, None] + columns[None, :] * to_c), v.to(to.dtype.element_ty), mask=mask)


@triton.jit
def product_bwd_kernel(
    grad, grad_n, grad_c, grad_h, grad_w, z, coefficients, x, x_n, x_c, x_h, x_w, weight,
    to, to_n, to_c, to_h, to_w, residual, residual_n, residual_c, residual_h, residual_w, partials,
    H, W, M, C, PIXELS, per_group, PRECISION: tl.constexpr, FLAT_IN: tl.constexpr, FLAT: tl.constexpr,
    WIDE: tl.constexpr, UNIT_IN: tl.constexpr, UNIT: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
    """Both gradients: of x into ``to``, of the weight as partial products over pixels, [groups, M, C]. BM and BC hold
    all channels. ``grad``: of z, or of a BatchNorm's result where there are ``coefficients``; z: [pixels, M]."""
    C, M = assume_multiple(C, UNIT_IN), assume_multiple(M, UNIT)
    grad_n, grad_h, grad_w = assume_multiple_strides(grad_n, grad_h, grad_w, UNIT)
    x_n, x_h, x_w = assume_multiple_strides(x_n, x_h, x_w, UNIT_IN)
    to_n, to_h, to_w = assume_multiple_strides(to_n, to_h, to_w, UNIT_IN)
    residual_n, residual_h, residual_w = assume_multiple_strides(residual_n, residual_h, residual_w, UNIT_IN)
    kind: tl.constexpr = x.dtype.element_ty
    group = tl.program_id(0)
    channels = block_of(0, BM, WIDE)  # [BM]
    columns = block_of(0, BC, WIDE)  # [BC]
    wanted = columns < C
    # factor, constant, linear, center: [BM]
    factor, constant, linear, center = load_coefficients(coefficients, channels, M, channels < M)
    rows = weight_rows(weight, M, C, 0, columns, wanted, kind, BM)  # [BM, BC]
    acc = tl.zeros((BM, BC), tl.float32)
    for t in range(per_group):
        start, lanes, valid = run_of(group, per_group, t, PIXELS, BP)  # a scalar, [BP], [BP]
        at, places = in_batch(start, lanes, H, W, grad_n, grad_h, grad_w, FLAT, WIDE)  # a scalar, [BP]
        # gz: [BP, BM]
        gz = through_norm(
            grad + at, places, grad_c, z + start * M, lanes, valid, channels, M, factor, constant, linear, center,
            coefficients is not None,
        ).to(kind)  # fmt: skip
        at, places = in_batch(start, lanes, H, W, x_n, x_h, x_w, FLAT_IN, WIDE)
        seen = x + at + (places[:, None] + columns[None, :] * x_c)
        seen = tl.load(seen, mask=valid[:, None] & wanted[None, :], other=0.0)  # [BP, BC]
        acc = tl.dot(tl.trans(gz), seen, acc, input_precision=PRECISION)
        found = tl.dot(gz, rows, input_precision=PRECISION)  # [BP, BC]
        store_input_gradient(
            found, to, to_n, to_c, to_h, to_w, residual, residual_n, residual_c, residual_h, residual_w,
            start, lanes, valid, columns, wanted, H, W, FLAT_IN, WIDE,
        )  # fmt: skip
    at = partials + (group.to(tl.int64) * M + channels[:, None]) * C + columns[None, :]  # [BM, BC]
    tl.store(at, acc, mask=(channels < M)[:, None] & wanted[None, :])


@triton.jit
def input_bwd_kernel(
    grad, grad_n, grad_c, grad_h, grad_w, z, coefficients, weight,
    to, to_n, to_c, to_h, to_w, residual, residual_n, residual_c, residual_h, residual_w,
    H, W, M, C, PIXELS, per_group, per_program, PRECISION: tl.constexpr, STEPS: tl.constexpr, ONE_BLOCK: tl.constexpr,
    FLAT_IN: tl.constexpr, FLAT: tl.constexpr, WIDE: tl.constexpr, UNIT_IN: tl.constexpr, UNIT: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The gradient of x, a product over the M channels of z. Arguments as of ``product_bwd_kernel``.

    Grid: groups x programs of ``per_program`` blocks of C. STEPS: how many steps of BK there are, whose tiles of the
    gradient of z are kept for all blocks; 0 where they are too many: then they are made again for each block, and a
    program has one block. ONE_BLOCK: ``per_program`` is 1.
    """
    C, M = assume_multiple(C, UNIT_IN), assume_multiple(M, UNIT)
    grad_n, grad_h, grad_w = assume_multiple_strides(grad_n, grad_h, grad_w, UNIT)
    to_n, to_h, to_w = assume_multiple_strides(to_n, to_h, to_w, UNIT_IN)
    residual_n, residual_h, residual_w = assume_multiple_strides(residual_n, residual_h, residual_w, UNIT_IN)
    kind: tl.constexpr = to.dtype.element_ty
    NORM: tl.constexpr = coefficients is not None
    blocks = tl.cdiv(C, BC)
    programs = tl.cdiv(blocks, per_program)
    group = tl.program_id(0) // programs
    first = tl.program_id(0) % programs * per_program
    inner = tl.arange(0, BK)  # [BK]
    known = ()  # STEPS times the four coefficients, [BK] each
    for k in tl.static_range(STEPS):
        known = known + (load_coefficients(coefficients, k * BK + inner, M, k * BK + inner < M),)
    for t in range(per_group):
        start, lanes, valid = run_of(group, per_group, t, PIXELS, BP)  # a scalar, [BP], [BP]
        at, places = in_batch(start, lanes, H, W, grad_n, grad_h, grad_w, FLAT, WIDE)  # a scalar, [BP]
        kept = ()  # STEPS of [BP, BK]
        for k in tl.static_range(STEPS):
            factor, constant, linear, center = known[k]
            gz = through_norm(
                grad + at, places, grad_c, z + start * M, lanes, valid, k * BK + inner, M, factor, constant,
                linear, center, NORM,
            )  # fmt: skip
            kept = kept + (gz.to(kind),)
        if (STEPS == 0) or ONE_BLOCK:
            columns = block_of(first, BC, WIDE)  # [BC]
            acc = tl.zeros((BP, BC), tl.float32)
            for k in tl.static_range(STEPS):
                b = weight_rows(weight, M, C, k * BK, columns, columns < C, kind, BK)  # [BK, BC]
                acc = tl.dot(kept[k], b, acc, input_precision=PRECISION)
            if STEPS == 0:
                for k in range(0, M, BK):
                    channels = k + inner  # [BK]
                    factor, constant, linear, center = load_coefficients(coefficients, channels, M, channels < M)
                    gz = through_norm(
                        grad + at, places, grad_c, z + start * M, lanes, valid, channels, M, factor, constant,
                        linear, center, NORM,
                    )  # fmt: skip
                    b = weight_rows(weight, M, C, k, columns, columns < C, kind, BK)  # [BK, BC]
                    acc = tl.dot(gz.to(kind), b, acc, input_precision=PRECISION)
            store_input_gradient(
                acc, to, to_n, to_c, to_h, to_w, residual, residual_n, residual_c, residual_h, residual_w,
                start, lanes, valid, columns, columns < C, H, W, FLAT_IN, WIDE,
            )  # fmt: skip
        else:
            for block in range(first, tl.minimum(first + per_program, blocks)):
                columns = block_of(block, BC, WIDE)  # [BC]
                acc = tl.zeros((BP, BC), tl.float32)
                for k in tl.static_range(STEPS):
                    b = weight_rows(weight, M, C, k * BK, columns, columns < C, kind, BK)  # [BK, BC]
                    acc = tl.dot(kept[k], b, acc, input_precision=PRECISION)
                store_input_gradient(
                    acc, to, to_n, to_c, to_h, to_w, residual, residual_n, residual_c, residual_h, residual_w,
                    start, lanes, valid, columns, columns < C, H, W, FLAT_IN, WIDE,
                )  # fmt: skip


@triton.jit
def primary_weight_bwd_kernel(
    grad, grad_n, grad_c, grad_h, grad_w, z, coefficients, x, x_n, x_c, x_h, x_w, partials,
    H, W, M, C, PIXELS, per_group, PRECISION: tl.constexpr, FLAT_IN: tl.constexpr, FLAT: tl.constexpr,
    WIDE: tl.constexpr, UNIT_IN: tl.constexpr, UNIT: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
    """The gradient of the weight. Grid: groups x blocks of M x blocks of C. Arguments as of ``product_bwd_kernel``."""
    C, M = assume_multiple(C, UNIT_IN), assume_multiple(M, UNIT)
    grad_n, grad_h, grad_w = assume_multiple_strides(grad_n, grad_h, grad_w, UNIT)
    x_n, x_h, x_w = assume_multiple_strides(x_n, x_h, x_w, UNIT_IN)
    across = tl.cdiv(C, BC)
    blocks = tl.cdiv(M, BM) * across
    block = tl.program_id(0) % blocks
    group = tl.program_id(0) // blocks
    channels = block_of(block // across, BM, WIDE)  # [BM]
    columns = block_of(block % across, BC, WIDE)  # [BC]
    acc = tl.zeros((BM, BC), tl.float32)
    # factor, constant, linear, center: [BM]
    factor, constant, linear, center = load_coefficients(coefficients, channels, M, channels < M)
    for t in range(per_group):
        start, lanes, valid = run_of(group, per_group, t, PIXELS, BP)  # a scalar, [BP], [BP]
        at, places = in_batch(start, lanes, H, W, grad_n, grad_h, grad_w, FLAT, WIDE)  # a scalar, [BP]
        # gz: [BP, BM]
        gz = through_norm(
            grad + at, places, grad_c, z + start * M, lanes, valid, channels, M, factor, constant, linear, center,
            coefficients is not None,
        )  # fmt: skip
        at, places = in_batch(start, lanes, H, W, x_n, x_h, x_w, FLAT_IN, WIDE)
        seen = x + at + (places[:, None] + columns[None, :] * x_c)
        seen = tl.load(seen, mask=valid[:, None] & (columns < C)[None, :], other=0.0)  # [BP, BC]
        acc = tl.dot(tl.trans(gz.to(x.dtype.element_ty)), seen, acc, input_precision=PRECISION)  # [BM, BC]
    at = partials + (group.to(tl.int64) * M + channels[:, None]) * C + columns[None, :]  # [BM, BC]
    tl.store(at, acc, mask=(channels < M)[:, None] & (columns < C)[None, :])


def product_gradients(
    grad: torch.Tensor,
    z: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    coefficients: torch.Tensor | None = None,
    *,
    residual: torch.Tensor | None = None,
    totals: Totals | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of x and of the weight of a 1x1 convolution.

    Args:
        grad: the gradient of the result z (N x m x H x W, any strides), or with ``coefficients`` that of the result of
            a BatchNorm after it (see ``norm.join_gradients``).
        z: channels_last, as ``launch.scratch`` makes it; only read where there are ``coefficients``.
        weight: m x C x 1 x 1.
        residual: a map like x, of any strides, that is added to its gradient.
        totals: where the weight's gradient is joined, later; by default it is joined here.
    """
    n, c, height, width = x.shape
    m, pixels = weight.shape[0], n * height * width
    grad_x = launch.new_map(x, c)
    grad_weight = launch.empty(tuple(weight.shape), weight.dtype, x.device)
    into = {**launch.maps(to=grad_x, residual=residual), "weight": launch.vector(weight)}
    common = {
        **launch.maps(grad=grad), "z": z, "coefficients": coefficients, "H": height, "W": width, "M": m, "C": c,
        "PIXELS": pixels, "PRECISION": launch.precision(x.dtype), "FLAT": launch.is_flat(grad),
        "WIDE": launch.is_wide(grad, z, grad_x, x, residual, images=True), "UNIT": launch.unit(grad, counts=(m,)),
    }  # fmt: skip
    inputs = [grad_x] if residual is None else [grad_x, residual]
    with launch.on_device_of(x):
        tile = tiles.lookup("product_gradient", tiles.shape_class(x), x.device)
        sides = tiles.side(m, MOST_WEIGHTS), tiles.side(c, MOST_WEIGHTS)
        if x.dtype != torch.float32 and sides[0] * sides[1] <= MOST_WEIGHTS:
            fewer = sum(sides) > tile.pixels  # pixels, so that registers are enough
            tile = replace(tile, pixels=tiles.side(pixels, tile.pixels // 2 if fewer else tile.pixels))
            per_group, groups = tiles.runs(tile, x)
            partials = launch.empty((groups, 1, m * c), torch.float32, x.device)
            arguments = {
                **common, **into, **launch.maps(x=x), "partials": partials, "per_group": per_group,
                "FLAT_IN": launch.is_flat(x, *inputs), "UNIT_IN": launch.unit(x, *inputs, counts=(c,)),
                "BP": tile.pixels, "BM": sides[0], "BC": sides[1],
            }  # fmt: skip
            launch.start_kernel(product_bwd_kernel, (groups,), arguments, tile.warps, tile.stages)
        else:
            _start_input(x, m, c, common | into, inputs)
            partials = _start_weight(x, m, c, common)
        if totals is None:
            Totals().add(partials, grad_weight).start()
        else:
            totals.add(partials, grad_weight)
    return grad_x, grad_weight


def _start_input(x: torch.Tensor, m: int, c: int, arguments: dict, inputs: list[torch.Tensor]) -> None:
    tile = tiles.lookup("product_gradient", tiles.shape_class(x), x.device)
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    block, depth = tiles.side(c, tile.channels), tiles.side(m, tile.depth)
    blocks, steps = cdiv(c, block), cdiv(m, depth)
    # Where tiles of z are kept, there are fewer pixels; else each tile reads all of the weight.
    most = min(tile.pixels, MOST_SUMS // block) if steps <= MOST_STEPS else tile.pixels
    tile = replace(tile, pixels=tiles.side(max(pixels, 1), most), channels=block, depth=depth)
    per_program = 1
    if steps <= MOST_STEPS:  # all blocks one after the other, where there are programs enough for the device
        at_once = cdiv(tiles.processors(x.device) * tile.resident, max(cdiv(pixels, tile.pixels), 1))
        per_program = cdiv(blocks, min(at_once, blocks))
    programs = cdiv(blocks, per_program)
    per_group, groups = tiles.runs(tile, x, programs, 1 if steps == 1 and per_program == 1 else tiles.WAVES)
    arguments = arguments | {
        "per_group": per_group, "per_program": per_program, "STEPS": steps if steps <= MOST_STEPS else 0,
        "ONE_BLOCK": per_program == 1, "FLAT_IN": launch.is_flat(*inputs),
        "UNIT_IN": launch.unit(*inputs, counts=(c,)), "BP": tile.pixels, "BC": tile.channels, "BK": tile.depth,
    }  # fmt: skip
    launch.start_kernel(input_bwd_kernel, (groups * programs,), arguments, tile.warps, tile.stages)


def _start_weight(x: torch.Tensor, m: int, c: int, arguments: dict) -> torch.Tensor:
    """Partial sums of the weight's gradient, groups x 1 x m * c."""
    tile = tiles.lookup("weight_gradient", tiles.shape_class(x), x.device)
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    tile = replace(
        tile, pixels=tiles.side(max(pixels, 1), tile.pixels), channels=tiles.side(m, tile.channels),
        depth=tiles.side(c, tile.depth),
    )  # fmt: skip
    blocks = cdiv(m, tile.channels) * cdiv(c, tile.depth)
    per_group, groups = tiles.runs(tile, x, blocks)
    partials = launch.empty((groups, 1, m * c), torch.float32, x.device)
    arguments = arguments | {
        **launch.maps(x=x), "partials": partials, "per_group": per_group, "FLAT_IN": launch.is_flat(x),
        "UNIT_IN": launch.unit(x, counts=(c,)), "BP": tile.pixels, "BM": tile.channels, "BC": tile.depth,
    }  # fmt: skip
    launch.start_kernel(primary_weight_bwd_kernel, (groups * blocks,), arguments, tile.warps, tile.stages)
    return partials
