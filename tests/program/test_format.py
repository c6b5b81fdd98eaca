"""The list of integers: every kind of step, drawn programs, and what is registered."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import get_type_hints

import pytest
import torch

from ghost_ops import program
from ghost_ops.backends import reference
from ghost_ops.program import (
    BFLOAT16,
    BIAS,
    GAMMA,
    NORM,
    Conv,
    Depthwise,
    Excite,
    Ghost,
    Layer,
    Linear,
    Load,
    MapStep,
    Pool,
    Step,
    Store,
    decode,
    encode,
    register_format,
    register_step,
    step,
    step_kinds,
    weight_format,
    with_precision,
)
from ghost_ops.program.weights import format as formats
from tests.program.drawn import draw_program

ONE = 0x3FF0000000000000  # 1.0 by its bits
LAYERS = Layer(BIAS, 0.0, 1), Layer(NORM | GAMMA, 1.0, 3, 0.5)


def example(kind: type[Step], number: int) -> Step:
    """A step whose fields differ, beginning with this number."""
    values: dict[str, object] = {}
    for i, (name, of) in enumerate((field.name, get_type_hints(kind)[field.name]) for field in fields(kind)):
        if of in (Layer, Layer | None):
            values[name] = LAYERS[i % 2]
        elif of == step.Size:
            values[name] = i + number, i
        elif of == step.Slots:
            values[name] = tuple(range(i + number))
        else:
            values[name] = bool((i + number) % 2) if of is bool else of(i + number)
    return kind(**values)


@pytest.mark.parametrize("kind", step_kinds().values(), ids=lambda kind: kind.__name__)
def test_every_kind_and_back(kind):
    steps = [example(kind, number) for number in (1, 2)]
    assert decode(encode(steps, 2)) == steps
    assert step_kinds()[kind.kind] is kind


def test_drawn_programs_and_back():
    for seed in range(70):
        p = draw_program(seed)
        assert decode(p.code) == decode(with_precision(p.code, BFLOAT16)) == list(p.steps)


def test_a_layer_that_is_absent_takes_no_numbers():
    module = Ghost(0, 1, -1, False, True, 8, 6, 6, 11, 3, *LAYERS)
    pointwise = replace(module, cheap_channels=0, out_channels=6, cheap=None)
    assert len(pointwise.encode()) == len(module.encode()) - 4
    assert decode(encode([pointwise, module, pointwise], 2)) == [pointwise, module, pointwise]


def test_the_list_of_saved_nets():
    """Saved nets hold such lists: no number may move."""
    first, second = LAYERS
    steps = [
        Conv(-1, 0, -1, False, False, 3, 16, (5, 4), (2, 1), (1, 2), (1, 3), 1, first),
        Conv(0, 3, 0, True, True, 16, 16, (3, 1), (1, 1), (1, 0), (1, 1), 4, second),
        Ghost(0, 1, -1, False, True, 16, 6, 12, 17, 3, first, second),
        Ghost(1, 2, 0, True, False, 17, 9, 0, 9, 1, second, None), Depthwise.same(2, 3, True, 9, 7, 2, first),
        Excite(9, 4, 2, first, second), Pool(9), Linear(9, 10, first),
    ]  # fmt: skip
    one, two = [1, 0, 1, 0], [6, ONE, 3, 0x3FE0000000000000]
    expected = [
        4, 5, 0, 1, -1, 0, -1, 0, 0, 3, 16, 5, 4, 2, 1, 1, 2, 1, 3, 1, *one,
        1, 0, 3, 0, 1, 1, 16, 16, 3, 1, 1, 1, 1, 0, 1, 1, 4, *two, 2, 0, 1, -1, 0, 1, 16, 6, 12, 17, 3, *one, *two,
        2, 1, 2, 0, 1, 0, 17, 9, 0, 9, 1, *two, 3, 2, 3, 1, 9, 7, 7, 2, 2, 3, 3, 1, 1, *one,
        4, 9, 4, 2, *one, *two, 5, 9, 6, 9, 10, *one,
    ]  # fmt: skip
    assert encode(steps, 5) == expected and decode(expected) == steps
    assert encode([Load(2, 5, True), Store(2)], 3, BFLOAT16) == [4, 3, 1, 0, 2, 5, 1, 7, 2]


# What is registered


def test_a_kind_that_is_taken_is_refused():
    before = step_kinds()
    with pytest.raises(ValueError, match=r"register_step: Load: expected a kind that no step has, got 0 \(Load\)"):
        register_step(Load)

    @dataclass(frozen=True)
    class Other(Step):
        kind = Depthwise.kind

    with pytest.raises(ValueError, match=r"register_step: Other: .* got 3 \(Depthwise\)"):
        register_step(Other)
    assert step_kinds() == before


def test_what_is_not_a_dataclass_is_refused():
    class Bare(Step):
        kind = 10**6

    with pytest.raises(TypeError, match="register_step: expected a dataclass, got Bare"):
        register_step(Bare)
    assert 10**6 not in step_kinds()


@dataclass(frozen=True)
class Scale(MapStep):
    """A kind that nobody else knows of."""

    kind = 10**6
    source: int
    out: int
    by: float

    def run(self, state, folded):
        state.write(self.out, state.read(self.source) * self.by)


def test_a_kind_of_ones_own(monkeypatch):
    monkeypatch.setattr(step, "_KINDS", step_kinds())
    register_step(Scale)
    steps, x = [Load(0, 3, False), Scale(0, 1, 0.25), Store(1)], torch.randn(2, 3, 4, 5)
    code = encode(steps, 2)
    assert decode(code) == steps and decode(encode([Scale(0, 1, 3)], 2)) == [Scale(0, 1, 3.0)]
    assert program.output_shape(steps, 2, 4, 5) == x.shape
    assert torch.equal(reference.program_eval(x, [], code), x * 0.25)


def test_formats_of_weights():
    with pytest.raises(ValueError, match=r"expected a precision that no format has, got 1 \(bfloat16\)"):
        register_format(type(weight_format(BFLOAT16)))
    with pytest.raises(ValueError, match=r"expected a precision of 0 \(float32\) or 1 \(bfloat16\), got 7"):
        weight_format(7)
    generator = torch.Generator().manual_seed(0)
    for weights in formats._FORMATS.values():
        for n, k in ((1, 1), (8, 3), (16, 4), (17, 5), (40, 7)):
            weight = torch.randn(n, k, generator=generator).bfloat16().float()
            packed = weights.pack(weight)
            assert packed.dtype == weights.dtype and packed.shape == (weights.size(n, k),)
            around = torch.cat([packed.new_zeros(16), packed, packed.new_zeros(16)])
            numbers = weights.numbers(around)
            assert numbers.shape == weights.places(len(around)).shape == (weights.readings * len(around),)
            assert torch.equal(weights.unpack(numbers, 16, n, k), weight)
