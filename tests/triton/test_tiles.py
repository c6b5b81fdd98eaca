"""The tile table: its form, its choice by architecture, and what overrides it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

pytest.importorskip("triton")
from ghost_ops.backends.triton import launch, tiles

ROOT = Path(__file__).resolve().parents[2]


def _tuning():
    spec = importlib.util.spec_from_file_location("tune_triton", ROOT / "benchmarks/tune_triton.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_whole():
    table = tiles.table()
    assert set(table) == {"default", *tiles.ARCHITECTURES}
    classes = [f"{size}/{kind}" for size in ("large", "small") for kind in ("half", "float")]
    wanted = {f"{kernel}/{shape}" for kernel in tiles.KERNELS for shape in classes}
    assert set(table["default"]) == wanted - {"module/large/float", "module/small/float"}
    for rows in table.values():
        for tile in rows.values():
            found = tiles.Tile(**tile)
            for side in (
                found.pixels,
                found.channels,
                found.depth,
                found.one_step,
                found.columns,
                found.values,
                found.warps,
            ):
                assert side & (side - 1) == 0


def test_an_architecture_may_differ_from_the_default(tmp_path, monkeypatch):
    table = json.loads(json.dumps(tiles.table()))
    table["sm_90"]["product/small/half"] = {"pixels": 32}
    path = tmp_path / "tiles.json"
    path.write_text(json.dumps(table))
    monkeypatch.setenv("GHOST_OPS_TILES", str(path))
    x = torch.empty(4, 8, 14, 14, dtype=torch.float16)
    for name, pixels in (("sm_90", 32), ("sm_80", 128), ("sm_75", 128)):
        with tiles.assume(name):
            found, _, _ = tiles.flat("product", x, 336, 64)
        assert (found.pixels, found.channels) == (pixels, 64)


def test_override():
    x = torch.empty(1, 8, 56, 56)
    before = tiles.strips("stencil", x, 36)
    with tiles.override("stencil", columns=4):
        inside, splits, per_split, _ = tiles.strips("stencil", x, 36)
        assert (inside.columns, splits * per_split >= 14 * 56) == (4, True)
    assert tiles.strips("stencil", x, 36) == before
    for kernel, sides in (("nothing", {}), ("product", {"width": 3})):
        with pytest.raises(ValueError, match=r"tiles.override: expected"), tiles.override(kernel, **sides):
            pass


@pytest.mark.parametrize("side", [1, 7, 28, 29, 112, 1000])
@pytest.mark.parametrize("n", [0, 1, 256, 5000])
@pytest.mark.parametrize("channels", [1, 12, 36, 100, 960])
def test_strips_cover_the_map(side, n, channels):
    x = torch.empty(n, 8, side, side, device="meta")
    tile, splits, per_split, vectors = tiles.strips("stencil", x, channels)
    assert vectors is None
    across, blocks = -(-side // tile.columns), -(-channels // tile.channels)
    assert splits % across == 0 and (splits // across - 1) * per_split < side <= splits // across * per_split
    assert n * splits * blocks < max(2 * tiles.PROGRAMS, 2 * n * across * blocks)
    assert per_split >= min(tiles.LEAST_ROWS, side)
    assert tile.columns * tile.channels <= 32 * tile.values * tile.warps or tile.columns == 1
    idle = blocks * tile.channels - channels
    assert idle < 16, "no block of channels is idle where a smaller one would do"


@pytest.mark.parametrize("n", [1, 256])
@pytest.mark.parametrize("width", [1, 5, 7, 14, 17, 28, 56, 112])
@pytest.mark.parametrize(("channels", "unit"), [(6, 2), (8, 8), (12, 4), (20, 4), (36, 4), (60, 4), (100, 4), (960, 8)])
def test_flat_tiles_cover_the_map(n, width, channels, unit):
    """Each channel of each column is a lane's once, and the others' columns are past the map or their channels past
    the last: computed as ``maps.tile_coords`` does."""
    for dtype, taps in ((torch.float16, 1), (torch.float16, 25), (torch.float32, 9)):
        x = torch.empty(n, 8, 6, width, dtype=dtype, device="meta")
        strips = tiles.strips("stencil_gradient", x, channels, taps, unit=unit)
        plain = tiles.strips("stencil_gradient", x, channels, taps)
        tile, vectors, side = strips.tile, strips.vectors, strips.tile.channels
        if vectors is None:
            assert strips == plain and unit < plain.tile.values
            continue
        assert tile.columns == tiles.LANES and tile.warps == 1 and unit % side == 0
        assert vectors <= tiles.MOST_VECTORS
        assert vectors * 2 ** tiles.doublings(vectors) >= tiles.LANES, "not all lanes are added to the first"
        blocks, across = -(-channels // (side * vectors)), -(-width * vectors // tile.columns)
        assert strips.blocks(channels) == blocks
        assert strips.splits == across * -(-6 // strips.per_split)
        seen = []
        for block in range(blocks):
            for lane in range(across * tile.columns):
                column, channel = lane // vectors, (block * vectors + lane % vectors) * side
                if column < width and channel < channels:
                    seen += [(column, channel + i) for i in range(side)]
        assert len(seen) == len(set(seen)) == width * channels


def test_all_flat_tiles_have_the_same_sides():
    """So that the maps of a net share kernels."""
    found = set()
    for width in (7, 14, 28, 56, 112):
        for channels in (16, 20, 24, 36, 40, 60, 80, 92, 100, 112, 240, 336, 480, 960):
            for n in (32, 96, 256):
                x = torch.empty(n, 8, width, width, dtype=torch.float16, device="meta")
                tile, _, _, vectors = tiles.strips(
                    "stencil_gradient", x, channels, 9, unit=launch.unit(counts=(channels,))
                )
                found.add((tile.columns, tile.channels, tile.warps, tiles.doublings(vectors)))
    assert found == {(tiles.LANES, 4, 1, 3)}


@pytest.mark.parametrize(
    ("channels", "width", "valid"),
    [(24, 112, 1.0), (36, 56, 0.98), (12, 56, 0.87), (20, 28, 0.87), (8, 112, 1.0), (92, 14, 0.83), (480, 7, 0.87)],
)
def test_few_lanes_of_flat_tiles_are_idle(channels, width, valid):
    x = torch.empty(256, 8, width, width, dtype=torch.float16, device="meta")
    tile, _, _, vectors = tiles.strips("stencil_gradient", x, channels, 9, unit=4)
    blocks, across = -(-channels // (tile.channels * vectors)), -(-width * vectors // tile.columns)
    assert width * channels >= valid * blocks * across * tile.columns * tile.channels


def test_short_vectors_are_taken_where_many_lanes_would_be_idle():
    """Of two channels, where a thread has registers for four: 6 of 8 channels are there, 26 of 32."""
    for channels, width, flat in ((18, 112, True), (64, 112, False)):
        x = torch.empty(256, 8, width, width, dtype=torch.float16, device="meta")
        assert (tiles.strips("stencil_gradient", x, channels, 9, unit=2).vectors is not None) == flat


def test_kernels_without_flat_tiles_get_none():
    x = torch.empty(1, 12, 56, 56, dtype=torch.float16, device="meta")
    strips = tiles.strips("stencil", x, 12, 9, unit=4)
    kernel = mock.Mock(arg_names=["BW", "BM"], __name__="some_kernel")
    assert strips.vectors is not None
    with pytest.raises(TypeError, match="some_kernel takes no flat tile"):
        strips.start(kernel, x, 12, {})


@pytest.mark.parametrize(
    ("channels", "block"), [(5, 8), (8, 8), (12, 16), (24, 32), (36, 64), (60, 64), (100, 64), (336, 64)]
)
def test_rows_that_are_products_have_few_blocks(channels, block):
    """Each block reads all of the input: idle channels cost less than a block more."""
    for n, side in ((1, 224), (256, 112), (3, 17)):
        x = torch.empty(n, 8, side, side, dtype=torch.float16, device="meta")
        tile, splits, per_split, _ = tiles.products_of_strips("module", x, channels)
        across = -(-side // tile.columns)
        assert tile.channels == block and tile.columns >= tiles.LEAST
        assert (splits // across - 1) * per_split < side <= splits // across * per_split


@pytest.mark.parametrize("channels", [8, 24, 480])
def test_runs_are_as_many_programs_as_a_device_holds(channels):
    """Where there is work for them, and else a tile each."""
    for n, side in ((0, 56), (1, 7), (256, 7), (256, 14), (3, 56), (256, 112)):
        x = torch.empty(n, 8, side, side, device="meta", dtype=torch.float16)
        for architecture in tiles.ARCHITECTURES:
            with tiles.assume(architecture):
                tile, per_group, groups = tiles.flat("product", x, channels, 8)
                blocks = -(-channels // tile.channels)
                count = -(-n * side * side // tile.pixels)
                resident = tiles.PROCESSORS[architecture] * tile.resident
                assert (groups - 1) * per_group < count <= groups * per_group or count == groups == 0
                assert groups * blocks <= 2 * max(resident, blocks)
                assert per_group == 1 or groups * blocks > resident / 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("channels", [8, 20, 56, 80, 200])
def test_runs_of_one_image_each(channels, dtype):
    """Few pixels of a tile are idle, and a thread has registers for it."""
    for n, height, width in ((0, 56, 56), (1, 1, 1), (256, 7, 7), (256, 14, 14), (3, 28, 28), (64, 9, 31)):
        x = torch.empty(n, 8, height, width, device="meta", dtype=dtype)
        for architecture in tiles.ARCHITECTURES:
            with tiles.assume(architecture):
                for depth in (8, 960):
                    tile, per_group, groups = tiles.flat("product", x, channels, depth, of_images=True)
                    known = tiles.lookup("product", tiles.shape_class(x), x.device)
                    count = n * -(-height * width // tile.pixels)
                    assert (groups - 1) * per_group < count <= groups * per_group or count == groups == 0
                    values = tile.pixels * tile.channels // (tile.warps * 32)
                    assert values <= max(tiles.VALUES_OF_STEPS, known.pixels * known.channels // (tile.warps * 32))
                    assert tile.pixels < 2 * height * width or tile.pixels == tiles.LEAST


def test_tuning_writes_a_table_that_is_read_again():
    tuning, table = _tuning(), tiles.table()
    assert json.loads(tuning.layout(table)) == table
    assert tuning.layout(table) == Path(tiles.__file__).with_name("tiles.json").read_text()
    for kernel, names in tuning.SIDES.items():
        assert kernel in tiles.KERNELS
        for tile in list(tuning.candidates(kernel))[:3]:
            assert set(tile) == set(names)
            with tiles.override(kernel, **tile):
                pass


def test_the_benchmark_works():
    """Once through everything that can be run without a device."""
    command = [sys.executable, "benchmarks/gpu.py", "--dry-run", "--part", "modules", "--part", "train"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert "ghost_ops.freeze" in done.stdout and "ghost_ops.fuse, memory=low" in done.stdout
    assert "Error" not in done.stdout and "wrong" not in done.stdout, done.stdout
