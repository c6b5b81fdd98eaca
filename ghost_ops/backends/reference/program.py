"""``program``: a chain of steps (``backends/steps.py``) in plain PyTorch, and the packed form of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ...activations import PRELU, WITH_SLOPES, activate, apply_gate
from ..steps import (
    BETA,
    BFLOAT16,
    BIAS,
    FLOAT32,
    GAMMA,
    NORM,
    SLOPES,
    Conv,
    Dense,
    Depthwise,
    Excite,
    Ghost,
    Layer,
    Load,
    Pool,
    Step,
    Store,
    decode,
    layers,
    precision_of,
)  # fmt: skip
from .ghost_module import fold

PANEL = 16  # columns of a packed panel; csrc/cpu/kernels/kernels.h has the same


class Folded(NamedTuple):
    """A layer whose BatchNorm is folded in."""

    weight: torch.Tensor
    bias: torch.Tensor
    slopes: torch.Tensor | None


def _folded(parameters: Sequence[torch.Tensor], steps: list[Step], fold: Callable = fold) -> list[Folded]:
    rest, found = iter(parameters), []
    try:
        for layer, shape in (pair for step in steps for pair in layers(step)):
            weight = next(rest).reshape(shape)
            parts = (next(rest) if layer.parts & part else None for part in (BIAS, GAMMA, BETA, NORM, NORM, SLOPES))
            bias, gamma, beta, mean, var, slopes = parts
            if mean is not None:
                weight, bias = fold(weight, bias, gamma, beta, mean, var, layer.eps)
            found.append(Folded(weight, weight.new_zeros(shape[0]) if bias is None else bias, slopes))
    except (StopIteration, RuntimeError) as error:
        raise ValueError(f"program: parameters: expected those of the steps, in order ({error})") from error
    if next(rest, None) is not None:
        raise ValueError(f"program: parameters: expected {len(parameters) - 1} or fewer, got {len(parameters)}")
    return found


def _run(x: torch.Tensor, folded: list[Folded], steps: list[Step]) -> torch.Tensor:
    rest = iter(folded)
    maps: dict[int, torch.Tensor] = {}
    squeeze = excitation = features = None

    def known(value: torch.Tensor | None, what: str) -> torch.Tensor:
        if value is None:
            raise ValueError(f"program: steps: expected {what} to be there before it is read")
        return value

    def read(slot: int) -> torch.Tensor:
        return known(maps.get(slot), f"slot {slot}")

    def convolve(x: torch.Tensor, layer: Layer, stride: int = 1, padding: int = 0, groups: int = 1) -> torch.Tensor:
        weight, bias, slopes = (None if t is None else t.to(x.dtype) for t in next(rest))
        return activate(F.conv2d(x, weight, bias, stride, padding, 1, groups), layer.act, layer.slope, slopes)

    for step in steps:
        out = None
        if isinstance(step, Load):
            out = x
        elif isinstance(step, Conv):
            out = convolve(x, step.layer, step.stride, step.padding)
        elif isinstance(step, Ghost):
            source = read(step.source)
            if step.scaled:
                source = source * known(excitation, "an excitation")[:, :, None, None]
            y1 = convolve(source, step.layer)
            out = y1
            if step.made:
                y2 = convolve(y1, step.cheap, padding=step.kernel // 2, groups=step.primary)
                out = torch.cat([y1, y2], 1)[:, : step.kept]
            out = out if step.residual < 0 else out + read(step.residual)
        elif isinstance(step, Depthwise):
            out = convolve(read(step.source), step.layer, step.stride, step.kernel // 2, step.channels)
        elif isinstance(step, Excite):
            hidden = convolve(known(squeeze, "a squeeze")[:, :, None, None], step.reduce)
            excitation = apply_gate(convolve(hidden, step.expand).flatten(1), step.gate)
        elif isinstance(step, Pool):
            features = known(squeeze, "a squeeze")
        elif isinstance(step, Dense):
            features = convolve(known(features, "features")[:, :, None, None], step.layer).flatten(1)
        if out is not None:
            maps[step.out] = out
            if getattr(step, "squeeze", False):
                squeeze = out.mean((2, 3))
    return read(steps[-1].source) if isinstance(steps[-1], Store) else known(features, "a map or features to return")


def program_eval(x: torch.Tensor, parameters: Sequence[torch.Tensor], steps: Sequence[int]) -> torch.Tensor:
    """The program's result on x, N x C x H x W, with parameters as they are in the net."""
    decoded = decode(steps)
    if precision_of(steps) != FLOAT32:
        raise ValueError(
            "program_eval: steps: expected those of precision 0 (float32), got those of precision 1 (bfloat16)"
        )
    return _run(x, _folded(parameters, decoded), decoded)


