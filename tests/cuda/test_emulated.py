"""Whole kernels on the CPU: what they compute, in every order of threads, against float64 and PyTorch."""

from __future__ import annotations

import pytest
import torch

from ghost_ops.backends import reference
from ghost_ops.backends.cuda.program import program
from ghost_ops.program import Depthwise, Excite, Ghost, Layer, Load, MaxPool, Store
from tests.cuda import emulate
from tests.cuda.emulate import Emulator
from tests.cuda.programs import draw_block, draw_chain, draw_other_block
from tests.helpers import assert_as_accurate, poisoned_memory, surrounded_by_nan
from tests.ops.cases import Errors, in_layout
from tests.program.cases import make_program, program_of_other_steps
from tests.program.drawn import draw_program

# What the planner must keep to: split, band, strip, step, chunks, threads, joined; 0 is free.
WISHES = (
    (), (1, 0, 0, 0, 0, 0, 0), (2, 0, 0, 0, 0, 0, 0), (1, 4, 4, 1, 0, 128, 0), (2, 3, 8, 2, 1, 128, 0),
    (1, 0, 0, 4, 0, 256, 0), (2, 0, 0, 1, 2, 256, 0), (0, 2, 0, 2, 0, 0, 0), (1, 0, 4, 0, 0, 512, 0),
)  # fmt: skip
JOINED = (
    (0, 0, 0, 0, 0, 0, 2), (0, 4, 0, 0, 0, 128, 2), (0, 3, 4, 1, 0, 128, 2), (2, 0, 0, 2, 2, 256, 2),
    (0, 0, 0, 0, 0, 0, 1), (0, 2, 0, 2, 3, 256, 2),
)  # fmt: skip
ORDERS = (0, 1, 2)


@pytest.fixture(autouse=True)
def _quick(one_thread):
    emulate.library()


def check(found, p, x, errors: Errors | None = None, what: str = "a program") -> None:
    """As PyTorch in the same dtype, with the same parameters.

    Over all cases twice PyTorch's error (``errors``). A case alone has a few hundred results, of which the largest
    error is a matter of luck: four times.
    """
    packed = reference.program_pack([t.to(x.dtype).float() for t in p.parameters], p.code)
    plain, exact = (reference.program(v, packed.to(v.dtype), p.code) for v in (x, x.double()))
    if errors is not None:
        errors.add(what, found, plain, exact)
    assert_as_accurate(found, plain, exact, 4.0, what=f"{what}: {p.steps} on {tuple(x.shape)}", ulps=8)


def ours(p, x, emulator: Emulator) -> torch.Tensor:
    packed = reference.program_pack([t.to(x.dtype).float() for t in p.parameters], p.code)
    with emulator.running(), poisoned_memory():
        return program(surrounded_by_nan(x), packed, p.code)


@pytest.mark.parametrize("dtype", emulate.DTYPES)
def test_drawn_bottlenecks(dtype):
    """Each is one call, in one launch or several; whatever the sizes, the result is PyTorch's."""
    errors = Errors()
    for seed in range(60):
        p, x = draw_block(seed)
        emulator = Emulator(seed % 3, WISHES[seed % len(WISHES)], seed % 2)
        found = ours(p, x.to(dtype), emulator)
        assert [len(blocks) for blocks in emulator.calls] == [1] and emulator.calls[0][0].primary, p.steps
        check(found, p, x.to(dtype), errors)
    errors.assert_within(2.0)


@pytest.mark.parametrize("dtype", emulate.DTYPES)
def test_drawn_blocks_of_other_nets(dtype):
    """Inverted residuals, separable convolutions and RepGhost's bottlenecks are bottlenecks to the kernels."""
    errors = Errors()
    for seed in range(30):
        p, x = draw_block(seed, draw=draw_other_block)
        emulator = Emulator(seed % 3, WISHES[seed % len(WISHES)], seed % 2)
        found = ours(p, x.to(dtype), emulator)
        assert [len(blocks) for blocks in emulator.calls] == [1] and emulator.calls[0][0].primary, p.steps
        check(found, p, x.to(dtype), errors)
    errors.assert_within(2.0)


