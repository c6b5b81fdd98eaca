"""Which tile a kernel takes: a small table (``tiles.json``) by architecture, kernel and class of shape.

``benchmarks/tune_triton.py`` regenerates the table on a device: the default is what was best for half precision on an
H200, and for float32 what does not spill. Nothing is tuned at run time, so that a first step takes no longer than
compiling. ``GHOST_OPS_TILES`` in the environment names another file of the same form; ``override`` holds within a
block.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from . import launch
from .launch import cdiv, is_wide

KERNELS = ("product", "module", "stencil", "stencil_gradient", "weight_gradient")
LEAST = 16  # elements of every side of a product
ARCHITECTURES = ("sm_80", "sm_89", "sm_90", "sm_100")
GROUPS = 1024  # most groups of partial sums; each is a run of tiles that one program goes through
PROGRAMS = 2048  # programs of a kernel over strips, so that a device is busy
LEAST_ROWS = 4  # rows of a strip: the rows around it are read twice
REGISTERS = 100  # registers of a thread for weights
_overrides: dict[str, dict] = {}
_assumed: str | None = None


@dataclass(frozen=True)
class Tile:
    """Sides of the tile of one Triton program, and its launch options.

    Attributes:
        pixels, channels, depth: largest sides of a product's tile, powers of two.
        columns: most columns of a strip; it has ``channels`` too.
        values: most values of a strip's row in the registers of a thread.
        warps, stages: Triton's options; a strip may have fewer warps.
    """

    channels: int
    pixels: int = 64
    depth: int = 32
    columns: int = 128
    values: int = 8
    warps: int = 4
    stages: int = 1


class Strips(NamedTuple):
    """How a kernel goes through strips: its tile, the splits of an image, and the rows of a split."""

    tile: Tile
    splits: int
    per_split: int

    def start(self, kernel: object, x: torch.Tensor, channels: int, arguments: dict, *axes: int) -> None:
        """Launch a kernel whose grid is the strips of x's images times blocks of ``channels``, and further ``axes``."""
        tile = self.tile
        arguments = arguments | {
            "splits": self.splits, "per_split": self.per_split, "BW": tile.columns, "BM": tile.channels,
        }  # fmt: skip
        with launch.on_device_of(x):
            grid = (x.shape[0] * self.splits * cdiv(channels, tile.channels), *axes)
            launch.start_kernel(kernel, grid, arguments, tile.warps, tile.stages)


@contextmanager
def override(kernel: str, **sides: int) -> Iterator[None]:
    """Within the block the kernel's tiles have these sides whatever the table says. Not per thread.

    Raises:
        ValueError: a kernel or side that is not known.
    """
    known = {field.name for field in fields(Tile)}
    if kernel not in KERNELS or not set(sides) <= known:
        raise ValueError(f"tiles.override: expected one of {KERNELS} and sides of {sorted(known)}, got {kernel, sides}")
    before = _overrides.get(kernel)
    _overrides[kernel] = {**(before or {}), **sides}
    try:
        yield
    finally:
        _overrides[kernel] = before or {}


@contextmanager
def assume(architecture: str) -> Iterator[None]:
    """Within the block tiles are those of this architecture: for compiling ahead of time."""
    global _assumed
    before, _assumed = _assumed, architecture
    try:
        yield
    finally:
        _assumed = before


@lru_cache(maxsize=4)
def _table(path: str) -> dict[str, dict[str, dict[str, int]]]:
    return json.loads(Path(path).read_text())


def table() -> dict[str, dict[str, dict[str, int]]]:
    """The tiles by architecture (or "default"), then by ``<kernel>/<class>``."""
    return _table(os.environ.get("GHOST_OPS_TILES") or str(Path(__file__).with_name("tiles.json")))


