"""The steps of a program, and the list of integers in which they travel through the operators.

A program is a chain of steps over numbered slots, each slot a map. The first step fills a slot from the input; the last
returns a slot, or, after a pooling, features. Beside the slots there are one squeeze (the channel means of the last
step that was asked for it), one excitation and one row of features an image. ``csrc/cpu/program/steps.cpp`` reads the
same list; floats stand in it by their bits.

The list begins with its format, the number of slots, and the precision of the packed form: what the weights of dense
convolutions, 1x1 convolutions and linear layers are packed as.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

from ..activations import NONE

FORMAT = 3
FLOAT32, BFLOAT16 = 0, 1  # precisions
BIAS, NORM, GAMMA, BETA, SLOPES = 1, 2, 4, 8, 16


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer with its BatchNorm and activation, as far as a program must know it.

    Its parameters follow each other in the program's list: weight, then what ``parts`` says is there of bias, gamma,
    beta, running mean and variance, PReLU's weight.

    Attributes:
        parts: the sum of BIAS, NORM (mean and variance), GAMMA, BETA, SLOPES.
        eps: of the BatchNorm.
        act: code of the activation after it.
        slope: LeakyReLU's.
    """

    parts: int = 0
    eps: float = 0.0
    act: int = NONE
    slope: float = 0.0

    def count(self) -> int:
        """Tensors among the parameters."""
        return 1 + sum(n for part, n in ((BIAS, 1), (GAMMA, 1), (BETA, 1), (NORM, 2), (SLOPES, 1)) if self.parts & part)


@dataclass(frozen=True)
class Load:
    """The input, N x channels x H x W, into slot ``out``. ``by_lanes``: some step reads whole vectors of it."""

    kind: ClassVar[int] = 0
    out: int
    channels: int
    by_lanes: bool


@dataclass(frozen=True)
class Conv:
    """A dense convolution of the input, N x channels x H x W, into slot ``out``."""

    kind: ClassVar[int] = 1
    out: int
    channels: int
    filters: int
    kernel: int
    stride: int
    padding: int
    layer: Layer


@dataclass(frozen=True)
class Ghost:
    """A Ghost module, or with ``made`` 0 a 1x1 convolution.

    Attributes:
        source, out: slots.
        residual: slot that is added, or -1.
        scaled: the input is multiplied by the excitation.
        squeeze: the output's channel means are the next squeeze.
        channels, primary, made, kept: of the input; of the primary convolution, of the cheap operation, of the output.
        kernel: of the cheap operation.
        layer, cheap: the two convolutions; ``cheap`` is None with ``made`` 0.
    """

    kind: ClassVar[int] = 2
    source: int
    out: int
    residual: int
    scaled: bool
    squeeze: bool
    channels: int
    primary: int
    made: int
    kept: int
    kernel: int
    layer: Layer
    cheap: Layer | None


@dataclass(frozen=True)
class Depthwise:
    """A depthwise convolution padded by kernel // 2, from slot ``source`` to ``out``."""

    kind: ClassVar[int] = 3
    source: int
    out: int
    squeeze: bool
    channels: int
    kernel: int
    stride: int
    layer: Layer


@dataclass(frozen=True)
class Excite:
    """The excitation of the squeeze: gate(expand(reduce(squeeze)))."""

    kind: ClassVar[int] = 4
    channels: int
    hidden: int
    gate: int
    reduce: Layer
    expand: Layer


@dataclass(frozen=True)
class Pool:
    """The squeeze as features."""

    kind: ClassVar[int] = 5
    channels: int


@dataclass(frozen=True)
class Dense:
    """A linear layer of the features."""

    kind: ClassVar[int] = 6
    channels: int
    features: int
    layer: Layer


@dataclass(frozen=True)
class Store:
    """The slot that is returned."""

    kind: ClassVar[int] = 7
    source: int


Step = Load | Conv | Ghost | Depthwise | Excite | Pool | Dense | Store
_KINDS: tuple[type, ...] = (Load, Conv, Ghost, Depthwise, Excite, Pool, Dense, Store)


def _bits(value: float) -> int:
    return struct.unpack("<q", struct.pack("<d", value))[0]


def _real(bits: int) -> float:
    return struct.unpack("<d", struct.pack("<q", bits))[0]


def encode(steps: Sequence[Step], slots: int, precision: int = FLOAT32) -> list[int]:
    """The list for an operator."""
    out = [FORMAT, slots, precision]
    for step in steps:
        out.append(step.kind)
        for field in fields(step):
            value = getattr(step, field.name)
            if isinstance(value, Layer):
                out += [value.parts, _bits(value.eps), value.act, _bits(value.slope)]
            elif value is not None:
                out.append(int(value))
    return out


