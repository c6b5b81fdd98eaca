"""What the nodes of a traced graph are to a program: maps, parts of them, features, and the operations that make them.

An operation is what one or more nodes compute, read from the graph before any step is written. ``lower.py`` writes the
steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import fx, nn

from ...fused.builder import Builder
from ...fused.layers import ConvBNAct, LinearAct


@dataclass(eq=False)
class Operation:
    """One operation of a region.

    Attributes:
        node: the first node that it stands for, which is left to PyTorch where no step computes the operation.
        channels: number of channels of its map.
    """

    node: fx.Node | None
    channels: int

    def reads(self) -> list[Map]:
        """The maps that it reads."""
        return [getattr(self, name) for name in ("source", "other", "gate", "like") if hasattr(self, name)]


class Map(NamedTuple):
    """Channels [begin, end) of the map that an operation makes."""

    op: Operation
    begin: int
    end: int

    @classmethod
    def of(cls, op: Operation) -> Map:
        return cls(op, 0, op.channels)

    @property
    def channels(self) -> int:
        return self.end - self.begin

    @property
    def is_whole(self) -> bool:
        return self.begin == 0 and self.end == self.op.channels


class Grouped(NamedTuple):
    """A map of five dimensions: its channels as groups x channels of each, or ``turned`` the other way round."""

    source: Map
    groups: int
    turned: bool


PADDED = "channels of zeros around a map are a step only where they are added to another"


class Padded(NamedTuple):
    """A map between so many channels of zeros."""

    source: Map
    before: int
    after: int


class Several(NamedTuple):
    """Maps in a tuple, such as the parts of a split one."""

    items: tuple[Map, ...]


class Features(NamedTuple):
    """One number a channel of each image.

    Attributes:
        op: a :class:`Pool`, :class:`Flatten` or :class:`OfFeatures`.
        dims: 2 of N x C, 3 of N x C x 1, 4 of N x C x 1 x 1; 0 where they are expanded to the size of a map.
    """

    op: Operation
    dims: int


Value = Map | Grouped | Padded | Several | Features


@dataclass(eq=False)
class Entry(Operation):
    """The input of the program."""


@dataclass(eq=False)
class Layer(Operation):
    """A convolution, or a BatchNorm of its own as a depthwise one."""

    source: Map
    layer: ConvBNAct

    def is_depthwise(self) -> bool:
        conv = self.layer.conv
        return self.layer.geometry[3] == conv.in_channels == conv.out_channels


@dataclass(eq=False)
class Fused(Operation):
    """A fused block."""

    source: Map
    module: nn.Module


@dataclass(eq=False)
class Module(Operation):
    """One of PyTorch's modules that is a step of its own: an activation, a pooling, an upsampling by a number.

    ``of_sum``: the sum that it is the activation of, where a step computes both.
    """

    source: Map
    module: nn.Module
    of_sum: Add | None = field(default=None, init=False)

    def reads(self) -> list[Map]:
        return [self.source] if self.of_sum is None else self.of_sum.reads()


@dataclass(eq=False)
class Concat(Operation):
    """Maps side by side. With ``ghost`` it is a Ghost module: ``cheap`` of ``primary`` follows it."""

    sources: tuple[Map, ...]
    ghost: tuple[Layer, Layer] | None = field(default=None, init=False)

    def reads(self) -> list[Map]:
        return [self.ghost[0].source] if self.ghost else list(self.sources)


@dataclass(eq=False)
class Add(Operation):
    """The sum of two maps. ``into``: the operation whose step adds the other map to its own."""

    source: Map
    other: Map
    into: Operation | None = field(default=None, init=False)

    def reads(self) -> list[Map]:
        return [self.source, self.other] if self.into is None else [*self.into.reads(), self.added()]

    def added(self) -> Map:
        """The map that is added to ``into``'s."""
        return self.other if self.source.op is self.into else self.source


@dataclass(eq=False)
class Multiply(Operation):
    """A map times another, which has its size or is brought to it."""

    source: Map
    gate: Map


@dataclass(eq=False)
class Shuffle(Operation):
    source: Map
    groups: int


@dataclass(eq=False)
class UpsampleLike(Operation):
    """Upsampling to the size of another map: nearest, or with ``align_corners`` bilinear."""

    source: Map
    like: Map
    align_corners: bool | None = None


@dataclass(eq=False)
class Scale(Operation):
    """A map times an excitation.

    Attributes:
        pooled: the map whose means are squeezed.
        excite: writes the step of the excitation.
        is_step: whether a step multiplies; else the steps that read it do, and read its source.
    """

    source: Map
    pooled: Map
    excite: Callable[[Builder], None]
    is_step: bool = field(default=False, init=False)

    def reads(self) -> list[Map]:
        return [self.source] if self.is_step else []


@dataclass(eq=False)
class Pool(Operation):
    """The means of a map's channels as features."""

    pooled: Map


@dataclass(eq=False)
class Flatten(Operation):
    """All numbers of a map as features; ``channels`` is how many, and whether the forward says so itself."""

    source: Map
    is_said: bool = False


@dataclass(eq=False)
class OfFeatures(Operation):
    """What makes features of features."""

    features: Operation
    layer: LinearAct


@dataclass(eq=False)
class Dense(OfFeatures):
    """A linear layer."""


@dataclass(eq=False)
class ScaleFeatures(OfFeatures):
    """A BatchNorm: the layer's weight has one number for each."""


def needs(op: Operation) -> list[Operation]:
    """The operations whose results it needs."""
    found = [m.op for m in op.reads()]
    for name in ("source", "pooled"):
        if isinstance(op, (Scale, Pool)) and hasattr(op, name):
            found.append(getattr(op, name).op)
    if isinstance(op, OfFeatures):
        found.append(op.features)
    return found
