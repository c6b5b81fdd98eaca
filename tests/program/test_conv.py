"""Dense convolutions in programs: drawn ones against float64, in turn with other steps, in bands, on every set."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from math import gcd
from pathlib import Path

import pytest
import torch

from ghost_ops.activations import ACTIVATIONS, PRELU, WITH_NUMBER
from ghost_ops.backends import native, reference
from ghost_ops.ops.program import program, program_eval, program_pack
from ghost_ops.program import (
    BFLOAT16,
    BIAS,
    NORM,
    SLOPES,
    Conv,
    Depthwise,
    Excite,
    Ghost,
    Layer,
    Linear,
    Load,
    MaxPool,
    Pool,
    Store,
    with_precision,
)
from tests.helpers import assert_as_accurate, make_map, poisoned_memory, surrounded_by_nan
from tests.ops.cases import DTYPES, Errors, in_layout
from tests.program.cases import conv, make_program
from tests.program.drawn import Call, draw_program, mismatch

PLAIN, RELU, SILU = Layer(), Layer(BIAS, 0.0, 1), Layer(NORM, 1e-3, ACTIVATIONS.index("silu"))
ROOT = Path(__file__).resolve().parents[2]
DRAWN = 40


@pytest.fixture(autouse=True)
def _quick(one_thread):
    """Where it is not threads that are tested."""


def ghost(source, out, channels, primary, made, kept=None, **options):
    cheap = PLAIN if made else None
    values = {"residual": -1, "scaled": False, "squeeze": False, "kernel": 3} | options
    return Ghost(
        source, out, values["residual"], values["scaled"], values["squeeze"], channels, primary, made,
        kept or primary + made, values["kernel"], PLAIN, cheap,
    )  # fmt: skip


def draw_layer(rng: random.Random) -> Layer:
    act = rng.choice([0, 1, rng.randrange(len(ACTIVATIONS))])
    parts = rng.choice([0, BIAS, NORM, BIAS | NORM]) | (SLOPES if act == PRELU else 0)
    return Layer(parts, 1e-3, act, 0.2 if act in WITH_NUMBER else 0.0)


def draw_conv(seed: int, dtype: torch.dtype, threads: int) -> Call:
    """A convolution of one slot with the map of another added, on maps whose rows are no multiple of a tile. Sums of up
    to a thousand columns, rows of the map that one call makes in several parts."""
    rng = random.Random(seed)
    groups = rng.choice([1, 1, 1, 2, 3, 4])
    channels, filters = (groups * rng.choice([1, 3, 5, 8, 16, 19, 33, 72]) for _ in range(2))
    kernel, stride = (rng.choice([1, 2, 3, 3, 5, 7]), rng.choice([1, 3, 3, 4])), (rng.choice([1, 1, 2, 3]),) * 2
    padding, dilation = (
        (rng.choice([0, 1, 2, 4]), rng.choice([0, 1, 3])),
        (rng.choice([1, 1, 2]), rng.choice([1, 1, 3])),
    )
    least = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    h, w = max(rng.choice([1, 7, 20, 33]), least[0]), max(rng.choice([1, 7, 9, 20, 45, 100]), least[1])
    residual, squeeze = rng.random() < 0.5, rng.random() < 0.3
    first = conv(0, 1, channels, filters, kernel, stride, padding, PLAIN, dilation=dilation, groups=groups)
    second = conv(
        0, 2, channels, filters, kernel, stride, padding, draw_layer(rng), dilation=dilation, groups=groups,
        residual=1 if residual else -1, residual_first=residual and rng.random() < 0.5, squeeze=squeeze,
    )  # fmt: skip
    end = [Pool(filters)] if squeeze else [Store(2)]
    steps = [Load(0, channels, False), *([first] if residual else []), second, *end]
    x = make_map((rng.choice([1, 2]), channels, h, w), dtype, seed=seed)
    layout = rng.choice(["nchw", "channels_last", "strided"])
    return Call(make_program(*steps, seed=seed), in_layout(x, layout), threads)


def run(call: Call, code=None) -> torch.Tensor:
    """Packed; what a call on NaN leaves behind, and what is around its arguments, is not read."""
    p, code = call.program, code or call.program.code
    packed, x = program_pack(list(p.parameters), code), call.x
    packed = surrounded_by_nan(packed.view(torch.float32)).view(packed.dtype)
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        x = surrounded_by_nan(x)
    program(torch.full_like(call.x, torch.nan), packed, code)
    with poisoned_memory():
        return program(x, packed, code)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_values_of_drawn_convolutions(threads, dtype):
    torch.set_num_threads(threads)
    errors, wrong = Errors(), []
    for seed in range(DRAWN):
        call = draw_conv(seed, dtype, threads)
        p = call.program
        ours, now = run(call), program_eval(call.x, list(p.parameters), p.code)
        assert ours.dtype == dtype and torch.equal(ours, now), f"seed {seed}: {call}"
        wrong += [f"seed {seed}: {text}" for text in [mismatch(call, ours, "result", errors)] if text is not None]
    assert not wrong, f"{len(wrong)} of {DRAWN}\n" + "\n".join(wrong[:3])
    errors.assert_within(2.0)


@pytest.mark.parametrize("threads", [1, 2])
def test_values_with_weights_in_bfloat16(threads):
    """As accurate as PyTorch with the same weights and, where pairs are multiplied, inputs that are rounded too."""
    torch.set_num_threads(threads)
    errors = Errors()
    for seed in range(DRAWN):
        call = draw_conv(seed, torch.float32, threads)
        code = with_precision(call.program.code, BFLOAT16)
        packed = program_pack(list(call.program.parameters), code)
        ours, exact = run(call, code), reference.program(call.x.double(), packed, code)
        usual = reference.program(call.x.bfloat16(), packed, code).float()
        errors.add("result", ours, usual, exact)
        few = ours.numel() < 8  # whose error in PyTorch is a matter of luck
        assert_as_accurate(ours, usual, exact, 16.0 if few else 4.0, what=f"seed {seed}: {call}")
    errors.assert_within(2.0)


def test_packed_forms_are_the_reference_s():
    for seed in range(DRAWN):
        p = draw_conv(seed, torch.float32, 1).program
        for code in (p.code, with_precision(p.code, BFLOAT16)):
            ours, expected = (f(list(p.parameters), code) for f in (program_pack, reference.program_pack))
            if ours.dtype == torch.float32:
                torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
            else:
                assert ours.shape == expected.shape and (ours == expected).float().mean() > 0.99


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite(value):
    """They reach the pixels that their taps reach, and no other."""
    p = make_program(conv(-1, 0, 8, 16), Store(0))
    x = make_map((2, 8, 20, 21))
    x[1, 5, 9, 13] = value
    ours = program(x, program_pack(list(p.parameters), p.code), p.code)
    wrong = ~ours.isfinite()
    assert wrong[1, :, 8:11, 12:15].all() and int(wrong.sum()) == 16 * 9


# Steps whose rows are made a few at a time in turn, each with the rows around them that its taps read.
INTERLEAVED = {
    "residuals": (
        conv(0, 1, 8, 8, residual=0), conv(1, 2, 8, 8, 5, residual=0, residual_first=True), conv(2, 0, 8, 9, 3, 2, 0),
        Store(0),
    ),
    "maps of two halves": (
        ghost(0, 1, 8, 5, 5), conv(1, 2, 10, 12, groups=2), conv(2, 3, 12, 10, 1, residual=1),
        conv(3, 4, 10, 7, (3, 1), 2), Store(4),
    ),
    "squeezes": (
        conv(0, 1, 8, 12, squeeze=True), Excite(12, 4, 2, PLAIN, PLAIN), ghost(1, 2, 12, 4, 4, scaled=True),
        conv(2, 3, 8, 21, 3, 2, squeeze=True), Pool(21), Linear(21, 5, PLAIN),
    ),
    "a residual that is the source": (
        conv(0, 1, 8, 8, 7, 1, 6, dilation=2, residual=0), ghost(1, 2, 8, 4, 4), Store(2),
    ),
    "a residual of later steps": (
        conv(0, 1, 8, 12, layer=RELU), conv(1, 2, 12, 12, layer=RELU), conv(2, 3, 12, 12, layer=RELU, residual=1,
        residual_first=True), Depthwise.same(3, 4, False, 12, 3, 2, PLAIN),
        conv(1, 5, 12, 12, 1, 2, residual=4), Store(5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", INTERLEAVED)
def test_values_of_steps_in_turn(name, threads):
    torch.set_num_threads(threads)
    p = make_program(Load(0, 8, True), *INTERLEAVED[name])
    for shape in ((1, 8, 90, 41), (3, 8, 23, 23)):
        call = Call(p, make_map(shape), threads)
        assert_as_accurate(run(call), call.plain(), call.exact(), what=str(shape))


@pytest.mark.parametrize("threads", [2, 3])
def test_values_of_bands_of_rows(threads):
    torch.set_num_threads(threads)
    steps = (
        conv(-1, 0, 3, 16, 3, 2, layer=SILU), conv(0, 1, 16, 16, layer=SILU, residual=0), conv(1, 2, 16, 24, 3, 2),
        ghost(2, 3, 24, 12, 12, residual=2), conv(3, 4, 24, 20, 5), Store(4),
    )  # fmt: skip
    p = make_program(*steps)
    for shape in ((1, 3, 401, 61), (threads + 1, 3, 301, 90)):
        call = Call(p, make_map(shape), threads)
        ours = run(call)
        assert_as_accurate(ours, call.plain(), call.exact(), what=str(shape))
        assert all(torch.equal(run(call), ours) for _ in range(3))


@pytest.mark.skipif(not native.available(), reason="scratch memory is the native kernels'")
def test_of_maps_in_between_only_rows_in_use_are_kept():
    p = make_program(conv(-1, 0, 8, 32), conv(0, 1, 32, 32, residual=0), conv(1, 2, 32, 8), Store(2))
    tall, low = (native.program_scratch(p.code, 1, h, 64) for h in (800, 400))
    assert tall - low <= 4 * 400 * 64 * 8 + 4096, "only what is returned grows with the rows"


def test_what_programs_draw_of_them():
    steps = [step for seed in range(70) for step in draw_program(seed).steps]
    dense = [step for step in steps if isinstance(step, Conv) and step.source >= 0]
    assert {s.residual_first for s in dense if s.residual >= 0} == {s.squeeze for s in dense} == {False, True}
    assert {s.groups > 1 for s in dense} == {s.dilation != (1, 1) for s in dense} == {False, True}
    assert {s.stride[0] for s in dense} == {1, 2, 3} and {s.kernel[1] for s in dense} == {1, 2, 3, 5}
    assert any(s.groups == gcd(s.channels, s.filters) > 1 for s in dense)


@pytest.mark.skipif(bool(os.environ.get("GHOST_OPS_ISA")), reason="these are the runs on one instruction set")
@pytest.mark.parametrize("isa", native.isas())
def test_on_every_instruction_set(isa):
    """In processes of their own, since the set is chosen once."""
    if isa == native.isa():
        return
    environment = os.environ | {"GHOST_OPS_ISA": isa, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *"-m pytest -q -p no:cacheprovider -p no:xdist -k values".split(), __file__]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, f"{ran.returncode}\n{ran.stdout[-3000:]}\n{ran.stderr[-2000:]}"


ABOVE = {  # the only row of the output is made of rows above the map
    "convolution": conv(1, 2, 8, 5, (1, 2), (24, 1), (1, 3), SILU),
    "depthwise": Depthwise(1, 2, False, 8, (1, 2), (24, 1), (1, 0), (1, 1), SILU),
}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", ABOVE)
def test_a_map_of_which_no_row_is_read(name, threads):
    """The planner keeps as many of its rows as are in use. That was none, by which it divided."""
    torch.set_num_threads(threads)
    p = make_program(Load(0, 8, True), MaxPool(0, 1, 8, 3, 1, 1), ABOVE[name], Store(2))
    for layout in ("nchw", "channels_last"):
        call = Call(p, in_layout(make_map((2, 8, 18, 19)), layout), threads)
        ours = program(call.x, program_pack(list(p.parameters), p.code), p.code)
        assert ours.shape[2] == 1 and not mismatch(call, ours, name)