def program(x: torch.Tensor, packed: torch.Tensor, steps: Sequence[int]) -> torch.Tensor:
    """The same with packed parameters."""
    decoded = decode(steps)
    precision = precision_of(steps)
    return _run(x, unpack(numbers(packed, precision), decoded, precision), decoded)


# The packed form. Per layer: the weight, its bias, and its slopes, if it has some; each piece begins at a
# multiple of 16 floats. A product's weight lies in panels: 16 output channels (8 in the last, where no more are left)
# for each input channel in turn, and those for each tap in turn. A depthwise one lies tap by tap, its channels in two
# halves as the map's, each padded to 8.
#
# With precision BFLOAT16 the form is int32, which no `.to(dtype)` converts: the bits of float32, but that a number of a
# panel is two of bfloat16, for two input channels; the first in the lower half, and a zero after an odd last one.


def _up(n: int, to: int) -> int:
    return -(-n // to) * to


def _pad(t: torch.Tensor, size: int) -> torch.Tensor:
    return F.pad(t, (0, size - t.shape[-1]))


def _bits(weight: torch.Tensor) -> torch.Tensor:
    """Float32 as bfloat16, in int16: to nearest even; NaN stays a quiet NaN, where PyTorch's depend on the machine."""
    bits = weight.view(torch.int32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return torch.where(weight.isnan(), (bits >> 16) | 0x40, rounded).to(torch.int16)


def _pairs(weight: torch.Tensor) -> torch.Tensor:
    """O x I as O x ceil(I / 2), the bits of two of bfloat16 each."""
    return _bits(_pad(weight, _up(weight.shape[1], 2)).contiguous()).view(torch.int32)


def _panels(weight: torch.Tensor) -> torch.Tensor:
    """O x I: packed."""
    weight = F.pad(weight, (0, 0, 0, _up(weight.shape[0], 8) - weight.shape[0]))
    return torch.cat([panel.t().reshape(-1) for panel in weight.split(PANEL)])


def _from_panels(packed: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    height = _up(rows, 8)
    pieces = packed[: height * columns].split(PANEL * columns)
    return torch.cat([piece.reshape(columns, -1).t() for piece in pieces])[:rows]


def _from_pairs(halves: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    depth = _up(columns, 2) // 2
    pieces = halves.split(2 * PANEL * depth)
    return torch.cat([piece.reshape(depth, -1, 2).transpose(0, 1).flatten(1) for piece in pieces])[:rows, :columns]


def _lanes(halves: tuple[int, int]) -> torch.Tensor:
    """Where the channels of a map lie among its lanes."""
    first, second = halves
    return torch.cat([torch.arange(first), _up(first, 8) + torch.arange(second)])


def _layouts(steps: list[Step]) -> list[tuple[Layer, tuple[int, ...], torch.Tensor | None, int]]:
    """Of every layer: its weight's shape; of a depthwise one the lanes of the channels kept, and their number."""
    halves: dict[int, tuple[int, int]] = {}
    found = []
    for step in steps:
        for index, (layer, shape) in enumerate(layers(step)):
            lanes, width = None, 0
            if isinstance(step, Depthwise):
                first, second = halves[step.source]
                lanes, width = _lanes((first, second)), _up(first, 8) + _up(second, 8)
            elif isinstance(step, Ghost) and index == 1:
                lanes = torch.arange(step.kept - step.primary)
                width = len(lanes)
            found.append((layer, shape, lanes, width))
        if isinstance(step, Load):
            halves[step.out] = (step.channels, 0)
        elif isinstance(step, Conv):
            halves[step.out] = (step.filters, 0)
        elif isinstance(step, Ghost):
            halves[step.out] = (step.primary, step.kept - step.primary)
        elif isinstance(step, Depthwise):
            halves[step.out] = halves[step.source]
    return found


def packed_floats(steps: Sequence[int]) -> int:
    """How long the packed form is."""
    total, pairs = 0, precision_of(steps) == BFLOAT16
    for layer, shape, lanes, width in _layouts(decode(steps)):
        taps = shape[2] * shape[3]
        row = _up(shape[0] if lanes is None else width, 16)
        depth = _up(taps * shape[1], 2) // 2 if pairs else taps * shape[1]
        weight = _up(_up(shape[0], 8) * depth, 16) if lanes is None else taps * row
        total += weight + row * (2 if layer.act in WITH_SLOPES else 1)
    return total


def _fold(weight, bias, gamma, beta, mean, var, eps):
    """``fold`` in the very roundings of the kernels: in double, but for the weight times the scale in float32."""
    bias, gamma, beta, mean, var = (None if t is None else t.double() for t in (bias, gamma, beta, mean, var))
    scale = (1.0 if gamma is None else gamma) / (var + eps).sqrt()
    shift = ((0.0 if bias is None else bias) - mean) * scale + (0.0 if beta is None else beta)
    return weight.float() * scale.float()[:, None, None, None], shift.float()


def program_pack(parameters: Sequence[torch.Tensor], steps: Sequence[int]) -> torch.Tensor:
    """The packed form of a net's parameters: float32, or int32 with precision BFLOAT16."""
    decoded, pieces = decode(steps), []
    pairs = precision_of(steps) == BFLOAT16
    layers_folded = _folded(parameters, decoded, _fold)
    for folded, (layer, shape, lanes, width) in zip(layers_folded, _layouts(decoded), strict=True):
        weight, bias = folded.weight.detach().float().cpu(), folded.bias.detach().float().cpu()
        slopes = None
        if layer.act in WITH_SLOPES:
            slopes = (
                torch.tensor(layer.slope, dtype=torch.float32)
                if folded.slopes is None
                else folded.slopes.detach().float().cpu()
            )
            slopes = slopes.expand(shape[0]) if slopes.numel() == 1 else slopes
        if lanes is None:
            by_tap = weight.permute(0, 2, 3, 1).flatten(1)
            pieces.append(_panels(_pairs(by_tap) if pairs else by_tap))
            vectors = [bias] if slopes is None else [bias, slopes]
        else:
            spread = lambda t: t.new_zeros(_up(width, 16)).index_copy(0, lanes, t[: len(lanes)])  # noqa: B023
            pieces += [spread(tap) for tap in weight.flatten(1).t()]
            vectors = [spread(bias)] if slopes is None else [spread(bias), spread(slopes)]
        pieces += vectors
    dtype = torch.int32 if pairs else torch.float32
    padded = [_pad(piece.view(dtype), _up(len(piece), 16)) for piece in pieces]
    return torch.cat(padded or [torch.zeros(0, dtype=dtype)])


def numbers(packed: torch.Tensor, precision: int) -> torch.Tensor:
    """What ``unpack`` reads: a packed form in floating point. With precision BFLOAT16 it is there twice, as float32 and
    then as bfloat16; whatever it really is, the other reading is noise.

    Raises:
        ValueError: the form is of the other precision.
    """
    if (packed.dtype == torch.int32) != (precision == BFLOAT16):
        expected = ("floats for steps of precision 0 (float32)", "int32 for steps of precision 1 (bfloat16)")[precision]
        raise ValueError(f"program: packed: expected {expected}, got {str(packed.dtype).removeprefix('torch.')}")
    if precision == FLOAT32:
        return packed
    packed = packed.contiguous()
    return torch.cat([packed.view(torch.float32), packed.view(torch.bfloat16).float()])


def places(length: int, precision: int, first: int = 0) -> torch.Tensor:
    """Of a packed form of this length: of each of its ``numbers``, where it stands, counted from ``first``."""
    return torch.arange(first, first + length * (3 if precision == BFLOAT16 else 1), dtype=torch.float64)


def unpack(
    numbers: torch.Tensor, steps: list[Step], precision: int = FLOAT32, kinds: tuple[int, ...] = (PRELU,)
) -> list[Folded]:
    """The folded layers of a packed form's ``numbers``, of any dtype; with slopes where the activation is of these
    kinds."""
    length = numbers.numel() // (3 if precision == BFLOAT16 else 1)
    packed, halves, at, found = numbers[:length], numbers[length:], 0, []

    def take(floats: int) -> torch.Tensor:
        nonlocal at
        piece = packed[at : at + floats]
        at += _up(floats, 16)
        return piece

    for layer, shape, lanes, width in _layouts(steps):
        out, taps = shape[0], shape[2] * shape[3]
        if lanes is None:
            columns = taps * shape[1]
            if precision == BFLOAT16:
                begin, depth = at, _up(columns, 2) // 2
                by_tap = _from_pairs(halves[2 * begin : 2 * (begin + len(take(_up(out, 8) * depth)))], out, columns)
            else:
                by_tap = _from_panels(take(_up(out, 8) * columns), out, columns)
            weight = by_tap.reshape(out, *shape[2:], shape[1]).permute(0, 3, 1, 2)
            spread = lambda t: t[:out]  # noqa: B023
            width = out
        else:
            rows = take(taps * _up(width, 16)).reshape(taps, -1).index_select(1, lanes.to(packed.device))
            dropped = (0, 0, 0, out - len(lanes))  # channels past the slice are not there: as zeros
            weight = F.pad(rows.t(), dropped).reshape(shape)
            spread = lambda t: _pad(t[lanes], out)  # noqa: B023
        bias = spread(take(_up(width, 16)))
        slopes = spread(take(_up(width, 16))) if layer.act in WITH_SLOPES else None
        found.append(Folded(weight, bias, slopes if layer.act in kinds else None))
    if at != length:
        raise ValueError(f"program: packed: expected {at} elements, got {length}")
    return found
