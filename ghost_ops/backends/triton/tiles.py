"""Which tile a kernel takes: a small table (``tiles.json``) by architecture, kernel and class of shape.

``benchmarks/tune_triton.py`` regenerates the table on a device: the default is what was best for half precision on an
H200, and for float32 what does not spill. Nothing is tuned at run time, so that a first step takes no longer than
compiling. ``GHOST_OPS_TILES`` in the environment names another file of the same form; ``override`` holds within a
block.
"""

from __future__ import annotations

import json
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

KERNELS = ("product", "product_gradient", "module", "stencil", "stencil_gradient", "weight_gradient")
LEAST = 16  # elements of every side of a product
LEAST_MADE = 8  # channels that a row makes which is a product: tensor cores take so few
ARCHITECTURES = ("sm_80", "sm_89", "sm_90", "sm_100")
PROCESSORS = {"sm_80": 108, "sm_89": 142, "sm_90": 132, "sm_100": 148}  # where none is there to be asked
WAVES = 4  # see ``runs``
PROGRAMS = 2048  # programs of a kernel over strips, so that a device is busy
LEAST_ROWS = 4  # rows of a strip: the rows around it are read twice
LANES = 32  # of a flat tile: those of a warp, which exchange values without shared memory
FEWER_VALUES = 1.2  # how much more it costs that a thread has fewer values than it has registers for
MOST_VECTORS = 16  # of a column of a flat tile: wider blocks of channels are joined for longer
VALUES_OF_STEPS = 64  # of a thread, in products of several steps
REGISTERS = 100  # registers of a thread for weights
_overrides: dict[str, dict] = {}
_assumed: str | None = None


@dataclass(frozen=True)
class Tile:
    """Sides of the tile of one Triton program, and its launch options.

    Attributes:
        pixels, channels, depth: largest sides of a product's tile, powers of two.
        one_step: depth up to which a product is one step, where that is more than ``depth``.
        columns: most columns of a strip; it has ``channels`` too.
        values: most values of a strip's row in the registers of a thread.
        warps, stages: Triton's options; a strip may have fewer warps.
        resident: programs over runs that a processor holds at once.
    """

    channels: int
    pixels: int = 64
    depth: int = 32
    columns: int = 128
    values: int = 8
    warps: int = 4
    stages: int = 1
    one_step: int = 0
    resident: int = 2


class Strips(NamedTuple):
    """How a kernel goes through strips: its tile, the splits of an image, the rows of a split, and of a flat tile the
    vectors of a column (see ``maps.py``); its columns are lanes then, and its channels those of a vector.

    All flat tiles of a dtype have the same sides, whatever the map's are, so that few kernels are compiled.
    """

    tile: Tile
    splits: int
    per_split: int
    vectors: int | None = None

    def blocks(self, channels: int) -> int:
        """Number of blocks of channels."""
        return cdiv(channels, self.tile.channels * (self.vectors or 1))

    def start(self, kernel: object, x: torch.Tensor, channels: int, arguments: dict, *axes: int) -> None:
        """Launch a kernel whose grid is the strips of x's images times blocks of ``channels``, and further ``axes``."""
        tile = self.tile
        places = {
            "splits": self.splits, "per_split": self.per_split, "BW": tile.columns, "BM": tile.channels,
            "vectors": self.vectors, "DOUBLINGS": None if self.vectors is None else doublings(self.vectors),
        }  # fmt: skip
        if self.vectors is not None:
            if "vectors" not in kernel.arg_names:
                raise TypeError(f"{kernel.__name__} takes no flat tile")
            places["UNIT"] = tile.channels  # what else divides the channels is of no use, and would compile more
        arguments = arguments | {name: value for name, value in places.items() if name in kernel.arg_names}
        with launch.on_device_of(x):
            grid = (x.shape[0] * self.splits * self.blocks(channels), *axes)
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


@lru_cache(maxsize=64)
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def processors(device: torch.device) -> int:
    """Number of multiprocessors of a device, or of the architecture that is assumed."""
    if _assumed is None and device.type == "cuda":
        return _processors(device)
    return PROCESSORS.get(architecture(device), PROCESSORS["sm_90"])


