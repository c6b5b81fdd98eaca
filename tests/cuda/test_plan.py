"""The planner, on the host: every layer of the nets on every kind of device, and the bytes that it counts."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch

from ghost_ops import freeze, models
from ghost_ops.backends import reference
from ghost_ops.backends.cuda import plan
from ghost_ops.backends.cuda.program import describe, program
from ghost_ops.backends.cuda.weights import Block
from ghost_ops.fused import FrozenProgram
from tests.cuda import emulate
from tests.cuda.programs import draw_block
from tests.program.cases import parameters_for

H200 = emulate.H200
DEVICES = {"sm_80": (108, 163 << 10), "sm_89": (128, 99 << 10), "sm_90": H200}
SIDES, BATCHES = (160, 320), (1, 256)


@functools.cache
def frozen(width: str) -> FrozenProgram:
    net = freeze(getattr(models, f"ghostnet_{width}")().eval())
    return next(m for m in net.modules() if isinstance(m, FrozenProgram))


@functools.cache
def plans(width: str, side: int, batch: int, device: tuple[int, int], dtype=torch.float16):
    library = emulate.library()
    find = lambda numbers, dtype, images, _: plan.ask(library, numbers, dtype.itemsize, images, *device)
    x = torch.empty((), dtype=dtype).expand(batch, 3, side, side)
    program = frozen(width)
    return describe(x, program.packed, program.steps, find)


def bottlenecks(batch: int) -> list[tuple[str, plan.Plan]]:
    """Of GhostNet-100 at 224 x 224 on an H200, in float16."""
    return [(name, p) for name, p in plans("100", 224, batch, H200) if name.startswith("bottleneck")]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("width", ["050", "100", "130"])
def test_every_layer_has_a_plan(width, device):
    """In float32 the widest maps need more shared memory than some devices have: there the next backend runs."""
    for side, batch, dtype in itertools.product(SIDES, BATCHES, (torch.float16, torch.float32)):
        found = plans(width, side, batch, DEVICES[device], dtype)
        if dtype == torch.float32 and device != "sm_90":
            continue
        assert sum(name.startswith("bottleneck") for name, _ in found) == 16, (side, batch)
        launches = [launch for _, p in found for launch in p.launches]
        assert all(0 < launch.shared <= DEVICES[device][1] and launch.threads <= 512 for launch in launches)


def test_excitations_are_split_at_the_squeeze():
    """With images enough for every processor: the expanded map is computed once, and so is each excitation."""
    for name, p in bottlenecks(256):
        pieces = [launch.piece for launch in p.launches]
        assert pieces in (["whole"], ["expand", "excite", "project"], ["expand", "project"]), name
    (_, few), *_ = [(n, p) for n, p in bottlenecks(1) if n == "bottleneck 24 to 40 on 56 x 56"]
    assert [launch.piece for launch in few.launches] == ["expand", "project"], "a few images need no launch for it"


def test_one_image_is_shared_by_many_thread_blocks():
    """By eight and more; 7 x 7 pixels without an excitation by four, of two rows, since another launch costs more."""
    for name, p in bottlenecks(1):
        first = p.launches[0]
        few = name.endswith("7 x 7") and first.piece == "whole"
        assert first.bands * first.strips * first.chunks >= (4 if few else 8), name


def a_block(**fields: int) -> list[int]:
    """Of a few channels, its parameters at places where no kernel looks here."""
    conv = (0, 0, -1, 0)
    values = {"channels": 8, "primary2": 8, "kept2": 16, "multiplier2": 1, "second": conv, "cheap2": conv, **fields}
    if values.get("primary"):
        values |= {"multiplier": 1, "first": conv, "cheap": conv, "depthwise": conv}
    return Block(**values).numbers(values["height"], values["width"])


def test_maps_and_batches_that_32_bits_do_not_count():
    """Pixels of an image, blocks of a launch."""
    for side in (5_000, 8_191):
        for primary in (0, 8):
            found = ask(a_block(height=side, width=side, primary=primary))
            assert 0 < found.shared <= H200[1]
            assert found.fused > 2 * side**2 * 8
    assert ask(a_block(height=46_341, width=46_341)) is None, "more elements in an image than 31 bits count"
    small = a_block(height=7, width=7)
    assert ask(small, 2**31 - 1) is not None and ask(small, 2**31) is None


def ask(block: list[int], images: int = 1) -> plan.Plan | None:
    return plan.ask(emulate.library(), tuple(block), 2, images, *H200)


def test_bytes_that_are_saved():
    """What docs/performance/gpu.md says: elements an image of GhostNet-100's bottlenecks, fused and by module."""
    found = [p for _, p in bottlenecks(256)]
    fused, by_module = (sum(getattr(p, k) for p in found) / 256 / 2e6 for k in ("fused", "by_module"))
    assert 3.6 < fused < 4.2 and 7.2 < by_module < 7.8
    assert all(p.fused < p.by_module for p in found if len(p.launches) == 1)


def test_bytes_of_one_block_by_hand():
    """Identity shortcut, no stride, an image a block: x twice and the output; by module the expanded map as well."""
    seed = next(s for s in range(500) if _is_plain(draw_block(s)[0].steps))
    p, _ = draw_block(seed)
    one, two = p.steps[1], p.steps[2]
    emulator = emulate.Emulator()
    with emulator.running():
        x = torch.randn(3, p.channels, 1, 5)
        program(x, reference.program_pack(parameters_for(p.steps), p.code), p.code)
    (block,) = emulator.calls
    found = plan.ask(emulate.library(), tuple(block.numbers(1, 5)), 4, 3, 1, 227 << 10)
    assert [launch.piece for launch in found.launches] == ["whole"] and two.residual == 0
    expanded = one.primary + one.cheap_channels
    assert found.fused == 3 * 5 * 4 * (2 * p.channels + two.out_channels)
    assert found.by_module == 3 * 5 * 4 * (2 * p.channels + two.out_channels + 2 * expanded)


def _is_plain(steps) -> bool:
    return len(steps) == 4 and steps[2].residual == 0