def precision_of(numbers: Sequence[int]) -> int:
    """The precision that a list says.

    Raises:
        ValueError: it says none.
    """
    if len(numbers) < 3 or numbers[2] not in (FLOAT32, BFLOAT16):
        raise ValueError(f"program: steps: expected a precision of {FLOAT32} or {BFLOAT16}, got {list(numbers[2:3])}")
    return numbers[2]


def with_precision(numbers: Sequence[int], precision: int) -> list[int]:
    """The same steps for another packed form."""
    return [*numbers[:2], precision, *numbers[3:]]


def decode(numbers: Sequence[int]) -> list[Step]:
    """The steps of a list that ``encode`` made.

    Raises:
        ValueError: it is no such list.
    """
    rest = iter(numbers)
    try:
        if next(rest) != FORMAT or next(rest) < 1:
            raise ValueError(f"program: steps: expected a list of format {FORMAT}")
        precision_of(numbers)
        next(rest)
        steps = []
        for kind in rest:
            if not 0 <= kind < len(_KINDS):
                raise ValueError(f"program: steps: expected a kind from 0 to {len(_KINDS) - 1}, got {kind}")
            values: dict[str, object] = {}
            for field in fields(_KINDS[kind]):
                if field.type == "Layer" or (field.type == "Layer | None" and values["made"]):
                    parts, eps, act, slope = (next(rest) for _ in range(4))
                    values[field.name] = Layer(parts, _real(eps), act, _real(slope))
                elif field.type == "Layer | None":
                    values[field.name] = None
                else:
                    values[field.name] = bool(next(rest)) if field.type == "bool" else next(rest)
            steps.append(_KINDS[kind](**values))
    except (StopIteration, RuntimeError):  # a generator turns the end of the list into a RuntimeError
        raise ValueError("program: steps: expected a list that ends with a step, got one that ends within") from None
    if not steps:
        raise ValueError("program: steps: expected at least one step")
    return steps


def layers(step: Step) -> list[tuple[Layer, tuple[int, ...]]]:
    """The layers of a step in order, each with the shape of its weight."""
    if isinstance(step, Conv):
        return [(step.layer, (step.filters, step.channels, step.kernel, step.kernel))]
    if isinstance(step, Ghost):
        found = [(step.layer, (step.primary, step.channels, 1, 1))]
        return found + ([(step.cheap, (step.made, 1, step.kernel, step.kernel))] if step.made else [])
    if isinstance(step, Depthwise):
        return [(step.layer, (step.channels, 1, step.kernel, step.kernel))]
    if isinstance(step, Excite):
        shapes = (step.hidden, step.channels, 1, 1), (step.channels, step.hidden, 1, 1)
        return [(step.reduce, shapes[0]), (step.expand, shapes[1])]
    return [(step.layer, (step.features, step.channels, 1, 1))] if isinstance(step, Dense) else []


def output_sizes(steps: Sequence[Step], height, width) -> list[tuple]:
    """Height and width of what each step makes, 1 x 1 where it is not a map; sizes may be symbolic."""
    maps: dict[int, tuple] = {}
    found = []
    for step in steps:
        size = (1, 1)
        if isinstance(step, Load):
            size = (height, width)
        elif isinstance(step, Conv):
            size = tuple((n + 2 * step.padding - step.kernel) // step.stride + 1 for n in (height, width))
        elif isinstance(step, Ghost):
            size = maps[step.source]
        elif isinstance(step, Depthwise):
            size = tuple((n - 1) // step.stride + 1 for n in maps[step.source])
        elif isinstance(step, Store):
            size = maps[step.source]
        if isinstance(step, (Load, Conv, Ghost, Depthwise)):
            maps[step.out] = size
        found.append(size)
    return found


def output_shape(steps: Sequence[Step], batch, height, width) -> tuple:
    """Shape of a program's result for an input of batch x channels x height x width; sizes may be symbolic."""
    channels: dict[int, int] = {}
    for step in steps:
        if isinstance(step, Load):
            channels[step.out] = step.channels
        elif isinstance(step, Conv):
            channels[step.out] = step.filters
        elif isinstance(step, Ghost):
            channels[step.out] = step.kept
        elif isinstance(step, Depthwise):
            channels[step.out] = channels[step.source]
    last = steps[-1]
    if isinstance(last, Store):
        return (batch, channels[last.source], *output_sizes(steps, height, width)[-1])
    return (batch, last.features if isinstance(last, Dense) else last.channels)