def lookup(kernel: str, shape_class: str, device: torch.device) -> Tile:
    """The table's tile: of the architecture where it has one, else the default."""
    found, key = table(), f"{kernel}/{shape_class}"
    row = found["default"][key] | found.get(architecture(device), {}).get(key, {})
    return Tile(**(row | _overrides.get(kernel, {})))


def shape_class(x: torch.Tensor) -> str:
    """``large`` or ``small`` maps (up to 28 x 28) of ``float`` (32 bits) or ``half``."""
    size = "large" if x.shape[2] * x.shape[3] > 784 else "small"
    return f"{size}/{'float' if x.dtype == torch.float32 else 'half'}"


def side(needed: int, most: int) -> int:
    """The side of a product's tile: the least power of two that holds ``needed``, within its limits."""
    return max(LEAST, min(most, 1 << (needed - 1).bit_length()))


def rows_of_strips(height: int, strips: int) -> int:
    """Rows of each split, where there are so many strips of ``height`` rows."""
    wanted = cdiv(PROGRAMS, max(strips, 1))
    return max(cdiv(height, wanted), min(LEAST_ROWS, height))


def doublings(vectors: int) -> int:
    """How often ``maps.sum_where`` adds lanes to others; one number for most, so that few kernels are compiled."""
    return max((cdiv(LANES, vectors) - 1).bit_length(), 3)


def _flat_vectors(width: int, count: int) -> tuple[int, int, int]:
    """Of a flat tile the vectors of a column in a block of channels, of ``count`` vectors in all, the blocks, and the
    tiles side by side, such that few lanes of a row are idle.

    A block is of whole sectors of memory, 16 channels, or of all channels. Of blocks that leave as many idle, those of
    whole lines of memory are read fastest, and wider ones are joined for longer.
    """
    sizes = [v for v in (4, 8, 12, 16) if v <= count]
    if count <= MOST_VECTORS and count not in sizes:
        sizes.append(count)
    found = [(v, cdiv(count, v), cdiv(width * v, LANES)) for v in sizes]
    return min(found, key=lambda one: (one[1] * one[2], one[0] > 8, -one[0]))