@lru_cache(maxsize=64)
def _architecture(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def architecture(device: torch.device) -> str:
    if _assumed is not None:
        return _assumed
    return _architecture(device) if device.type == "cuda" else "default"


def lookup(kernel: str, shape_class: str, device: torch.device) -> Tile:
    """The table's tile: of the architecture where it has one, else the default."""
    found, key = table(), f"{kernel}/{shape_class}"
    row = found["default"][key] | found.get(architecture(device), {}).get(key, {})
    return Tile(**(row | _overrides.get(kernel, {})))


def shape_class(x: torch.Tensor) -> str:
    """``large`` or ``small`` maps (up to 28 x 28) of ``float`` (32 bits) or ``half``."""
    size = "large" if x.shape[2] * x.shape[3] > 784 else "small"
    return f"{size}/{'float' if x.dtype == torch.float32 else 'half'}"


def _side(needed: int, most: int) -> int:
    return max(LEAST, min(most, 1 << (needed - 1).bit_length()))


def rows_of_strips(height: int, strips: int) -> int:
    """Rows of each split, where there are so many strips of ``height`` rows."""
    wanted = cdiv(PROGRAMS, max(strips, 1))
    return max(cdiv(height, wanted), min(LEAST_ROWS, height))


def strips(kernel: str, x: torch.Tensor, channels: int, taps: int = 1, sides: Sequence[int] | None = None) -> Strips:
    """The strips of a kernel that goes through images of x's sides, or of ``sides``.

    A thread holds the weights of its channels in registers, ``taps`` each, and so has fewer values of a row where the
    kernel is larger; offsets of 64 bits take registers too. The block of channels is the one that leaves the fewest
    idle, since nets have 12, 20, 36 or 100 channels.
    """
    tile = lookup(kernel, shape_class(x), x.device)
    images, (height, width) = x.shape[0], sides or x.shape[2:]
    values = 1 << (min(tile.values, max(REGISTERS // max(taps, 1), 1)).bit_length() - 1)
    values = max(values >> is_wide(x), 1)
    blocks = [b for b in (8, 16, 32, 64, 128) if b <= tile.channels and (b > 8 or channels <= 8)]
    block = min(blocks, key=lambda b: (cdiv(channels, b) * b, -b))
    columns = max(min(1 << (width - 1).bit_length(), tile.columns, 32 * values * tile.warps // block), 1)
    warps = max(min(columns * block // (32 * values), tile.warps), 1)
    across = cdiv(width, columns)
    per_split = rows_of_strips(height, images * across * cdiv(channels, block))
    tile = replace(tile, channels=block, columns=columns, values=values, warps=warps)
    return Strips(tile, across * cdiv(height, per_split), per_split)


def products_of_strips(kernel: str, x: torch.Tensor, channels: int) -> Strips:
    """The strips of a kernel whose rows are products: their sides are at least ``LEAST``, and there are few blocks,
    since each reads all of the input."""
    tile = lookup(kernel, shape_class(x), x.device)
    images, (height, width) = x.shape[0], x.shape[2:]
    block = min((16, 32, 64), key=lambda b: cdiv(channels, b) * (b + 16) if b <= tile.channels else math.inf)
    columns = max(min(1 << (width - 1).bit_length(), tile.columns, 32 * tile.values * tile.warps // block), LEAST)
    across = cdiv(width, columns)
    per_split = rows_of_strips(height, images * across * cdiv(channels, block))
    tile = replace(tile, channels=block, columns=columns)
    return Strips(tile, across * cdiv(height, per_split), per_split)


def rows(groups: int) -> int:
    """Number of groups that a program joins at once."""
    return min(1 << (max(groups, 1) - 1).bit_length(), 1024)


def flat(kernel: str, x: torch.Tensor, channels: int, depth: int = 1) -> tuple[Tile, int, int]:
    """For a kernel that numbers pixels through all images: its tile, the number of tiles of a group, and of groups."""
    tile = lookup(kernel, shape_class(x), x.device)
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    sides = {"channels": _side(channels, tile.channels), "depth": _side(depth, tile.depth)}
    tile = replace(tile, pixels=_side(max(pixels, 1), tile.pixels), **sides)
    count = cdiv(pixels, tile.pixels)
    per_group = max(cdiv(count, GROUPS), 1)
    return tile, per_group, cdiv(count, per_group)
