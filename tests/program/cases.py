"""Programs for ``program`` and its companions: steps, and parameters that fit them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch.nn.modules.utils import _pair

from ghost_ops.activations import PRELU
from ghost_ops.program import (
    BETA,
    BIAS,
    GAMMA,
    NORM,
    SLOPES,
    Activation,
    Conv,
    Excite,
    Ghost,
    Layer,
    Load,
    MaxPool,
    Pool,
    Step,
    decode,
    encode,
    weights_of,
)
from ghost_ops.program.packing import packed_size

SLOTS = 6
LAYER = Layer()
Sizes = int | tuple[int, int]


@dataclass(frozen=True)
class Program:
    """Steps with parameters that fit them, and the channels of an input."""

    steps: tuple[Step, ...]
    parameters: tuple[torch.Tensor, ...]
    channels: int
    slots: int = SLOTS

    @property
    def code(self) -> list[int]:
        return encode(self.steps, self.slots)

    def to(self, dtype: torch.dtype) -> Program:
        return replace(self, parameters=tuple(t.to(dtype) for t in self.parameters))

    def kinds(self) -> set[type]:
        return {type(step) for step in self.steps}


def parameters_for(steps: Sequence[Step], seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Normal parameters, scaled so that maps keep their size from step to step."""
    generator, rng, found = torch.Generator().manual_seed(seed), random.Random(seed), []

    def numbers(*shape):
        return torch.randn(shape, generator=generator)

    def layers(step: Step):
        return [(step.layer, (step.channels, 0))] if isinstance(step, Activation) else step.layers()

    for layer, shape in (pair for step in steps for pair in layers(step)):
        n, fan_in = shape[0], prod(shape[1:])
        if fan_in:
            found.append(numbers(*shape) * fan_in**-0.5)
        if layer.parts & BIAS:
            found.append(0.3 * numbers(n))
        if layer.parts & GAMMA:
            found.append(1 + 0.3 * numbers(n))
        if layer.parts & BETA:
            found.append(0.3 * numbers(n))
        if layer.parts & NORM:
            found += [0.3 * numbers(n), 0.5 + numbers(n).abs()]
        if layer.parts & SLOPES:
            found.append(0.3 * numbers(rng.choice([1, n])))
    return tuple(found)


def conv(
    source: int, out: int, channels: int, filters: int, kernel: int | tuple[int, int] = 3, stride: Sizes = 1,
    padding: Sizes | None = None, layer: Layer = LAYER, *, dilation: Sizes = 1, groups: int = 1, residual: int = -1,
    residual_first: bool = False, squeeze: bool = False,
) -> Conv:  # fmt: skip
    """A convolution; sizes are one number, or two, and ``padding`` is half of the kernel where nothing is said."""
    kernel = _pair(kernel)
    padding = tuple(k // 2 for k in kernel) if padding is None else _pair(padding)
    sizes = (kernel, _pair(stride), padding, _pair(dilation))
    return Conv(source, out, residual, residual_first, squeeze, channels, filters, *sizes, groups, layer)


def size_of(code: Sequence[int]) -> int:
    """Number of elements of the packed form of such steps."""
    return packed_size(decode(code), weights_of(code))


def make_program(*steps: Step, slots: int = SLOTS, seed: int = 0) -> Program:
    return Program(steps, parameters_for(steps, seed), steps[0].channels, slots)


def program_of_other_steps() -> Program:
    """Max pooling and activations of their own between Ghost modules; no kernel of a device knows these steps."""
    layer = Layer(BIAS, 0.0, 1)
    prelu = Layer(SLOPES, 0.0, PRELU)
    steps = (
        Load(0, 5, False), Ghost(0, 1, -1, False, False, 5, 9, 9, 17, 3, layer, layer), MaxPool(1, 2, 17, 3, 2, 1),
        Activation(2, 3, True, 17, prelu), Excite(17, 4, 1, layer, layer),
        Ghost(3, 4, 2, True, False, 17, 9, 9, 17, 5, layer, layer), Activation(4, 0, True, 17, Layer(act=1)), Pool(17),
    )  # fmt: skip
    return make_program(*steps)
