"""Which tile a kernel takes: a small table (``tiles.json``) by architecture, kernel and class of shape.

No entry has been measured yet: ``benchmarks/tune_triton.py`` regenerates the table on a device. The reasons of the
default are in docs/performance.md. Nothing is tuned at run time, so that a first step takes no longer than compiling.
``GHOST_OPS_TILES`` in the environment names another file of the same form; ``override`` holds within a block.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path

import torch

from .launch import cdiv

KERNELS = ("single_pass", "product", "depthwise", "weight_gradient")
LEAST = 16  # of every side of a product
ARCHITECTURES = ("sm_80", "sm_89", "sm_90", "sm_100")
GROUPS = 1024  # of partial sums: each a run of pixel tiles that one program goes through
_overrides: dict[str, dict] = {}
_assumed: str | None = None


@dataclass(frozen=True)
class Tile:
    """Of a program.

    Attributes:
        pixels, channels, depth: sides of its products, powers of two; ``channels`` and ``depth`` are at most these.
        warps, stages: Triton's options.
        band: about how many pixels one program of ``single_pass`` takes, in whole rows.
        rows: of the band, made of that by the map's width.
    """

    pixels: int
    channels: int
    depth: int = 32
    warps: int = 4
    stages: int = 2
    band: int = 1024
    rows: int = 1


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
    """By architecture (or "default"), then by ``<kernel>/<class>``."""
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


def single_pass(x: torch.Tensor, c: int, m: int, d: int) -> Tile:
    """Bands: the whole of a small map, so that it has no halo; else enough rows that the halo stays a small share."""
    tile = lookup("single_pass", shape_class(x), x.device)
    height, width = x.shape[2:]
    rows = height if height * width <= tile.band else max(tile.band // width, 2 * (d // 2), 1)
    pixels = _side(min(rows, height) * width, tile.pixels)
    return replace(
        tile, rows=min(rows, height), pixels=pixels, channels=_side(m, tile.channels), depth=_side(c, tile.depth)
    )


def flat(kernel: str, x: torch.Tensor, channels: int, depth: int = 1) -> tuple[Tile, int, int]:
    """Of kernels that number pixels through all images: the tile, pixel tiles a group, and groups."""
    tile = lookup(kernel, shape_class(x), x.device)
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    sides = {"channels": _side(channels, tile.channels), "depth": _side(depth, tile.depth)}
    tile = replace(tile, pixels=_side(max(pixels, 1), tile.pixels), **sides)
    count = cdiv(pixels, tile.pixels)
    per_group = max(cdiv(count, GROUPS), 1)
    return tile, per_group, cdiv(count, per_group)
