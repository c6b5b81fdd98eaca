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
SIZES = ((160, 1), (320, 256))  # sides and batches


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


def launches(batch: int) -> list[tuple[tuple[str, ...], plan.Launch]]:
    """Of GhostNet-100 at 224 x 224 on an H200, in float16: what each launch computes something of."""
    ((names, found),) = plans("100", 224, batch, H200)
    return [(names[one.first : one.last + 1], one) for one in found.launches]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("width", ["050", "100", "130"])
def test_every_layer_has_a_plan(width, device):
    for (side, batch), dtype in itertools.product(SIZES, (torch.float16, torch.float32)):
        found = plans(width, side, batch, DEVICES[device], dtype)
        names = [name for names, _ in found for name in names]
        assert sum(name.startswith("bottleneck") for name in names) == 16, (side, batch)
        assert [len(names) for names, _ in found] == [20], "one chain, from the image to the logits"
        for launch in (launch for _, p in found for launch in p.launches):
            assert 0 < launch.shared <= DEVICES[device][1] and launch.threads <= 512


@pytest.mark.parametrize("batch", [1, 256])
def test_the_launches_of_a_whole_net(batch):
    """Each is a node of a CUDA graph, and nothing else is: there is no step that PyTorch runs."""
    found = launches(batch)
    assert len(found) <= (25 if batch == 1 else 36)
    assert found[0][0][0] == "convolution 3 to 16 on 112 x 112" and found[-1][0] == ("linear layer 1280 to 1000",)


def test_excitations_are_split_at_the_squeeze():
    """With images enough for every processor: the expanded map is computed once, and so is each excitation."""
    for batch in (1, 256):
        for names, one in launches(batch):
            inner = range(one.first + one.begins_within, one.last + 1 - one.ends_within)
            assert len(names) == 1 or not EXCITED.intersection(names[i - one.first] for i in inner)
    assert sum(one.excites for _, one in launches(256)) >= 4
    assert not any(one.excites for _, one in launches(1)), "a few images need no launch for it"


EXCITED = {
    f"bottleneck {sizes}"
    for sizes in (
        "72 to 40 on 56 x 56", "40 to 40 on 28 x 28", "80 to 112 on 14 x 14", "112 to 112 on 14 x 14",
        "112 to 160 on 14 x 14",
    )
}  # fmt: skip


def test_one_image_is_shared_by_many_thread_blocks():
    """By eight and more; 7 x 7 pixels by one for each row at least."""
    for names, one in launches(1):
        least = 7 if all(name.endswith("7 x 7") for name in names) else 8
        assert one.bands * one.strips * one.chunks >= least, names


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
    """What docs/performance/gpu.md says: elements an image of GhostNet-100 to the logits, fused and by module."""
    ((_, found),) = plans("100", 224, 256, H200)
    fused, by_module = (getattr(found, k) / 256 / 2e6 for k in ("fused", "by_module"))
    assert 3.7 < fused < 4.1 and 7.4 < by_module < 8.2


def test_bytes_of_one_block_by_hand():
    """Identity shortcut, no stride, an image a block: x and the output; by module x twice and the expanded map."""
    seed = next(s for s in range(500) if _is_plain(draw_block(s)[0].steps))
    p, _ = draw_block(seed)
    one, two = p.steps[1], p.steps[2]
    emulator = emulate.Emulator()
    with emulator.running():
        x = torch.randn(3, p.channels, 1, 5)
        program(x, reference.program_pack(parameters_for(p.steps), p.code), p.code)
    ((block,),) = emulator.calls
    found = plan.ask(emulate.library(), tuple(block.numbers(1, 5)), 4, 3, 1, 227 << 10)
    assert [launch.piece for launch in found.launches] == ["whole"] and two.residual == 0
    expanded = one.primary + one.cheap_channels
    assert found.fused == 3 * 5 * 4 * (p.channels + two.out_channels)
    assert found.by_module == 3 * 5 * 4 * (2 * p.channels + two.out_channels + 2 * expanded)


def _is_plain(steps) -> bool:
    return len(steps) == 4 and steps[2].residual == 0
