"""Programs and arguments that do not fit are refused, naming what is wrong; no list of numbers ends the process."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ghost_ops.activations import ACTIVATIONS, PRELU
from ghost_ops.backends import native, reference
from ghost_ops.ops.program import program, program_eval, program_maps, program_pack
from ghost_ops.program import (
    BIAS,
    FORMAT,
    SLOPES,
    Add,
    AvgPool,
    BilinearUpsample,
    Concat,
    Depthwise,
    Excite,
    Flatten,
    Ghost,
    Layer,
    Linear,
    Load,
    Multiply,
    Pool,
    Scale,
    ScaleFeatures,
    Shuffle,
    Slice,
    Squeeze,
    Store,
    StoreFeatures,
    Upsample,
    decode,
    encode,
    output_shape,
)
from tests.helpers import make_map, surrounded_by_nan
from tests.ops import guard_pages
from tests.program.cases import conv, make_program, parameters_for, size_of
from tests.program.drawn import draw_program

LEAKY_RELU = ACTIVATIONS.index("leaky_relu")

PLAIN = Layer()
SLOTS, MOST = 4, 2**20


@pytest.fixture(autouse=True)
def _quick(one_thread):
    """These maps are tiny: a second thread only waits."""


VALID = (
    Load(0, 8, True),
    Ghost(0, 1, -1, False, False, 8, 6, 6, 11, 3, PLAIN, PLAIN),
    Depthwise.same(1, 2, True, 11, 3, 1, PLAIN),
    Excite(11, 3, 1, PLAIN, PLAIN),
    Ghost(2, 3, 0, True, True, 11, 4, 4, 8, 5, PLAIN, PLAIN),
)
MAP = (*VALID, Store(3))
UPSAMPLED = BilinearUpsample(1, 2, 11, -1, (0, 0), 2.0, 2.0, False)
FEATURES = (*VALID, Pool(8), Linear(8, 5, PLAIN), Linear(5, 3, PLAIN))
CONV = (conv(-1, 0, 3, 8, 3, 1, 1, PLAIN), Ghost(0, 1, -1, False, False, 8, 4, 4, 8, 3, PLAIN, PLAIN), Store(1))


def change(index: int, base=MAP, **changes):
    return encode([replace(step, **changes) if i == index else step for i, step in enumerate(base)], SLOTS)


def code(*steps, slots=SLOTS):
    return encode(steps, slots)


def without(index: int, base=MAP):
    return encode([step for i, step in enumerate(base) if i != index], SLOTS)


SMALLER = (
    Depthwise.same(0, 1, False, 8, 3, 2, PLAIN),
    Ghost(1, 2, 0, False, False, 8, 4, 4, 8, 3, PLAIN, PLAIN),
    Store(2),
)
REFUSED = {
    "no list": ([], "it ends within a step"),
    "no slots": ([FORMAT], "it ends within a step"),
    "no steps": ([FORMAT, SLOTS, 0], "neither a map nor features"),
    "no precision": ([FORMAT, SLOTS], "it ends within a step"),
    "precision too high": ([FORMAT, SLOTS, 2, *code(*MAP)[3:]], "precision is 2"),
    "precision too low": ([FORMAT, SLOTS, -1, *code(*MAP)[3:]], "precision is -1"),
    "another format": ([FORMAT - 1, *code(*MAP)[1:]], f"its format is not {FORMAT}"),
    "no slot": ([FORMAT, 0, *code(*MAP)[2:]], "slots is 0"),
    "slots without end": ([FORMAT, 2**40, *code(*MAP)[2:]], "slots is 1099511627776"),
    "kind too high": ([*code(*MAP[:-1]), 99, 3], "kind is 99"),
    "kind too low": ([*code(*MAP[:-1]), -1, 3], "kind is -1"),
    "one number more": ([*code(*MAP), 0], "it ends within a step"),
    "a step after the last": (code(*MAP, VALID[1]), "steps after the last one"),
    "no end": (code(*VALID), "neither a map nor features"),
    "two loads": (code(VALID[0], *MAP), "a first step that does not read the input"),
    "no load": (without(0), "is read before it is written"),
    "a layer first": (code(Linear(8, 5, PLAIN)), "a layer of other features"),
    "slot too high": (change(1, out=SLOTS), "slot is 4"),
    "slot too low": (change(1, source=-1), "slot is -1"),
    "unwritten slot": (change(2, source=3), "slot 3 is read before it is written"),
    "unwritten residual": (change(1, residual=3), "slot 3 is read before it is written"),
    "unwritten result": (code(*VALID[:2], Store(3)), "slot 3 is read before it is written"),
    "residual too low": (change(1, residual=-2), "residual is -2"),
    "reads what it writes": (change(1, out=0), "read and written at once"),
    "adds what it writes": (change(4, out=0), "read and written at once"),
    "depthwise reads what it writes": (change(2, out=1), "read and written at once"),
    "no channels": (change(0, channels=0), "channels is 0"),
    "other channels": (change(1, channels=9), "channels that do not fit"),
    "other channels of a depthwise step": (change(2, channels=10), "channels that do not fit"),
    "channels without end": (change(1, primary=2**30), "primary is 1073741824"),
    "no multiple": (change(1, cheap_channels=7), "not a multiple of the primary ones"),
    "negative channels made": (change(1, cheap_channels=-6), "made is -6"),
    "too few kept": (change(1, out_channels=6), "channels kept"),
    "too many kept": (change(1, out_channels=13), "channels kept"),
    "no flag": ([*code(VALID[0])[:-1], 2, *code(*MAP[1:])[3:]], "by_lanes is 2"),
    "even kernel": (change(1, kernel=4), "a kernel of even size"),
    "large kernel": (change(2, kernel=(3, 99)), "kernel is 99"),
    "no kernel": (change(2, kernel=(0, 3)), "kernel is 0"),
    "no stride": (change(2, stride=(1, 0)), "stride is 0"),
    "no stride of a convolution": (change(0, CONV, stride=(0, 1)), "stride is 0"),
    "negative padding": (change(0, CONV, padding=(1, -1)), "padding is -1"),
    "a tall convolution": (change(0, CONV, kernel=(65, 3)), "kernel is 65"),
    "a convolution of many runs": (change(0, CONV, kernel=(9, 9), dilation=(1, 2)), "too many taps"),
    "no dilation of a convolution": (change(0, CONV, dilation=(1, 0)), "dilation is 0"),
    "no groups of a convolution": (change(0, CONV, groups=0), "groups is 0"),
    "channels that groups do not divide": (change(0, CONV, groups=2), "not a multiple of the groups"),
    "filters that groups do not divide": (change(0, CONV, groups=3), "not a multiple of the groups"),
    "a first convolution of a slot": (change(0, CONV, source=1), "slot 1 is read before it is written"),
    "a later convolution of the input": (
        code(VALID[0], replace(CONV[0], out=1), Store(1)), "a first step that does not read the input"
    ),
    "a convolution's residual": (
        code(VALID[0], conv(0, 1, 8, 9, residual=0), Store(1)), "a residual of other channels"
    ),
    "a residual that is none": (change(0, CONV, residual_first=True), "a residual that comes first, and none"),
    "a convolution reads what it writes": (code(VALID[0], conv(0, 0, 8, 8), Store(0)), "read and written at once"),
    "a residual of other channels": (change(4, residual=1), "a residual of other channels"),
    "scaled without excitation": (change(1, scaled=True), "an excitation of other channels"),
    "scaled by another excitation": (code(*VALID[:4], replace(VALID[1], scaled=True, out=3), Store(3)),
                                     "an excitation of other channels"),
    "no squeeze": (change(2, squeeze=False), "without the squeeze"),
    "another squeeze": (change(3, channels=8), "without the squeeze"),
    "no such gate": (change(3, gate=4), "gate is 4"),
    "pooled without squeeze": (code(*VALID[:4], Pool(8)), "a pooling without the squeeze"),
    "pooled twice": (code(*VALID, Pool(8), Pool(8)), "features that are not returned"),
    "other features": (change(7, FEATURES, channels=4), "a layer of other features"),
    "a layer before the pooling": (code(*VALID, Linear(8, 5, PLAIN)), "a layer of other features"),
    "features that are lost": (code(*FEATURES, Store(3)), "features that are not returned"),
    "features that are lost to a layer": (
        code(*FEATURES[:6], StoreFeatures(8), Linear(8, 5, PLAIN), Store(3)), "features that are not returned"
    ),
    "other features as a result": (code(*FEATURES, StoreFeatures(4)), "a result of other features"),
    "features that are not there": (code(*VALID, StoreFeatures(8)), "a result of other features"),
    "a map's step after maps": (code(*MAP, Pool(8), StoreFeatures(8), VALID[1]), "steps after the last one"),
    "other features of a map": (code(*VALID, Flatten(3, 7, 21)), "channels that do not fit"),
    "a part of a map": (code(*VALID, Flatten(3, 8, 20)), "features of a part of a map"),
    "a flattened map that is not there": (code(*VALID[:2], Flatten(3, 8, 8)), "slot 3 is read before it is written"),
    "flattened over features": (code(*FEATURES, Flatten(3, 8, 504)), "features that are not returned"),
    "a scale of other features": (code(*FEATURES, ScaleFeatures(4, PLAIN)), "a scale of other features"),
    "a scale of no features": (code(*VALID, ScaleFeatures(8, PLAIN)), "a scale of other features"),
    "a scale without excitation": (code(*VALID[:2], Scale(1, 2, False, 11), Store(2)), "an excitation of other"),
    "a scale by another excitation": (code(*VALID[:4], Scale(0, 1, False, 8), Store(1)), "an excitation of other"),
    "a scale in its place": (code(*VALID[:4], Scale(2, 2, False, 11), Store(2)), "read and written at once"),
    "means of other channels": (code(*VALID[:2], Squeeze(1, 8), Pool(8)), "channels that do not fit"),
    "means of no map": (code(*VALID[:2], Squeeze(3, 8), Pool(8)), "slot 3 is read before it is written"),
    "no such activation": (change(1, layer=Layer(0, 0.0, len(ACTIVATIONS))), f"act is {len(ACTIVATIONS)}"),
    "PReLU without slopes": (change(1, layer=Layer(0, 0.0, PRELU)), "a PReLU without slopes"),
    "slopes without PReLU": (change(1, layer=Layer(SLOPES, 0.0, LEAKY_RELU)), "slopes without one"),
    "no dilation": (change(2, dilation=(0, 1)), "dilation is 0"),
    "one map": (code(*VALID[:2], Concat(2, False, (1,)), Store(2)), "sources is 1"),
    "a map that is not there": (code(*VALID[:2], Concat(2, False, (1, 3)), Store(2)), "slot 3 is read before"),
    "a map in itself": (code(*VALID[:2], Concat(1, False, (1, 0)), Store(1)), "read and written at once"),
    "a slice past the end": (code(*VALID[:2], Slice(1, 2, 3, 12), Store(2)), "end of the channels is 12"),
    "a slice of nothing": (code(*VALID[:2], Slice(1, 2, 3, 3), Store(2)), "end of the channels is 3"),
    "a slice into itself": (code(*VALID[:2], Slice(1, 1, 3, 5), Store(1)), "read and written at once"),
    "a slice after the last": (code(*MAP, Slice(1, 2, 3, 5)), "steps after the last one"),
    "a sum of other channels": (code(*VALID[:2], Add(1, 0, 2, False, 11), Store(2)), "channels that do not fit"),
    "a gate of other channels": (code(*VALID[:2], Multiply(0, 1, 2, False, 8), Store(2)), "channels that do not fit"),
    "groups that do not divide": (code(*VALID[:2], Shuffle(1, 2, 11, 2), Store(2)), "groups that do not divide"),
    "no groups": (code(*VALID[:2], Shuffle(1, 2, 11, 0), Store(2)), "groups is 0"),
    "no upsampling": (code(*VALID[:2], Upsample(1, 2, 11, -1, (0, 0), 0.0, 2.0), Store(2)), "an upsampling to no size"),
    "upsampled to no rows": (code(*VALID[:2], Upsample(1, 2, 11, -1, (0, 5), 2.0, 2.0), Store(2)), "to no size"),
    "no bilinear upsampling": (
        code(*VALID[:2], BilinearUpsample(1, 2, 11, -1, (0, 0), 0.0, 2.0, False), Store(2)), "an upsampling to no size"
    ),
    "corners": (code(*VALID[:2], replace(UPSAMPLED, align_corners=2), Store(2)), "align_corners is 2"),
    "the size of nothing": (code(*VALID[:2], Upsample(1, 2, 11, 3, (0, 0), 0.0, 0.0), Store(2)), "slot 3 is read"),
    "a mean over padding": (code(*VALID[:2], AvgPool(1, 2, 11, (2, 2), (1, 1), (1, 2), True), Store(2)),
                            "a padding above half"),
    "no such parts": (change(1, layer=Layer(32)), "parts is 32"),
    "steps without end": ([*code(VALID[0]), *code(Add(0, 0, 1, False, 8))[3:] * 4096], "more than 4096 steps"),
    "weights that no memory holds": (
        code(VALID[0], Ghost(0, 1, -1, False, True, 8, MOST, 0, MOST, 1, PLAIN, None), Pool(MOST),
             Linear(MOST, MOST, PLAIN)), "its weights are more than memory holds"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_lists_that_are_refused(name):
    steps, message = REFUSED[name]
    x, parameters = make_map((1, 3 if steps[3:4] == [1] else 8, 7, 9)), list(parameters_for(MAP))
    packed = torch.zeros(size_of(code(*MAP)))
    message = f"steps: expected a list that ghost_ops wrote: .*({message})"
    if native.available():
        for call in (
            lambda: program(x, packed, steps),
            lambda: program_eval(x, parameters, steps),
            lambda: program_pack(parameters, steps),
        ):
            with pytest.raises(RuntimeError, match=message):
                call()


def test_maps_of_other_sizes():
    """What only the input tells: an error that names the steps, before any of them runs."""
    smaller, plain = Depthwise.same(0, 1, False, 8, 3, 2, PLAIN), make_map((1, 8, 7, 9))
    for last in (Concat(2, False, (0, 1)), Add(0, 1, 2, False, 8)):
        steps = code(VALID[0], smaller, last, Store(2))
        packed = program_pack(list(parameters_for([smaller])), steps)
        if native.available():
            with pytest.raises(RuntimeError, match="program: steps: expected maps of one size"):
                program(plain, packed, steps)


@pytest.mark.skipif(not native.available(), reason="no compiled library")
@pytest.mark.parametrize(
    "steps, got",
    [
        ([Upsample(0, 1, 8, -1, (2**24, 2**24), 0.0, 0.0)], "8x16777216x16777216"),
        ([Upsample(i, i + 1, 8, -1, (0, 0), 999999.0, 1.0) for i in range(2)], "8x6999986000007x9"),
    ],
    ids=["at once", "in steps"],
)
def test_maps_that_no_memory_holds(steps, got):
    """Where their sizes were once multiplied all the same, the product was less than the maps."""
    x, last = make_map((1, 8, 7, 9)), Store(len(steps))
    packed = torch.zeros(0)
    with pytest.raises(RuntimeError, match=f"program: steps: expected maps that memory holds, got one of {got}"):
        program(x, packed, code(VALID[0], *steps, last))
    with pytest.raises(ValueError, match="expected a program that takes a 7 x 9 map"):
        native.program_scratch(code(VALID[0], *steps, last), 1, 7, 9)
    for height in (2**24 + 1, 2**62):
        with pytest.raises(ValueError, match=f"expected a program that takes a {height} x 9 map"):
            native.program_scratch(code(VALID[0], Store(0)), 1, height, 9)


def test_one_result_of_a_program_that_has_two():
    steps, x = code(*VALID[:2], Store(1), Store(0)), make_map((1, 8, 7, 9))
    packed = program_pack(list(parameters_for(VALID[:2])), steps)
    with pytest.raises((RuntimeError, ValueError), match=r"program: steps: expected .*one (result|map)"):
        program(x, packed, steps)
    maps = program_maps(x, packed, steps)
    assert [tuple(m.shape) for m in maps] == [(1, 11, 7, 9), (1, 8, 7, 9)] and torch.equal(maps[1], x)


BY_REFERENCE = (
    "no list", "no slots", "no steps", "no precision", "precision too high", "precision too low", "another format",
    "no slot", "kind too high", "kind too low", "one number more", "unwritten slot", "unwritten residual",
    "unwritten result", "no squeeze", "other channels", "no end",
)  # fmt: skip


@pytest.mark.parametrize("name", BY_REFERENCE)
def test_lists_that_the_reference_refuses(name):
    steps, _ = REFUSED[name]
    parameters = [t.double() for t in parameters_for(MAP)]
    for call in (reference.program_eval, program_eval):
        with pytest.raises((ValueError, RuntimeError)):
            call(make_map((1, 8, 7, 9), torch.float64), parameters, steps)


@pytest.mark.parametrize("base", [MAP, FEATURES], ids=["map", "features"])
def test_every_beginning_of_a_list_is_refused(base):
    whole, parameters, x = code(*base), list(parameters_for(base)), make_map((1, 8, 7, 9))
    ends = {len(code(*base[:i])) for i in range(6, len(base))}  # features may end with any layer
    for length in set(range(len(whole))) - ends:
        with pytest.raises(RuntimeError if native.available() else (ValueError, RuntimeError), match=r"steps|expected"):
            program_eval(x, parameters, whole[:length])
    boundaries = {3, *(len(code(*base[:i])) for i in range(1, len(base)))}
    for length in set(range(len(whole))) - boundaries:
        with pytest.raises(ValueError, match="steps: expected"):
            decode(whole[:length])


def test_a_residual_of_another_size():
    p = make_program(VALID[0], *SMALLER, slots=SLOTS)
    with pytest.raises(RuntimeError, match=r"a residual of the output's size|must match the size"):
        program_eval(make_map((1, 8, 7, 9)), list(p.parameters), p.code)
    assert program_eval(make_map((2, 8, 1, 1)), list(p.parameters), p.code).shape == (2, 8, 1, 1)


@pytest.mark.parametrize("size", [(3, 9), (9, 3), (4, 4), (0, 0)])
def test_a_map_that_no_kernel_fits_on(size):
    p = make_program(conv(-1, 0, 3, 8, 5, 1, 0, PLAIN), Store(0), slots=SLOTS)
    packed = program_pack(list(p.parameters), p.code)
    with pytest.raises(RuntimeError, match=r"a map that its kernels fit on, got \dx\d|Kernel size"):
        program(make_map((1, 3, *size)), packed, p.code)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_maps_without_pixels_give_no_unwritten_memory(size):
    """What PyTorch refuses is refused, or is computed: padding alone still makes a map."""
    padded = make_program(conv(-1, 0, 3, 4, 3, 1, 2, Layer(BIAS)), Store(0))
    with pytest.raises(RuntimeError):
        program_eval(torch.zeros(1, 3, *size), list(padded.parameters), padded.code)
    pooled = make_program(*FEATURES)
    with pytest.raises(RuntimeError):
        program_eval(torch.zeros(2, 8, *size), list(pooled.parameters), pooled.code)


X_REFUSED = {
    "3 dimensions": (8, 7, 9), "5 dimensions": (1, 8, 7, 9, 1), "2 dimensions": (1, 8), "other channels": (1, 7, 7, 9),
    "no channels": (1, 0, 7, 9),
}  # fmt: skip


@pytest.mark.parametrize("name", X_REFUSED)
def test_inputs_that_are_refused(name):
    x, parameters, steps = torch.zeros(X_REFUSED[name]), list(parameters_for(MAP)), code(*MAP)
    packed = program_pack(parameters, steps)
    expected = r"x: expected (4 dimensions|shape anyx8xanyxany).*, got [x\d]+" if native.available() else None
    for call in (lambda: program(x, packed, steps), lambda: program_eval(x, parameters, steps)):
        with pytest.raises(RuntimeError, match=expected):
            call()


def test_packed_parameters_that_are_refused():
    x, steps = make_map((1, 8, 7, 9)), code(*MAP)
    packed = program_pack(list(parameters_for(MAP)), steps)
    for wrong in (packed[:-1], torch.cat([packed, packed[:1]]), packed[:0], packed[None], packed.reshape(-1, 16)):
        with pytest.raises((RuntimeError, ValueError), match="packed: expected"):
            program(x, wrong, steps)
    for wrong in (packed[:-16], torch.cat([packed, packed[:16]])):
        with pytest.raises((RuntimeError, ValueError), match=r"packed|shape"):
            program(x.double(), wrong.double(), steps)


def test_parameters_that_are_refused():
    steps, right, x = code(*MAP), list(parameters_for(MAP)), make_map((1, 8, 7, 9))
    wrong = {
        "none": [], "one less": right[:-1], "one more": [*right, right[0]], "turned": right[::-1],
        "a weight of other channels": [right[0][:, :7], *right[1:]],
        "a scalar": [torch.tensor(1.0), *right[1:]],
    }  # fmt: skip
    for name, parameters in wrong.items():
        for call in (
            lambda p=parameters: program_pack(p, steps),
            lambda p=parameters: program_eval(x, p, steps),
            lambda p=parameters: reference.program_pack(p, steps),
        ):
            with pytest.raises((RuntimeError, ValueError), match="parameters: expected"):
                call()
                pytest.fail(name)


@pytest.mark.parametrize("kind", ["convolution", "depthwise", "cheap"])
def test_a_matrix_is_no_convolution_of_several_taps(kind):
    """Its shape would fit a 1x1 convolution; of these taps it holds one, and the others lie past its end."""
    steps, index = {
        "convolution": (CONV, 0),
        "depthwise": ((VALID[0], Depthwise.same(0, 1, False, 8, 3, 1, PLAIN), Store(1)), 0),
        "cheap": (MAP, 1),
    }[kind]
    parameters = list(parameters_for(steps))
    parameters[index] = parameters[index][:, :, 1, 1].clone()
    for call in (
        lambda: program_pack(parameters, code(*steps)),
        lambda: program_eval(make_map((1, steps[0].channels, 7, 9)), parameters, code(*steps)),
    ):
        with pytest.raises((RuntimeError, ValueError), match="parameters: expected"):
            call()


NUMBERS = (-(2**63), -(2**40), -2, -1, 0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 33, 64, 65, 2**21, 2**40, 2**63 - 1)


def mutants(seed: int, count: int):
    """A drawn program, an input, and lists that differ from its in one number."""
    rng, p = random.Random(seed), draw_program(seed, most_channels=24, longest=4)
    x = surrounded_by_nan(make_map((2, p.channels, rng.choice([5, 8, 20]), rng.choice([5, 9, 17])), seed=seed))
    for _ in range(count):
        at, steps = rng.randrange(len(p.code)), p.code
        steps[at] = rng.choice([*NUMBERS, steps[at] + 1, steps[at] - 1] if abs(steps[at]) < 2**40 else NUMBERS)
        yield p, x, steps


@pytest.mark.parametrize("seed", range(20))
def test_lists_with_one_number_changed(seed):
    """They are refused, or computed as the reference computes them; the shape is the one that is promised."""
    for p, x, steps in mutants(seed, 60):
        parameters, packed = list(p.parameters), program_pack(list(p.parameters), p.code)
        for call, tensors in ((program, packed), (program_eval, parameters)):
            try:
                out = call(x, tensors, steps)
            except (RuntimeError, ValueError):
                continue
            assert out.shape == output_shape(decode(steps), *x.shape[:1], *x.shape[2:]), (p.code, steps)
            if call is program:  # its slopes of LeakyReLU are packed
                continue
            expected = reference.program_eval(x.double(), [t.double() for t in tensors], steps)
            if expected.isfinite().all():
                error = (out.double() - expected).norm() / expected.norm().clamp(min=1e-3)
                assert error < 1e-4, (float(error), p.code, steps)
        with suppress(ValueError):
            assert native.program_scratch(steps, 1, *x.shape[2:]) >= 0


@pytest.mark.filterwarnings("ignore:Truncating the start/stop/step of slice")
@pytest.mark.parametrize("seed", range(6))
def test_the_reference_survives_them_too(seed):
    """It may refuse them in any way, as long as it is an exception."""
    for p, x, steps in mutants(seed, 40):
        with suppress(Exception):
            program_eval(x.double(), [t.double() for t in p.parameters], steps)
        with suppress(Exception):
            assert size_of(steps) >= 0
        with suppress(Exception):
            assert reference.program_pack(p.parameters, steps).isfinite().any()


@pytest.mark.parametrize("name", sorted(guard_pages.CASES.keys() - {"every operator"}))  # tests/ops/test_guard_pages.py
def test_no_read_past_the_end_of_an_argument(name):
    """In a process of its own, which such a read would end."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.ops.guard_pages", name],
        cwd=Path(__file__).resolve().parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, f"exit status {ran.returncode}\n{ran.stderr[-2000:]}"