def strips(
    kernel: str,
    x: torch.Tensor,
    channels: int,
    taps: int = 1,
    sides: Sequence[int] | None = None,
    unit: int = 1,
) -> Strips:
    """The strips of a kernel that goes through images of x's sides, or of ``sides``.

    A thread holds the weights of its channels in registers, ``taps`` each, and so has fewer values of a row where the
    kernel is larger; offsets of 64 bits take registers too. The block of channels is the one that leaves the fewest
    idle, since nets have 12, 20, 36 or 100 channels.

    ``unit`` is the kernel's UNIT, of a kernel that takes flat tiles: these are taken where vectors are as long as the
    row of a thread, and where shorter ones leave so many fewer lanes idle that more threads do not matter. With vectors
    of a single channel, as in NCHW, lanes side by side would not read what is side by side.
    """
    tile = lookup(kernel, shape_class(x), x.device)
    images, (height, width) = x.shape[0], sides or x.shape[2:]
    values = 1 << (min(tile.values, max(REGISTERS // max(taps, 1), 1)).bit_length() - 1)
    values = max(values >> is_wide(x), 1)
    sizes = [b for b in (8, 16, 32, 64, 128) if b <= tile.channels and (b > 8 or channels <= 8)]
    block = min(sizes, key=lambda b: (cdiv(channels, b) * b, -b))
    columns = max(min(1 << (width - 1).bit_length(), tile.columns, 32 * values * tile.warps // block), 1)
    warps = max(min(columns * block // (32 * values), tile.warps), 1)
    across, blocks, vectors = cdiv(width, columns), cdiv(channels, block), None
    vector = min(unit, values)
    if vector > 1:
        count, parts, flat_across = _flat_vectors(width, channels // vector)
        lanes = parts * flat_across * LANES * vector
        if vector == values or lanes * FEWER_VALUES < blocks * across * columns * block:
            blocks, across, vectors = parts, flat_across, count
            block, columns, values, warps = vector, LANES, vector, 1
    per_split = rows_of_strips(height, images * across * blocks)
    tile = replace(tile, channels=block, columns=columns, values=values, warps=warps)
    return Strips(tile, across * cdiv(height, per_split), per_split, vectors)


def products_of_strips(kernel: str, x: torch.Tensor, channels: int) -> Strips:
    """The strips of a kernel whose rows are products: there are few blocks, since each reads all of the input, and at
    least ``LEAST`` columns of at least ``LEAST_MADE`` channels."""
    tile = lookup(kernel, shape_class(x), x.device)
    images, (height, width) = x.shape[0], x.shape[2:]
    sizes = [b for b in (LEAST_MADE, 16, 32, 64) if b <= max(tile.channels, LEAST_MADE)]
    block = min(sizes, key=lambda b: cdiv(channels, b) * (b + 16))
    columns = max(min(1 << (width - 1).bit_length(), tile.columns, 32 * tile.values * tile.warps // block), LEAST)
    across = cdiv(width, columns)
    per_split = rows_of_strips(height, images * across * cdiv(channels, block))
    tile = replace(tile, channels=block, columns=columns)
    return Strips(tile, across * cdiv(height, per_split), per_split)


def rows(groups: int) -> int:
    """Number of groups that a program joins at once."""
    return min(1 << (max(groups, 1) - 1).bit_length(), 1024)


def runs(tile: Tile, x: torch.Tensor, programs: int = 1, waves: int = 1, of_images: bool = False) -> tuple[int, int]:
    """Number of tiles of a group, and of groups, for a kernel that numbers pixels through all images.

    The device holds all programs at once where there is work for that: each reads its coefficients and joins its sums
    once, and there are few partial sums. ``programs``: of a group, each with its own channels. ``waves``: how many
    times what the device holds, for programs that gain nothing from a second tile. ``of_images``: tiles are of one
    image each.
    """
    images, _, height, width = x.shape
    count = images * cdiv(height * width, tile.pixels) if of_images else cdiv(images * height * width, tile.pixels)
    wanted = max(waves * processors(x.device) * tile.resident // programs, 1)
    per_group = cdiv(count, wanted) if count >= 2 * wanted else 1
    return per_group, cdiv(count, per_group)


def _larger(tile: Tile, x: torch.Tensor, channels: int, of_images: bool) -> Tile:
    """The tile of products of several steps, or with a weight of each image's own: twice the channels, and then all
    pixels of an image, where a thread's registers allow it, so that neither is read again for the other."""
    most = VALUES_OF_STEPS * LANES * tile.warps
    width = tile.channels * (2 if channels > tile.channels else 1)
    if x.dtype == torch.float32 or tile.pixels * width > most:
        return tile
    height = tile.pixels
    if of_images:
        height = max(min(side(x.shape[2] * x.shape[3], most // side(channels, width)), 2 * height), height)
    return replace(tile, channels=width, pixels=height)


def flat(
    kernel: str, x: torch.Tensor, channels: int, depth: int, values: int | None = None, of_images: bool = False,
    in_inference: bool = False,
) -> tuple[Tile, int, int]:  # fmt: skip
    """The tile of such a kernel whose programs of a group have a block of ``channels`` each, and its ``runs``.

    Args:
        depth: channels over which the products run. Where these are one step, the steps of a program's tiles overlap.
        values: most pixels times channels of a tile then, where sums are kept from tile to tile.
        of_images: tiles are of one image each.
        in_inference: take larger tiles for several steps. A training step has them too seldom for a kernel more.
    """
    tile = lookup(kernel, shape_class(x), x.device)
    one_step = depth <= max(tile.depth, tile.one_step)
    if of_images or (in_inference and not one_step):
        tile = _larger(tile, x, channels, of_images)
    block, most = side(channels, tile.channels), tile.pixels
    deep = side(depth, 2 * depth) if one_step else tile.depth
    if one_step:  # no more of the input at once than the table says
        most = min(most, tile.pixels * tile.depth // deep)
        most = most if values is None else min(most, values // block)
    pixels = side(max((1 if of_images else x.shape[0]) * x.shape[2] * x.shape[3], 1), most)
    tile = replace(tile, pixels=pixels, channels=block, depth=deep)
    return tile, *runs(tile, x, cdiv(channels, block), 1 if one_step else WAVES, of_images)
