"""How the parameters of one layer are arranged in the packed form of a program."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .layer import Folded, Layer
from .weights.format import WeightFormat, up


class Piece(NamedTuple):
    """Channels of a map that follow each other: ``count`` of them, the first in lane ``at``."""

    at: int
    count: int


@dataclass(frozen=True)
class Channels:
    """Where the channels of a map are among the lanes of its pixels: in pieces, in order.

    A step that makes a map begins each piece in a lane that is a multiple of 8: a Ghost module has one of the primary
    convolution's channels and one of the cheap operation's. A slice of a map need not begin its pieces so.
    """

    pieces: tuple[Piece, ...]

    @classmethod
    def of(cls, *counts: int) -> Channels:
        """Pieces of so many channels, each padded to a multiple of 8 lanes; those of none are left out."""
        ends = accumulate((up(count, 8) for count in counts), initial=0)
        return cls(tuple(Piece(at, count) for at, count in zip(ends, counts) if count))

    @property
    def count(self) -> int:
        return sum(piece.count for piece in self.pieces)

    @property
    def width(self) -> int:
        """Number of lanes of a pixel."""
        return up(self.pieces[-1].at + self.pieces[-1].count, 8)

    def lanes(self) -> torch.Tensor:
        """The lane of each channel."""
        return torch.cat([piece.at + torch.arange(piece.count) for piece in self.pieces])

    def concatenated(self, *others: Channels) -> Channels:
        """These and those of other maps, side by side in one map."""
        pieces = list(self.pieces)
        for other in others:
            begin = up(pieces[-1].at + pieces[-1].count, 8)
            pieces += (Piece(begin + at, count) for at, count in other.pieces)
        return Channels(tuple(pieces))

    def sliced(self, begin: int, end: int) -> Channels:
        """Channels [begin, end), in lanes that are counted from the first one's."""
        found, first = [], 0
        for at, count in self.pieces:
            low, high = max(begin - first, 0), min(end - first, count)
            if low < high:
                found.append(Piece(at + low, high - low))
            first += count
        return Channels(tuple(Piece(at - found[0].at, count) for at, count in found))


