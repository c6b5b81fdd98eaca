"""A map times a gate that is upsampled to its size, each pixel of the gate repeated, and the backward.

Which pixel of the gate a pixel reads is what ``F.interpolate(mode="nearest")`` says, in float32 as there.
"""

from __future__ import annotations

import functools
import struct
from collections import Counter

import torch
import triton
import triton.language as tl

from . import launch, tiles
from .jit import kernel
from .maps import assume_multiple, assume_multiple_strides, tile_coords


@triton.jit
def source_of(pixels, ratio, SIZE, WIDE: tl.constexpr):
    """The row or column of the gate, of SIZE, that rows or columns of the map read; 64 bits with WIDE."""
    found = tl.floor(pixels * ratio).to(tl.int64 if WIDE else tl.int32)
    return tl.minimum(found, SIZE - 1)


@triton.jit
def first_reader(gates, ratio, SIZE, MAP_SIZE, WIDE: tl.constexpr):
    """The first row or column of the map, of MAP_SIZE, that reads this one of the gate, of SIZE, or one after it."""
    found = tl.cdiv(gates * MAP_SIZE, SIZE)
    found = tl.where((found > 0) & (source_of(found - 1, ratio, SIZE, WIDE) >= gates), found - 1, found)
    found = tl.where(source_of(found, ratio, SIZE, WIDE) < gates, found + 1, found)
    return tl.minimum(found, MAP_SIZE)