@pytest.mark.parametrize("dtype", emulate.DTYPES)
def test_drawn_chains(dtype):
    """Blocks in a row are one call, in any number of launches; a launch may have parts of several blocks."""
    errors = Errors()
    for seed in range(36):
        p, x, blocks = draw_chain(seed)
        emulator = Emulator(seed % 3, JOINED[seed % len(JOINED)], seed // 2 % 2)
        x = in_layout(x.to(dtype), "channels_last" if seed % 2 else "nchw")
        found = ours(p, x, emulator)
        assert [len(each) for each in emulator.calls] == [blocks], p.steps
        check(found, p, x, errors)
    errors.assert_within(2.0)


@pytest.mark.parametrize("dtype", emulate.DTYPES)
def test_drawn_programs(dtype):
    """Steps of all kinds in any order: bottlenecks found in them or not, Ghost modules, what PyTorch runs."""
    for seed in range(25):
        p = draw_program(seed)
        x = torch.randn(1 + seed % 2, p.channels, 9, 11, generator=torch.Generator().manual_seed(seed)).to(dtype)
        x = in_layout(x, "channels_last" if seed % 2 else "nchw")
        found = ours(p, x, Emulator(seed % 3, WISHES[seed % 3 * 3]))
        assert found.dim() == 2 or found.is_contiguous(
            memory_format=torch.channels_last if seed % 2 else torch.contiguous_format
        )
        check(found, p, x)


@pytest.mark.parametrize("dtype", emulate.DTYPES)
def test_steps_without_kernels(dtype):
    p = program_of_other_steps()
    x = torch.randn(2, 5, 9, 11).to(dtype)
    emulator = Emulator()
    check(ours(p, x, emulator), p, x)
    assert len(emulator.calls) == 2
    pooled = make_program(Load(0, 3, False), MaxPool(0, 1, 3, 2, 2, 0), Store(1))
    assert torch.equal(ours(pooled, x[:, :3], Emulator()), torch.nn.functional.max_pool2d(x[:, :3], 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("wish", [*WISHES, *JOINED[:3]])
def test_the_order_of_threads_does_not_matter(wish, dtype):
    """A barrier that is missing would let one thread read what another has not written, or has overwritten."""
    for seed in range(4):
        p, x, *_ = draw_block(seed + 100) if wish in WISHES else draw_chain(seed + 100)
        x = torch.cat([x, -x]) if seed == 1 else x
        results = [ours(p, x.to(dtype), Emulator(order, wish, seed % 2)) for order in (*ORDERS, 3)]
        assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("dtype", emulate.DTYPES)
def test_a_second_module_that_needs_the_most_shared_memory(dtype):
    """Few expanded channels, many of the output."""
    p = make_program(
        Load(0, 8, True), Ghost(0, 1, -1, False, False, 8, 2, 2, 4, 3, Layer(), Layer()),
        Depthwise.same(0, 2, False, 8, 3, 1, Layer()), Ghost(2, 3, -1, False, False, 8, 100, 0, 100, 1, Layer(), None),
        Ghost(1, 4, 3, False, False, 4, 50, 50, 100, 3, Layer(), Layer()), Store(4),
    )  # fmt: skip
    emulator, x = Emulator(), torch.randn(1, 8, 5, 7).to(dtype)
    check(ours(p, x, emulator), p, x)
    assert [len(blocks) for blocks in emulator.calls] == [1] and emulator.calls[0][0].primary


def test_threads_that_part_are_an_error():
    parted = emulate.library().ghost_emulated_parted
    assert [parted(warps) for warps in (0, 1)] == [b"threads wait at different barriers"] * 2


BARRIERS = [
    (header.name, number)
    for header in sorted(emulate.CUDA.glob("*.h"))
    for number, line in enumerate(header.read_text().splitlines(), 1)
    if header.name != "device.h" and "sync_block();" in line
]


def telling_cases() -> list:
    """Bottlenecks with and without an excitation, in several steps and launches, so that every barrier is come by."""
    blocks = [draw_block(seed) for seed in range(100, 130)]
    excited = [any(isinstance(step, Excite) for step in p.steps) for p, _ in blocks]
    found = [case for case, has in zip(blocks, excited) if has][:5] + [c for c, has in zip(blocks, excited) if not has][
        :3
    ]
    wishes = ((1, 0, 0, 2, 0, 128, 0), (2, 0, 0, 2, 1, 256, 0), (1, 0, 0, 0, 0, 128, 0))
    return [(p, x, wish) for p, x in found for wish in wishes]


@pytest.mark.parametrize(("file", "line"), BARRIERS)
def test_every_barrier_is_missed(file, line):
    """Without any one of them some order of the threads makes another result: none is idle, and the test above sees."""
    lib = emulate.library()
    for p, x, wish in telling_cases():
        right = ours(p, x, Emulator(0, wish))
        lib.ghost_emulated_leave_out(file.encode(), line)
        try:
            if any(not torch.equal(ours(p, x, Emulator(order, wish)), right) for order in ORDERS):
                return
        except RuntimeError as error:
            assert "different barriers" in str(error)  # threads that come too early to the next one
            return
        finally:
            lib.ghost_emulated_leave_out(b"", 0)
    pytest.fail(f"nothing changes without the barrier in {file}:{line}")
