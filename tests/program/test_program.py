"""Programs: drawn ones against float64, packing, scratch memory."""

from __future__ import annotations

import pytest
import torch

from ghost_ops.activations import ACTIVATIONS, PRELU
from ghost_ops.backends import native, reference
from ghost_ops.ops.program import program, program_eval, program_pack
from ghost_ops.program import (
    BIAS,
    NORM,
    SLOPES,
    AvgPool,
    Depthwise,
    Excite,
    Ghost,
    Layer,
    Linear,
    Load,
    Pool,
    Scale,
    Slice,
    Squeeze,
    Store,
    encode,
    output_shape,
    step_kinds,
)
from tests.helpers import LAYOUTS, assert_as_accurate, make_map, poisoned_memory, surrounded_by_nan
from tests.ops.cases import DTYPES, Errors, in_layout
from tests.program.blocks import PLAIN, block, ghost
from tests.program.cases import conv, make_program, size_of
from tests.program.drawn import Call, draw_call, draw_program, mismatch

DRAWN = 70


@pytest.fixture(autouse=True)
def _quick(one_thread):
    """Where it is not threads that are tested."""


def run_packed(call: Call, guarded: bool = True) -> torch.Tensor:
    p = call.program
    packed, x = program_pack(list(p.parameters), p.code), call.x
    if guarded:
        packed = surrounded_by_nan(packed)
        x = surrounded_by_nan(x) if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last) else x
    return program(x, packed, p.code)


def leave_nan_behind(call: Call) -> None:
    """A call on NaN, whose memory the next call is given."""
    program_eval(torch.full_like(call.x, torch.nan), list(call.program.parameters), call.program.code)


# Values


def reads_excitations_in_place(call: Call) -> bool:
    """Whether ``program_eval`` reads the weights of an excitation where they lie, and so adds in another order: for one
    image, where no BatchNorm is folded in."""
    excites = [step for step in call.program.steps if isinstance(step, Excite)]
    return len(call.x) == 1 and any(not (step.reduce.parts | step.expand.parts) & NORM for step in excites)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_drawn_programs(threads, dtype):
    torch.set_num_threads(threads)
    errors, wrong = Errors(), []
    for seed in range(DRAWN):
        call = draw_call(seed, dtype, threads)
        leave_nan_behind(call)
        with poisoned_memory():
            ours = run_packed(call)
            now = program_eval(call.x, list(call.program.parameters), call.program.code)
        shape = output_shape(call.program.steps, len(call.x), *call.x.shape[2:])
        assert ours.shape == now.shape == shape and ours.dtype == now.dtype == dtype, f"seed {seed}: {call}"
        if not reads_excitations_in_place(call):
            assert torch.equal(ours, now), f"seed {seed}: packed before or packed now differ: {call}"
        found = [mismatch(call, ours, "result", errors), mismatch(call, now, "result", errors)]
        wrong += [f"seed {seed}: {text}" for text in found if text is not None]
    assert not wrong, f"{len(wrong)} of {DRAWN}\n" + "\n".join(wrong[:3])
    errors.assert_within(2.0)