@kernel
def gate_kernel(
    x, x_n, x_c, x_h, x_w, gate, gate_n, gate_c, gate_h, gate_w, row_ratio, column_ratio, GATE_H, GATE_W,
    H, W, C, splits, per_split, vectors, WIDE: tl.constexpr, UNIT: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """x, times the gate, in place. Grid: see ``tile_coords``; strips are of x (H x W), blocks of C."""
    C = assume_multiple(C, UNIT)
    x_n, x_h, x_w = assume_multiple_strides(x_n, x_h, x_w, UNIT)
    gate_n, gate_h, gate_w = assume_multiple_strides(gate_n, gate_h, gate_w, UNIT)
    # columns: [BW]; channels, wanted: [BM]
    image, split, group, columns, channels, wanted, top, bottom = tile_coords(
        C, H, W, splits, per_split, BW, BM, WIDE, vectors
    )
    x += image * x_n
    gate += image * gate_n
    mask = (columns < W)[:, None] & wanted  # [BW, BM]
    place = columns[:, None] * x_w + channels * x_c  # [BW, BM]
    gate_place = source_of(columns, column_ratio, GATE_W, WIDE)[:, None] * gate_w + channels * gate_c  # [BW, BM]
    for row in range(top, bottom):
        v = tl.load(x + (row * x_h + place), mask=mask, other=0.0).to(tl.float32)  # [BW, BM]
        at = source_of(row, row_ratio, GATE_H, WIDE) * gate_h + gate_place
        v *= tl.load(gate + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(x + (row * x_h + place), v.to(x.dtype.element_ty), mask=mask)


@kernel
def gate_bwd_kernel(
    grad, grad_n, grad_c, grad_h, grad_w, x, x_n, x_c, x_h, x_w, gate, gate_n, gate_c, gate_h, gate_w,
    to, to_n, to_c, to_h, to_w, to_gate, to_gate_n, to_gate_c, to_gate_h, to_gate_w, row_ratio, column_ratio,
    MAP_H, MAP_W, H, W, C, splits, per_split, vectors, READERS: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr,
    BW: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """The gradients of x into ``to`` and of the gate into ``to_gate``. Grid: see ``tile_coords``; strips are of the
    gate (H x W), blocks of C. READERS: most columns of x that read one of the gate."""
    C = assume_multiple(C, UNIT)
    grad_n, grad_h, grad_w = assume_multiple_strides(grad_n, grad_h, grad_w, UNIT)
    x_n, x_h, x_w = assume_multiple_strides(x_n, x_h, x_w, UNIT)
    gate_n, gate_h, gate_w = assume_multiple_strides(gate_n, gate_h, gate_w, UNIT)
    to_n, to_h, to_w = assume_multiple_strides(to_n, to_h, to_w, UNIT)
    to_gate_n, to_gate_h, to_gate_w = assume_multiple_strides(to_gate_n, to_gate_h, to_gate_w, UNIT)
    # columns: [BW]; channels, wanted: [BM]
    image, split, group, columns, channels, wanted, top, bottom = tile_coords(
        C, H, W, splits, per_split, BW, BM, WIDE, vectors
    )
    grad += image * grad_n
    x += image * x_n
    gate += image * gate_n
    to += image * to_n
    to_gate += image * to_gate_n
    mask = (columns < W)[:, None] & wanted  # [BW, BM]
    begin = first_reader(columns, column_ratio, W, MAP_W, WIDE)  # of x, [BW]
    end = first_reader(columns + 1, column_ratio, W, MAP_W, WIDE)  # [BW]
    for row in range(top, bottom):
        at = row * gate_h + columns[:, None] * gate_w + channels * gate_c
        factor = tl.load(gate + at, mask=mask, other=0.0).to(tl.float32)  # [BW, BM]
        found = tl.zeros((BW, BM), tl.float32)
        first = first_reader(row, row_ratio, H, MAP_H, WIDE)
        for below in range(first, first_reader(row + 1, row_ratio, H, MAP_H, WIDE)):
            gradients, values = (), ()  # READERS of [BW, BM] each
            for i in tl.static_range(READERS):
                here = mask & (begin + i < end)[:, None]  # [BW, BM]
                at = below * grad_h + (begin + i)[:, None] * grad_w + channels * grad_c
                gradients = gradients + (tl.load(grad + at, mask=here, other=0.0),)
                at = below * x_h + (begin + i)[:, None] * x_w + channels * x_c
                values = values + (tl.load(x + at, mask=here, other=0.0),)
            for i in tl.static_range(READERS):
                here = mask & (begin + i < end)[:, None]  # [BW, BM]
                g = gradients[i].to(tl.float32)
                found += g * values[i].to(tl.float32)
                at = below * to_h + (begin + i)[:, None] * to_w + channels * to_c
                tl.store(to + at, (g * factor).to(to.dtype.element_ty), mask=here)
        at = row * to_gate_h + columns[:, None] * to_gate_w + channels * to_gate_c
        tl.store(to_gate + at, found.to(to_gate.dtype.element_ty), mask=mask)


@functools.lru_cache(maxsize=256)
def most_readers(size: int, map_size: int) -> int:
    """Most rows or columns of a map that read one of a gate of this size: as ``source_of``, in float32."""
    as_float32 = lambda v: struct.unpack("f", struct.pack("f", v))[0]
    ratio = as_float32(size / map_size)
    found = Counter(min(int(as_float32(pixel * ratio)), size - 1) for pixel in range(map_size))
    return max(found.values())


def _ratios(x: torch.Tensor, gate: torch.Tensor) -> dict[str, float]:
    return {"row_ratio": gate.shape[2] / x.shape[2], "column_ratio": gate.shape[3] / x.shape[3]}


def multiply_by_gate(x: torch.Tensor, gate: torch.Tensor) -> None:
    """x, which only this call has, times the gate, N x C x any x any, of any strides: in place."""
    c = x.shape[1]
    unit = launch.unit(x, gate, counts=(c,))
    arguments = {
        **launch.maps(x=x, gate=gate), **_ratios(x, gate), "GATE_H": gate.shape[2], "GATE_W": gate.shape[3],
        "H": x.shape[2], "W": x.shape[3], "C": c, "WIDE": launch.is_wide(x, gate), "UNIT": unit,
    }  # fmt: skip
    tiles.strips("stencil", x, c, unit=unit).start(gate_kernel, x, c, arguments)


def gate_gradients(
    grad_out: torch.Tensor, x: torch.Tensor, gate: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The gradients of x, a scratch map, and of the gate, in its memory format, from that of their product."""
    c, to, to_gate = x.shape[1], launch.scratch(x, x.shape[1]), launch.new_map(gate, gate.shape[1])
    maps = {"grad": grad_out, "x": x, "gate": gate, "to": to, "to_gate": to_gate}
    unit = launch.unit(*maps.values(), counts=(c,))
    arguments = {
        **launch.maps(**maps), **_ratios(x, gate), "READERS": most_readers(gate.shape[3], x.shape[3]),
        "MAP_H": x.shape[2], "MAP_W": x.shape[3], "H": gate.shape[2], "W": gate.shape[3], "C": c,
        "WIDE": launch.is_wide(*maps.values()), "UNIT": unit,
    }  # fmt: skip
    tiles.strips("stencil", gate, c, unit=unit).start(gate_bwd_kernel, gate, c, arguments)
    return to, to_gate
