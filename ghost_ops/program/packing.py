"""The packed form of a program's parameters: one tensor, the same on every processor.

Layer by layer it holds the weight, the bias, and the activation's slopes if it has any, with the BatchNorm folded in.
Each of these pieces begins at a multiple of 16 elements. A product's weight is as its format says (``weights``), a
depthwise one tap by tap. ``csrc/cpu/program`` packs and reads the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..activations import PRELU
from ..folding import fold, fold_as_kernels
from .layer import Fold, Folded
from .packed_layer import Channels, PackedLayer, Reader
from .step import MapStep, Step
from .weights.format import WeightFormat, up


def fold_parameters(parameters: Sequence[torch.Tensor], steps: Sequence[Step], fold: Fold = fold) -> list[list[Folded]]:
    """The layers of each step, from the parameters of a net in the order of its steps.

    Raises:
        ValueError: these are not the parameters of the steps.
    """
    rest = iter(parameters)
    try:
        found = [step.folded(rest, fold) for step in steps]
    except (StopIteration, RuntimeError) as error:
        raise ValueError(f"program: parameters: expected those of the steps, in order ({error})") from error
    if next(rest, None) is not None:
        raise ValueError(f"program: parameters: expected {len(parameters) - 1} or fewer, got {len(parameters)}")
    return found


def _packed_layers(steps: Sequence[Step]) -> list[list[PackedLayer]]:
    channels: dict[int, Channels] = {}
    found = []
    for step in steps:
        found.append(step.packed_layers(channels))
        if isinstance(step, MapStep):
            channels[step.out] = step.output_channels(channels)
    return found


def packed_size(steps: Sequence[Step], weights: WeightFormat) -> int:
    """Number of elements of the packed form."""
    return sum(layer.size(weights) for layers in _packed_layers(steps) for layer in layers)


def pack(parameters: Sequence[torch.Tensor], steps: Sequence[Step], weights: WeightFormat) -> torch.Tensor:
    """The packed form of a net's parameters, on the CPU."""
    pieces = [torch.zeros(0, dtype=weights.dtype)]
    for layers, folded in zip(_packed_layers(steps), fold_parameters(parameters, steps, fold_as_kernels), strict=True):
        for layer, tensors in zip(layers, folded, strict=True):
            pieces += [_aligned(piece.view(weights.dtype)) for piece in layer.pack(tensors, weights)]
    return torch.cat(pieces)


def _aligned(piece: torch.Tensor) -> torch.Tensor:
    return F.pad(piece, (0, up(len(piece), 16) - len(piece)))


def unpack(
    numbers: torch.Tensor, steps: Sequence[Step], weights: WeightFormat, kinds: tuple[int, ...] = (PRELU,)
) -> list[list[Folded]]:
    """The layers of each step.

    Args:
        numbers: those of the packed form (``WeightFormat.numbers``), of any floating-point dtype.
        kinds: activations with which a layer has its slopes.

    Raises:
        ValueError: the packed form has another length.
    """
    packed, length = _packed_layers(steps), numbers.numel() // weights.readings
    expected = sum(layer.size(weights) for layers in packed for layer in layers)
    if length != expected:
        raise ValueError(f"program: packed: expected {expected} elements, got {length}")
    reader = Reader(numbers, weights)
    return [[layer.unpack(reader, kinds) for layer in layers] for layers in packed]
