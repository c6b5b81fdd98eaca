"""Programs whose products have weights in bfloat16, packed in pairs: the packed form to the bit, and values."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.library import opcheck

from ghost_ops.activations import ACTIVATIONS
from ghost_ops.backends import native, reference
from ghost_ops.ops._library import overload
from ghost_ops.ops.program import program, program_eval, program_pack
from ghost_ops.program import (
    BFLOAT16,
    BIAS,
    FORMAT,
    Depthwise,
    Excite,
    Ghost,
    Layer,
    Linear,
    Load,
    Pool,
    Store,
    decode,
    output_shape,
    weight_format,
    with_precision,
)
from ghost_ops.program.packing import unpack
from tests.helpers import LAYOUTS, assert_as_accurate, make_map, poisoned_memory, surrounded_by_nan
from tests.ops.cases import DTYPES, Errors, in_layout
from tests.program.cases import Program, conv, make_program, size_of
from tests.program.drawn import draw_call, draw_program

LEAKY_RELU = ACTIVATIONS.index("leaky_relu")

ROOT = Path(__file__).resolve().parents[2]
PLAIN, RELU = Layer(), Layer(BIAS, 0.0, 1)
DRAWN = 70
ZERO, ONE = r"precision 0 \(float32\)", r"precision 1 \(bfloat16\)"


@pytest.fixture(autouse=True)
def _quick(one_thread):
    """Where it is not threads that are tested."""


def code_of(p: Program) -> list[int]:
    return with_precision(p.code, BFLOAT16)


def pack(p: Program) -> torch.Tensor:
    return program_pack(list(p.parameters), code_of(p))


def block(features: bool = True) -> Program:
    """Every kind of step, odd channels everywhere; work for several threads."""
    steps = [
        conv(-1, 0, 3, 21, 3, 2, 1, RELU),
        Ghost(0, 1, -1, False, False, 21, 33, 33, 66, 3, RELU, RELU),
        Depthwise.same(1, 2, True, 66, 5, 1, RELU),
        Excite(66, 13, 1, RELU, Layer(BIAS)),
        Ghost(2, 3, 0, True, False, 66, 11, 11, 21, 3, PLAIN, PLAIN),
        Ghost(3, 4, -1, False, True, 21, 331, 0, 331, 1, RELU, None),
    ]
    tail = [Pool(331), Linear(331, 121, RELU), Linear(121, 10, PLAIN)] if features else [Store(4)]
    return make_program(*steps, *tail)


def exact(x: torch.Tensor, packed: torch.Tensor, p: Program) -> torch.Tensor:
    """The program in float64 with the weights as they are packed."""
    return reference.program(x.double(), packed, code_of(p))


def plain(x: torch.Tensor, packed: torch.Tensor, p: Program) -> torch.Tensor:
    """What the kernels promise: sums in float32; and where maps are rounded on their way into a product, no more error
    than PyTorch makes in bfloat16, which rounds every result too."""
    inner = torch.bfloat16 if native.isa() in native.ROUNDING else torch.float32
    return reference.program(x.to(inner), packed, code_of(p)).to(x.dtype)


def run(x: torch.Tensor, packed: torch.Tensor, p: Program) -> torch.Tensor:
    dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    with poisoned_memory():
        return program(surrounded_by_nan(x) if dense else x, packed, code_of(p))


# The packed form


def test_packing_is_that_of_the_reference_to_the_bit():
    for seed in range(DRAWN):
        p = draw_program(seed)
        ours, theirs = pack(p), reference.program_pack(p.parameters, code_of(p))
        assert ours.dtype == theirs.dtype == torch.int32
        assert ours.shape == theirs.shape == (size_of(code_of(p)),), f"seed {seed}"
        assert torch.equal(ours, theirs), f"seed {seed}: {(ours != theirs).sum()} of {len(ours)}"


def test_every_kind_of_number_is_rounded_the_same():
    """Any bits: ties, numbers that round to infinity, denormal ones, infinities, NaNs of every payload."""
    steps = Load(0, 31, True), Ghost(0, 1, -1, False, False, 31, 27, 0, 27, 1, PLAIN, None), Store(1)
    for seed in range(20):
        bits = torch.randint(-(2**31), 2**31, (27, 31, 1, 1), generator=torch.Generator().manual_seed(seed))
        special = torch.tensor([0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0x7F7FFFFF, 0x3F808000, 0x3F818000, 1])
        bits.view(-1)[: 2 * len(special)] = torch.cat([special, special - 2**31])
        weight = bits.to(torch.int32).view(torch.float32)
        p = Program(steps, (weight,), 31)
        packed = pack(p)
        assert torch.equal(packed, reference.program_pack(p.parameters, code_of(p)))
        weights = weight_format(BFLOAT16)
        _, (folded,), _ = unpack(weights.numbers(packed), decode(p.code), weights)
        torch.testing.assert_close(folded.weight, weight.bfloat16().float(), rtol=0, atol=0, equal_nan=True)


def test_where_a_pair_lies():
    """19 outputs of 3 inputs: a panel of 16 and one of 8 columns, 2 rows each, then the bias."""
    steps = Load(0, 3, True), Ghost(0, 1, -1, False, False, 3, 19, 0, 19, 1, Layer(BIAS), None), Store(1)
    weight, bias = torch.arange(1.0, 58).view(19, 3, 1, 1), torch.arange(19.0)
    packed = pack(Program(steps, (weight, bias), 3))
    assert len(packed) == 2 * 16 + 2 * 8 + 32
    halves = packed.view(torch.bfloat16).float()
    first, last = halves[:64].view(2, 16, 2), halves[64:96].view(2, 8, 2)
    assert torch.equal(first[0], weight[:16, :2, 0, 0]) and torch.equal(first[1, :, 0], weight[:16, 2, 0, 0])
    assert torch.equal(last[0, :3], weight[16:, :2, 0, 0]) and torch.equal(last[1, :3, 0], weight[16:, 2, 0, 0])
    assert not first[1, :, 1].any() and not last[1, :, 1].any() and not last[:, 3:].any()
    assert torch.equal(packed[48:67].view(torch.float32), bias) and not packed[67:].any()


def test_half_the_bytes_of_products_and_the_others_in_float32():
    p = block()
    words, floats = pack(p), program_pack(list(p.parameters), p.code)
    assert 0.5 < len(words) / len(floats) < 0.6
    taps = p.parameters[4].flatten(1).t()  # of the cheap operation of the first Ghost module
    assert any(torch.equal(words[i : i + 33].view(torch.float32), taps[0]) for i in range(0, len(words) - 33, 16))


# Values. These run on every instruction set.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_values_of_drawn_programs(threads, dtype):
    torch.set_num_threads(threads)
    errors = Errors()
    for seed in range(DRAWN):
        call = draw_call(seed, dtype, threads)
        p, packed = call.program, pack(call.program)
        ours, want, usual = run(call.x, packed, p), exact(call.x, packed, p), plain(call.x, packed, p)
        assert ours.shape == output_shape(p.steps, len(call.x), *call.x.shape[2:]) and ours.dtype == dtype
        errors.add("result", ours, usual, want)
        few = ours.numel() < 8  # whose error in PyTorch is a matter of luck
        assert_as_accurate(ours, usual, want, 16.0 if few else 4.0, what=f"seed {seed}: {call}")
    errors.assert_within(1.0 if native.isa() in native.ROUNDING else 2.0)


@pytest.mark.parametrize("features", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [0, 1, 3, 9, 20])
def test_values_of_batches(batch, threads, dtype, features):
    torch.set_num_threads(threads)
    p = block(features)
    packed = pack(p)
    for layout in ("nchw", "channels_last", "strided"):
        x = in_layout(make_map((batch, 3, 25, 33), dtype), layout)
        ours = run(x, packed, p)
        assert ours.dtype == dtype and ours.shape == ((batch, 10) if features else (batch, 331, 13, 17))
        if batch:
            assert_as_accurate(ours, plain(x, packed, p), exact(x, packed, p), what=layout)
            assert torch.equal(ours, run(x, packed, p))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_values_of_single_pixels_and_rows(size):
    p = make_program(
        Load(0, 5, True), Ghost(0, 1, -1, False, False, 5, 7, 7, 13, 7, RELU, RELU),
        Depthwise.same(1, 2, True, 13, 7, 2, RELU), Excite(13, 3, 1, RELU, PLAIN),
        Ghost(2, 3, -1, True, True, 13, 9, 9, 18, 5, RELU, RELU), Pool(18),
    )  # fmt: skip
    packed = pack(p)
    for batch in (1, 9):
        x = make_map((batch, 5, *size))
        assert_as_accurate(run(x, packed, p), plain(x, packed, p), exact(x, packed, p))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite(value):
    """They reach what they would reach, and no other image or pixel."""
    steps = Load(0, 9, True), Ghost(0, 1, -1, False, False, 9, 37, 0, 37, 1, Layer(BIAS), None), Store(1)
    p = make_program(*steps)
    packed, x = pack(p), make_map((3, 9, 5, 6))
    x[1, 8, 2, 3] = value
    ours = run(x, packed, p)
    assert torch.equal(ours.isnan(), exact(x, packed, p).isnan()) and ours[0].isfinite().all()
    assert not ours[1, :, 2, 3].isfinite().any() and int((~ours.isfinite()).sum()) == 37


@pytest.mark.skipif(bool(os.environ.get("GHOST_OPS_ISA")), reason="these are the runs on one instruction set")
@pytest.mark.parametrize("isa", native.isas())
def test_on_every_instruction_set(isa):
    """In processes of their own, since the set is chosen once."""
    environment = os.environ | {"GHOST_OPS_ISA": isa, "OMP_NUM_THREADS": "1"}
    runs = [] if isa == native.isa() else [[*"pytest -q -p no:cacheprovider -p no:xdist -k values".split(), __file__]]
    runs += [["tests.ops.guard_pages", f"drawn in bfloat16, {threads}"] for threads in ("one thread", "three threads")]
    for command in runs:
        command = [sys.executable, "-m", *command]
        ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
        assert ran.returncode == 0, f"{command}: {ran.returncode}\n{ran.stdout[-3000:]}\n{ran.stderr[-2000:]}"


# Other dtypes, other memory, what is refused


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_inputs_that_go_to_the_reference(dtype):
    p, x = block(), make_map((2, 3, 14, 15), dtype)
    packed = pack(p)
    assert torch.equal(program(x, packed, code_of(p)), reference.program(x, packed, code_of(p)))


def test_a_packed_form_that_is_not_dense():
    p, x = block(), make_map((2, 3, 14, 15))
    packed = pack(p)
    apart = torch.stack([packed, packed], 1)[:, 0]
    assert not apart.is_contiguous()
    torch.testing.assert_close(program(x, apart, code_of(p)), exact(x, packed, p).float(), rtol=1e-4, atol=1e-4)


def test_forms_of_the_other_precision_are_refused():
    p, x = block(), make_map((1, 3, 14, 15))
    words, floats = pack(p), program_pack(list(p.parameters), p.code)
    for v in (x, x.double()):
        with pytest.raises((RuntimeError, ValueError), match=f"packed: expected int32 for steps of {ONE}, got float32"):
            program(v, floats, code_of(p))
        with pytest.raises((RuntimeError, ValueError), match=f"packed: expected floats for steps of {ZERO}, got int32"):
            program(v, words, p.code)
        for wrong in (words[:-16], torch.cat([words, words[:16]]), words[:0]):
            with pytest.raises((RuntimeError, ValueError), match=r"packed: expected|shape"):
                program(v, wrong, code_of(p))


def test_parameters_as_they_are_have_no_precision():
    p, x = block(), make_map((1, 3, 14, 15))
    for v, parameters in ((x, p.parameters), (x.double(), p.to(torch.float64).parameters)):
        with pytest.raises((RuntimeError, ValueError), match=f"steps: expected those of {ZERO}, got those of {ONE}"):
            program_eval(v, list(parameters), code_of(p))


def test_an_older_format_is_refused():
    p, x = block(), make_map((1, 3, 14, 15))
    older = [FORMAT - 1, p.slots, *p.code[3:]]
    for v in (x, x.double()):
        with pytest.raises((RuntimeError, ValueError), match=f"steps: expected .*format .*{FORMAT}"):
            program(v, pack(p), older)


def test_slopes_of_packed_layers():
    """LeakyReLU's are packed as float32, whatever the precision."""
    leaky = Layer(BIAS, 0.0, LEAKY_RELU, 0.3)
    p = make_program(Load(0, 7, True), Ghost(0, 1, -1, False, False, 7, 5, 5, 9, 3, leaky, leaky), Store(1))
    packed, x = pack(p), make_map((2, 7, 6, 5))
    assert (packed.view(torch.float32) == 0.3).sum() == 9
    assert_as_accurate(run(x, packed, p), plain(x, packed, p), exact(x, packed, p))


# As PyTorch sees the operators


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("features", [True, False])
def test_opcheck(features, layout):
    p, x = block(features), make_map((2, 3, 14, 15), layout=layout)
    opcheck(overload("program"), (x, pack(p), code_of(p)))
    opcheck(overload("program_pack"), (list(p.parameters), code_of(p)))


def test_scratch_is_known_before_a_call():
    p = block()
    if native.available():
        words, floats = (native.program_scratch(code, 1, 16, 16) for code in (code_of(p), p.code))
        assert 0 < words < floats  # no scaled copy of the weights, which small maps leave no room for