def test_the_drawn_programs_are_of_every_kind():
    drawn = [draw_program(seed) for seed in range(DRAWN)]
    assert set.union(*(p.kinds() for p in drawn)) == set(step_kinds().values())
    steps = [step for p in drawn for step in p.steps]
    ghosts = [s for s in steps if isinstance(s, Ghost)]
    assert {s.layer.act for s in ghosts} == {s.cheap.act for s in ghosts if s.cheap} == set(range(len(ACTIVATIONS)))
    assert (
        {s.kernel for s in ghosts if s.cheap_channels}
        == {s.kernel[0] for s in steps if isinstance(s, Depthwise) and s.is_same}
        == {1, 3, 5, 7}
    )
    assert {s.gate for s in steps if isinstance(s, Excite)} == set(range(4))
    assert {s.cheap_channels // s.primary for s in ghosts} >= {0, 1, 2, 3}
    assert {s.stride[0] for s in steps if isinstance(s, Depthwise) and s.is_same} == {1, 2, 3}
    for trait in ("residual", "sliced", "scaled", "squeeze"):
        has = {
            "residual": lambda s: s.residual >= 0,
            "sliced": lambda s: 0 < s.out_channels - s.primary < s.cheap_channels,
        }
        assert sum(bool(has.get(trait, lambda s: getattr(s, trait))(s)) for s in ghosts) > 10, trait  # noqa: B023


# Steps that need the same kind of memory, and run a few rows at a time: each its own.
INTERLEAVED = {
    "cheap operations of other ratios": (ghost(0, 1, 8, 4, 8), ghost(1, 2, 12, 8, 16), Store(2)),
    "residuals": (ghost(0, 1, 8, 3, 5 + 1, 8, residual=0), ghost(1, 2, 8, 8, 0, residual=0), Store(2)),
    "residuals of other widths": (
        ghost(0, 1, 8, 12, 12), ghost(1, 2, 24, 8, 16, residual=1), ghost(2, 3, 24, 24, 0, residual=2), Store(3),
    ),
    "squeezes": (ghost(0, 1, 8, 4, 4, squeeze=True), ghost(1, 2, 8, 4, 4, squeeze=True), Pool(8)),
    "squeezes of two kinds": (
        Depthwise.same(0, 1, True, 8, 3, 1, PLAIN), ghost(1, 2, 8, 4, 4, squeeze=True), Pool(8),
    ),
    "excitations": (
        ghost(0, 1, 8, 4, 4, squeeze=True), Excite(8, 4, 2, PLAIN, PLAIN), ghost(1, 2, 8, 4, 4, scaled=True),
        ghost(2, 3, 8, 4, 4, scaled=True), Store(3),
    ),
    "a map times an excitation": (
        ghost(0, 1, 8, 4, 4, squeeze=True), Excite(8, 4, 2, PLAIN, PLAIN), Scale(1, 2, False, 8),
        conv(2, 3, 8, 9, squeeze=True), Excite(9, 4, 1, PLAIN, PLAIN), Scale(3, 4, True, 9), Pool(9),
    ),
    "means of maps": (
        Squeeze(0, 8), Excite(8, 3, 2, PLAIN, PLAIN), ghost(0, 1, 8, 7, 7, 13, scaled=True), Squeeze(1, 13),
        Excite(13, 3, 2, PLAIN, PLAIN), Scale(1, 2, False, 13), Slice(2, 3, 5, 9), Squeeze(3, 4), Pool(4),
    ),
    "a slot again": (ghost(0, 1, 8, 4, 4), ghost(1, 0, 8, 8, 8), ghost(0, 1, 16, 3, 3), Store(1)),
    "strides": (
        Depthwise.same(0, 1, False, 8, 5, 2, PLAIN), ghost(1, 2, 8, 4, 4, 7, 5),
        Depthwise.same(2, 3, False, 7, 7, 3, PLAIN), Store(3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", INTERLEAVED)
def test_steps_in_turn(name, threads):
    torch.set_num_threads(threads)
    p = make_program(Load(0, 8, True), *INTERLEAVED[name])
    for shape in ((1, 8, 40, 41), (4, 8, 23, 23)):
        call = Call(p, make_map(shape), threads)
        assert_as_accurate(run_packed(call), call.plain(), call.exact(), what=str(shape))


# Steps behind a convolution, through whose rows threads go in bands: up to a map that later steps read, too.
IN_BANDS = {
    "all": (ghost(0, 1, 16, 8, 8), Store(1)),
    "residuals, kernels of other sizes": (
        ghost(0, 1, 16, 12, 12, kernel=5), ghost(1, 2, 24, 8, 8, residual=0), ghost(2, 3, 16, 5, 5, 8, kernel=1),
        Store(3),
    ),
    "a bottleneck of stride 2, then one with an excitation": (
        ghost(0, 1, 16, 24, 24, 44),
        Depthwise.same(1, 2, False, 44, 3, 2, PLAIN), Depthwise.same(0, 3, False, 16, 5, 2, PLAIN),
        ghost(3, 4, 16, 12, 0), ghost(2, 5, 44, 6, 6, residual=4), ghost(5, 6, 12, 20, 20),
        Depthwise.same(6, 7, True, 40, 3, 1, PLAIN), Excite(40, 9, 1, PLAIN, PLAIN),
        ghost(7, 1, 40, 6, 6, scaled=True, residual=5, squeeze=True), Pool(12), Linear(12, 7, PLAIN),
    ),
    "nothing but a convolution": (Store(0),),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("name", IN_BANDS)
def test_bands_of_rows(name, threads, dtype):
    torch.set_num_threads(threads)
    p = make_program(conv(-1, 0, 3, 16, 3, 2, 1, Layer(BIAS, 0.0, 1)), *IN_BANDS[name], slots=8)
    for shape, layout in (((1, 3, 401, 61), "nchw"), ((threads + 1, 3, 301, 90), "channels_last")):
        call = Call(p, in_layout(make_map(shape, dtype), layout), threads)
        leave_nan_behind(call)
        with poisoned_memory():
            ours = run_packed(call)
        assert_as_accurate(ours, call.plain(), call.exact(), what=str(shape))
        assert all(torch.equal(run_packed(call), ours) for _ in range(10))


def test_bands_do_not_write_into_rows_of_others():
    """The last step of a band makes y1 ahead of the rows that it finishes: these rows are another thread's."""
    silu = Layer(BIAS, 0.0, 5)
    module = Ghost(0, 1, -1, False, False, 16, 64, 64, 128, 3, silu, silu)
    p = make_program(conv(-1, 0, 2, 16, 2, 2, 1, PLAIN), module, Store(1))
    packed, x = program_pack(list(p.parameters), p.code), make_map((1, 2, 40, 41))
    torch.set_num_threads(1)
    expected = program(x, packed, p.code)
    torch.set_num_threads(2)
    assert all(torch.equal(program(x, packed, p.code), expected) for _ in range(10000))


@pytest.mark.parametrize("features", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("batch", [0, 1, 3, 9])
def test_batches(batch, threads, dtype, features):
    torch.set_num_threads(threads)
    p = block(features)
    for layout in ("nchw", "channels_last", "strided"):
        x = in_layout(make_map((batch, 3, 45, 53), dtype), layout)
        call = Call(p, x, threads)
        ours = run_packed(call)
        assert ours.dtype == dtype and ours.shape == ((batch, 10) if features else (batch, 37, 23, 27))
        if batch:
            assert_as_accurate(ours, call.plain(), call.exact(), what=layout)
            alone = torch.cat([run_packed(Call(p, x[i : i + 1], threads)) for i in range(batch)])
            largest, eps = float(ours.abs().max()), torch.finfo(dtype).eps
            torch.testing.assert_close(ours, alone, rtol=0, atol=8 * eps * largest)


@pytest.mark.parametrize("threads", [1, 3])
def test_again_bit_for_bit(threads):
    torch.set_num_threads(threads)
    for shape, layout in (((1, 3, 64, 64), "channels_last"), ((4, 3, 40, 40), "nchw")):
        call = Call(block(), make_map(shape, layout=layout), threads)
        packed = program_pack(list(call.program.parameters), call.program.code)
        first = program(call.x, packed, call.program.code)
        for _ in range(40):
            assert torch.equal(program(call.x, packed, call.program.code), first)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_single_pixels_and_rows(size):
    relu = Layer(BIAS, 0.0, 1)
    p = make_program(
        Load(0, 5, True), Ghost(0, 1, -1, False, False, 5, 7, 7, 13, 7, relu, relu),
        Depthwise.same(1, 2, True, 13, 7, 2, relu), Excite(13, 3, 1, relu, PLAIN),
        Ghost(2, 3, -1, True, True, 13, 9, 9, 18, 5, relu, relu), Pool(18),
    )  # fmt: skip
    for batch in (1, 9):
        call = Call(p, make_map((batch, 5, *size)))
        assert_as_accurate(run_packed(call), call.plain(), call.exact())


@pytest.mark.parametrize("kind", ["nchw", "channels_last"])
def test_inputs_that_are_no_dense_maps(kind):
    p, x = block(False), make_map((3, 3, 21, 19), layout=kind)
    wide = make_map((3, 5, 25, 44), layout=kind)
    inputs = {
        "channels": wide[:, 1:4, :21, :19], "steps": wide[:, :3, 2:23, ::2][..., :19], "batch": x[1:],
        "transposed": make_map((3, 3, 19, 21), layout=kind).transpose(2, 3), "expanded": x[:1].expand(4, -1, -1, -1),
        "one row": x[:, :, :1].expand(-1, -1, 21, -1), "one channel": x[:, :1].expand(-1, 3, -1, -1),
    }  # fmt: skip
    for name, view in inputs.items():
        ours = run_packed(Call(p, view), guarded=False)
        whole = run_packed(Call(p, view.contiguous()), guarded=False)
        torch.testing.assert_close(ours, whole, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    "step", [Depthwise.same(0, 1, False, 8, 7, 1, PLAIN), AvgPool(0, 1, 8, (3, 3), (1, 1), (1, 1), True)]
)
def test_rows_outside_of_a_map_that_is_part_of_a_wider_one(step):
    """Each pixel of such a map is far from the next one; so are the zeros that stand for its neighbours."""
    p = make_program(Load(0, 8, True), step, Store(1))
    wide = torch.full((1, 256, 6, 40), torch.nan).to(memory_format=torch.channels_last)
    wide[:, 8:16] = make_map((1, 8, 6, 40))
    call = Call(p, wide[:, 8:16])
    leave_nan_behind(call)
    with poisoned_memory():
        ours = run_packed(call, guarded=False)
    assert_as_accurate(ours, call.plain(), call.exact())


def test_the_layout_of_the_result_is_that_of_the_input():
    p = block(False)
    for layout, memory_format in LAYOUTS.items():
        for dtype in DTYPES:
            out = run_packed(Call(p, make_map((2, 3, 14, 15), dtype, layout)))
            assert out.is_contiguous(memory_format=memory_format)


def test_a_program_that_only_loads_and_stores():
    x = make_map((2, 5, 3, 4))
    for dtype in DTYPES:
        out = program(x.to(dtype), torch.zeros(0), encode([Load(0, 5, False), Store(0)], 1))
        assert torch.equal(out, x.to(dtype)) and out.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_dtypes_that_go_to_the_reference(dtype):
    call = Call(block().to(dtype), make_map((2, 3, 14, 15), dtype))
    expected = reference.program_eval(call.x, call.program.parameters, call.program.code)
    assert torch.equal(program_eval(call.x, list(call.program.parameters), call.program.code), expected)
    packed = program_pack(list(call.program.parameters), call.program.code)
    assert packed.dtype == torch.float32
    assert_as_accurate(program(call.x.double(), packed.double(), call.program.code).float(), call.plain().float(),
                       call.exact())  # fmt: skip


# Packing


def test_packing_is_that_of_the_reference():
    for seed in range(DRAWN):
        p = draw_program(seed)
        ours, theirs = program_pack(list(p.parameters), p.code), reference.program_pack(p.parameters, p.code)
        assert ours.shape == theirs.shape == (size_of(p.code),), f"seed {seed}"
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6, msg=lambda text, seed=seed: f"{seed}: {text}")


def test_a_packed_program_runs_on_the_reference():
    for seed in range(0, DRAWN, 3):
        call = draw_call(seed, torch.float32, 1)
        packed = program_pack(list(call.program.parameters), call.program.code)
        x, code = call.x.double(), call.program.code
        exact = call.exact()
        error = (reference.program(x, packed.double(), code) - exact).norm()
        assert error <= 1e-6 * exact.norm() + 4 * (call.plain() - exact).norm(), f"seed {seed}"


def test_parameters_in_other_memory_and_other_shapes():
    p, x = block(), make_map((2, 3, 14, 15))
    want = program_eval(x, list(p.parameters), p.code)
    turned = [t.transpose(0, 1).contiguous().transpose(0, 1) if t.dim() > 1 else t for t in p.parameters]
    assert torch.equal(program_eval(x, turned, p.code), want)
    linear = [t.flatten(1) if t.dim() == 4 and t.shape[1] > 1 and t.shape[2] == 1 else t for t in p.parameters]
    assert sum(t.dim() == 2 for t in linear) > 4
    assert torch.equal(program_eval(x, linear, p.code), want)
    packed = program_pack(list(p.parameters), p.code)
    apart = torch.stack([packed, packed], 1)[:, 0]
    assert not apart.is_contiguous() and torch.equal(program(x, apart, p.code), want)
    rounded = packed.bfloat16()
    torch.testing.assert_close(program(x, rounded, p.code), program(x, rounded.float(), p.code), rtol=0, atol=0)


def test_one_slope_and_many():
    steps = Load(0, 5, True), ghost(0, 1, 5, 4, 4), Store(1)
    prelu = Layer(SLOPES, 0.0, PRELU)
    steps = steps[0], Ghost(0, 1, -1, False, False, 5, 4, 4, 7, 3, prelu, prelu), steps[2]
    x, (w1, _, w2, _) = make_map((2, 5, 6, 7)), make_program(*steps).parameters
    one = program_eval(x, [w1, torch.tensor([0.3]), w2, torch.tensor([0.3])], encode(steps, 2))
    many = program_eval(x, [w1, torch.full((4,), 0.3), w2, torch.full((4,), 0.3)], encode(steps, 2))
    assert torch.equal(one, many)


# Scratch memory


def test_scratch_is_known_before_a_call():
    p = block()
    assert native.program_scratch(p.code, 1, 64, 64) > 0 or not native.available()
    assert native.program_scratch(p.code, 8, 64, 64) >= native.program_scratch(p.code, 1, 64, 64)
    if native.available():
        with pytest.raises(ValueError, match="expected a program that takes a 64 x 64 map"):
            native.program_scratch(p.code[:-1], 1, 64, 64)


@pytest.mark.skipif(not native.available(), reason="scratch memory is the native kernels'")
def test_of_maps_in_between_only_rows_in_use_are_kept():
    chain = (ghost(0, 1, 8, 24, 24), ghost(1, 2, 48, 4, 4), ghost(2, 3, 8, 24, 24, kernel=5, residual=-1))
    p = make_program(Load(0, 8, False), *chain, Depthwise.same(3, 4, False, 48, 3, 2, PLAIN), Store(4))
    tall, low = (native.program_scratch(p.code, 1, h, 64) for h in (800, 400))
    ends = 4 * (400 * 64 * 8 + 200 * 32 * 48)  # what is read and what is returned, bytes of the rows that are more
    assert abs(tall - low - ends) < 1024