class Reader:
    """Takes the pieces of a packed form from its numbers, one after the other."""

    def __init__(self, numbers: torch.Tensor, weights: WeightFormat) -> None:
        self._numbers, self._weights = numbers, weights
        self._floats = numbers[: numbers.numel() // weights.readings]
        self._at = 0

    def floats(self, size: int) -> torch.Tensor:
        begin = self._skip(size)
        return self._floats[begin : begin + size]

    def product(self, outputs: int, inputs: int) -> torch.Tensor:
        begin = self._skip(self._weights.size(outputs, inputs))
        return self._weights.unpack(self._numbers, begin, outputs, inputs)

    def _skip(self, size: int) -> int:
        begin = self._at
        self._at += up(size, 16)
        return begin


class PackedLayer:
    """A layer of a step: its weight, then its bias and slopes, one number for each of ``width`` lanes.

    Args:
        layer: what the step knows of it.
        shape: the weight's.
        lanes: the lane of each channel that is packed, which are the first of the weight's outputs; None: the first.
        width: number of lanes.
    """

    def __init__(self, layer: Layer, shape: tuple[int, ...], lanes: torch.Tensor | None, width: int) -> None:
        self.layer, self.shape = layer, shape
        self._lanes, self._width = lanes, up(width, 16)

    def size(self, weights: WeightFormat) -> int:
        """Number of elements that it takes."""
        return up(self._weight_size(weights), 16) + self._width * (1 + self.layer.packs_slopes)

    def pack(self, folded: Folded, weights: WeightFormat) -> list[torch.Tensor]:
        """Its pieces, of elements of four bytes."""
        weight, bias, _ = (None if t is None else t.detach().float().cpu() for t in folded)
        return [*self._pack_weight(weight, weights), self._spread(bias), *self._pack_slopes(folded)]

    def unpack(self, reader: Reader, kinds: tuple[int, ...]) -> Folded:
        """What is packed of it; the slopes only where its activation is one of these kinds."""
        weight, bias = self._unpack_weight(reader), self._gathered(reader.floats(self._width))
        return Folded(weight, bias, self._unpack_slopes(reader, kinds))

    def _pack_slopes(self, folded: Folded) -> list[torch.Tensor]:
        if not self.layer.packs_slopes:
            return []
        slopes = torch.tensor(self.layer.slope) if folded.slopes is None else folded.slopes.detach().cpu()
        slopes = slopes.float()
        return [self._spread(slopes.expand(self.shape[0]) if slopes.numel() == 1 else slopes)]

    def _unpack_slopes(self, reader: Reader, kinds: tuple[int, ...]) -> torch.Tensor | None:
        slopes = self._gathered(reader.floats(self._width)) if self.layer.packs_slopes else None
        return slopes if self.layer.act in kinds else None

    def _spread(self, vector: torch.Tensor) -> torch.Tensor:
        if self._lanes is None:
            return F.pad(vector, (0, self._width - len(vector)))
        return vector.new_zeros(self._width).index_copy(0, self._lanes, vector[: len(self._lanes)])

    def _gathered(self, lanes: torch.Tensor) -> torch.Tensor:
        """The channels among lanes; those that are not packed are zero."""
        if self._lanes is None:
            return lanes[..., : self.shape[0]]
        return F.pad(lanes[..., self._lanes], (0, self.shape[0] - len(self._lanes)))

    def _weight_size(self, weights: WeightFormat) -> int:
        raise NotImplementedError

    def _pack_weight(self, weight: torch.Tensor, weights: WeightFormat) -> list[torch.Tensor]:
        raise NotImplementedError

    def _unpack_weight(self, reader: Reader) -> torch.Tensor:
        raise NotImplementedError


class Product(PackedLayer):
    """A dense convolution or linear layer: a product of outputs x (taps x inputs)."""

    def __init__(self, layer: Layer, shape: tuple[int, ...]) -> None:
        super().__init__(layer, shape, None, shape[0])

    def _weight_size(self, weights: WeightFormat) -> int:
        return weights.size(self.shape[0], prod(self.shape[1:]))

    def _pack_weight(self, weight: torch.Tensor, weights: WeightFormat) -> list[torch.Tensor]:
        return [weights.pack(weight.permute(0, 2, 3, 1).flatten(1))]

    def _unpack_weight(self, reader: Reader) -> torch.Tensor:
        out, inputs, *kernel = self.shape
        by_tap = reader.product(out, prod(self.shape[1:]))
        return by_tap.reshape(out, *kernel, inputs).permute(0, 3, 1, 2)


class GroupedProduct(PackedLayer):
    """A convolution in groups: a product for each."""

    def __init__(self, layer: Layer, shape: tuple[int, ...], groups: int) -> None:
        super().__init__(layer, shape, None, shape[0])
        self._groups = groups
        self._one = Product(layer, (shape[0] // groups, *shape[1:]))

    def _weight_size(self, weights: WeightFormat) -> int:
        return self._groups * up(self._one._weight_size(weights), 16)

    def _pack_weight(self, weight: torch.Tensor, weights: WeightFormat) -> list[torch.Tensor]:
        return [piece for group in weight.chunk(self._groups) for piece in self._one._pack_weight(group, weights)]

    def _unpack_weight(self, reader: Reader) -> torch.Tensor:
        return torch.cat([self._one._unpack_weight(reader) for _ in range(self._groups)])


class DepthwiseTaps(PackedLayer):
    """A depthwise convolution: for each tap the lanes of all channels."""

    def _weight_size(self, weights: WeightFormat) -> int:
        return prod(self.shape[2:]) * self._width

    def _pack_weight(self, weight: torch.Tensor, weights: WeightFormat) -> list[torch.Tensor]:
        return [self._spread(tap) for tap in weight.flatten(1).t()]

    def _unpack_weight(self, reader: Reader) -> torch.Tensor:
        taps = prod(self.shape[2:])
        rows = reader.floats(taps * self._width).reshape(taps, -1)
        return self._gathered(rows).t().reshape(self.shape)
