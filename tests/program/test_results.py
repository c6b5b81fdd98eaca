"""Programs of several results: maps, and features beside them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.library import opcheck

from ghost_ops.backends import reference
from ghost_ops.ops._library import overload
from ghost_ops.ops.program import program_maps, program_pack
from ghost_ops.program import (
    BETA,
    BIAS,
    NORM,
    Depthwise,
    Excite,
    Flatten,
    Layer,
    Linear,
    MapStep,
    MaxPool,
    Pool,
    Scale,
    ScaleFeatures,
    Slice,
    Squeeze,
    Store,
    StoreFeatures,
    output_shapes,
)
from tests.helpers import assert_as_accurate, make_map, poisoned_memory
from tests.ops.cases import DTYPES
from tests.program.cases import conv, make_program
from tests.program.drawn import draw_call
from tests.program.test_program import DRAWN, PLAIN, ghost


@pytest.fixture(autouse=True)
def _quick(one_thread):
    """Where it is not threads that are tested."""


@pytest.mark.parametrize("threads", [1, 3])
def test_several_maps(threads):
    """Every map that a program still has at its end, some of them twice."""
    torch.set_num_threads(threads)
    several = 0
    for seed in range(DRAWN):
        call = draw_call(seed, torch.float32, threads)
        if not isinstance(call.program.steps[-1], Store):
            continue
        steps = call.program.steps[:-1]
        slots = sorted({step.out for step in steps if isinstance(step, MapStep)})
        stored = replace(call.program, steps=(*steps, *(Store(slot) for slot in (*slots, slots[0]))))
        packed = program_pack(list(stored.parameters), stored.code)
        with poisoned_memory():
            maps = program_maps(call.x, packed, stored.code)
        double = [t.double() for t in stored.parameters]
        exact = reference.program_maps(
            call.x.double(), reference.program_pack(double, stored.code).double(), stored.code
        )
        assert len(maps) == len(slots) + 1
        several += len(slots) > 2
        for ours, one in zip(maps, exact, strict=True):
            torch.testing.assert_close(
                ours.double(), one, rtol=1e-4, atol=1e-4, msg=lambda text, call=call: f"{call}\n{text}"
            )
    assert several > 5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_maps_and_features(threads, dtype):
    """A map goes on after its means were taken as features; these are returned beside it, before and after a layer."""
    torch.set_num_threads(threads)
    steps = [
        conv(-1, 0, 3, 20, 3, 2, 1, Layer(BIAS, 0.0, 1)), ghost(0, 1, 20, 7, 7, 13), Slice(1, 2, 3, 11), Squeeze(2, 8),
        Pool(8), MaxPool(1, 3, 13, 3, 2, 1), Depthwise.same(3, 0, True, 13, 5, 1, PLAIN),
        Excite(13, 4, 1, PLAIN, Layer(BIAS)), Scale(0, 4, True, 13), Excite(13, 3, 2, PLAIN, PLAIN),
        ghost(4, 5, 13, 9, 0, scaled=True), StoreFeatures(8), Store(5), Linear(8, 21, Layer(BIAS)), Store(4),
        StoreFeatures(21),
    ]  # fmt: skip
    p = make_program(*steps)
    double, packed = p.to(torch.float64), program_pack(list(p.parameters), p.code)
    for shape in ((1, 3, 90, 61), (7, 3, 21, 19), (1, 3, 1, 1)):
        x = make_map(shape, dtype)
        with poisoned_memory():
            ours = program_maps(x, packed, p.code)
        exact = reference.program_maps(x.double(), reference.program_pack(double.parameters, p.code).double(), p.code)
        plain = [t.to(dtype) for t in reference.program_maps(x.float(), packed, p.code)]
        assert (
            [t.shape for t in ours]
            == [t.shape for t in exact]
            == list(map(torch.Size, output_shapes(steps, *shape[::2], shape[3])))
        )
        for found, eager, truth in zip(ours, plain, exact, strict=True):
            assert found.dtype == dtype
            assert_as_accurate(found, eager, truth, what=str(shape))
    opcheck(overload("program_maps"), (make_map((2, 3, 9, 9)), packed, p.code))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_features_of_several_maps(threads, dtype):
    """Of a slice and of a map of two pieces, flattened, and means between them; layers of each, of all images."""
    torch.set_num_threads(threads)
    steps = [
        conv(-1, 0, 3, 20, 3, 2, 1, Layer(BIAS, 0.0, 1)), ghost(0, 1, 20, 7, 7, 13), Slice(1, 2, 3, 11),
        Flatten(2, 8, 280), ScaleFeatures(280, Layer(NORM | BETA, 1e-3, 1)), StoreFeatures(280),
        Linear(280, 5, Layer(BIAS)), StoreFeatures(5), Squeeze(1, 13), Pool(13), StoreFeatures(13),
        Depthwise.same(1, 3, False, 13, 3, 1, PLAIN), Flatten(3, 13, 455), Linear(455, 9, PLAIN), Store(1),
        StoreFeatures(9),
    ]  # fmt: skip
    p = make_program(*steps)
    double, packed = p.to(torch.float64), program_pack(list(p.parameters), p.code)
    for shape in ((1, 3, 9, 14), (11, 3, 10, 13), (2, 3, 69, 1), (0, 3, 9, 14)):  # 35 pixels each
        x = make_map(shape, dtype)
        with poisoned_memory():
            ours = program_maps(x, packed, p.code)
        exact = reference.program_maps(x.double(), reference.program_pack(double.parameters, p.code).double(), p.code)
        plain = [t.to(dtype) for t in reference.program_maps(x.float(), packed, p.code)]
        for found, eager, truth in zip(ours, plain, exact, strict=True):
            assert found.dtype == dtype and found.shape == truth.shape
            assert_as_accurate(found, eager, truth, what=str(shape))
    opcheck(overload("program_maps"), (make_map((2, 3, 9, 14)), packed, p.code))
    for call in (program_maps, reference.program_maps):
        with pytest.raises((RuntimeError, ValueError), match="expected a size of which 280 features come"):
            call(make_map((2, 3, 9, 15)), packed, p.code)
