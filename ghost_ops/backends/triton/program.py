"""``program`` on a device: its steps one after the other, Ghost modules and excitations by their own operators.

The packed form is that of every processor (``ghost_ops/program/packing.py``). One gather turns it into folded weights
of the input's dtype, which are kept as long as the packed form exists, and made again when it changes (``kept.py``).
The gather's index, which depends on the steps only, is kept too: captured graphs read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch.nn.modules.utils import _pair

from ...activations import NONE, WITH_SLOPES, activate
from ...program import Depthwise, Excite, Folded, Ghost, Layer, Step, WeightFormat, decode, only_result, weights_of
from ...program.interpreter import ProgramInterpreter, Sizes
from ...program.packing import unpack
from ...program.training import MOST_FILTER
from ..kept import KeptOf, apart
from ..registry import CHEAP_KERNELS
from ..tensor_cache import cached_with_tensor
from .convolution import convolution
from .depthwise import depthwise_with_epilogue
from .excite import excite
from .ghost_module import ghost_module
from .lines import line_with_epilogue
from .squeeze_excite import image_sums
from .taps import as_taps

ALIGNMENT = 16  # elements: at least 32 bytes, so that kernels read all weights several numbers at once


def _is_line(step: Depthwise) -> bool:
    """Whether a convolution is along rows or columns, of a length that there are kernels for."""
    (along, across), taps = step.kernel, max(step.kernel)
    alone = min(step.kernel) == 1 < taps and step.stride == step.dilation == (1, 1)
    padded = step.padding == (along // 2, across // 2)
    return alone and padded and taps in CHEAP_KERNELS and step.layer.act not in WITH_SLOPES


@dataclass(frozen=True, eq=False)
class ProgramPlan:
    """What follows from a program's steps.

    Channels that a Ghost module makes and drops are not in ``index``; theirs is 0, and no kernel reads them.
    """

    steps: list[Step]
    weights: WeightFormat
    index: torch.Tensor  # where among the packed form's numbers those of the folded tensors are
    shapes: list[list[list[tuple[int, ...] | None]]]  # of the tensors of each layer of each step
    places: list[int]  # where each of those that are there begins, in their order


@cached_with_tensor()
def _plan(packed: torch.Tensor, steps: tuple[int, ...], length: int, device: torch.device) -> ProgramPlan:
    """The plan of a program whose packed form is so long; the index is on the device."""
    decoded, weights = decode(steps), weights_of(steps)
    shapes, places = [], []

    def index() -> torch.Tensor:
        pieces, end = [torch.zeros(0)], 0
        for layers in unpack(weights.places(length), decoded, weights):
            shapes.append([[None if t is None else tuple(t.shape) for t in layer] for layer in layers])
            for t in (t for layer in layers for t in layer if t is not None):
                piece = (t.permute(2, 3, 1, 0) if _by_taps(t.shape) else t).reshape(-1)
                pieces.append(F.pad(piece, (0, -len(piece) % ALIGNMENT)))
                places.append(end)
                end += len(pieces[-1])
        return torch.cat(pieces).to(torch.int32).to(device)

    # Apart, since the plan is kept: a dry run computes nothing.
    return ProgramPlan(decoded, weights, apart(device, index), shapes, places)


def _gathered(packed: torch.Tensor, steps: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """All folded tensors of the steps, one after the other."""
    plan = _plan(packed, steps, packed.numel(), packed.device)
    return plan.weights.numbers(packed).index_select(0, plan.index).to(dtype)


def _layers(packed: torch.Tensor, flat: torch.Tensor, steps: tuple[int, ...], dtype: torch.dtype) -> list[list[Folded]]:
    """The layers of each step, views of what was gathered."""
    plan = _plan(packed, steps, packed.numel(), packed.device)
    places = iter(plan.places)

    def of(shape: tuple[int, ...] | None) -> torch.Tensor | None:
        return None if shape is None else _shaped(flat.narrow(0, next(places), prod(shape)), shape)

    return [[Folded(*map(of, shapes)) for shapes in layers] for layers in plan.shapes]


def _by_taps(shape: tuple[int, ...]) -> bool:
    """Of a depthwise weight, whose kernels read all channels of a tap at once."""
    return len(shape) == 4 and shape[1] == 1


def _shaped(piece: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    if _by_taps(shape):
        return as_taps(piece, shape)
    return piece if len(shape) == 1 else piece.view(shape)


_folded = KeptOf(_gathered, _layers)


def program(x: torch.Tensor, packed: torch.Tensor, steps: list[int]) -> torch.Tensor:
    """The program's result on x, N x C x H x W of float32, float16 or bfloat16, from packed parameters."""
    return only_result(program_maps(x, packed, steps))


def program_maps(x: torch.Tensor, packed: torch.Tensor, steps: list[int]) -> list[torch.Tensor]:
    """The same for a program that may return several maps."""
    code = tuple(steps)
    plan = _plan(packed, code, packed.numel(), packed.device)
    return TritonInterpreter(x).run_steps(plan.steps, _folded(packed, code, x.dtype))


class TritonInterpreter(ProgramInterpreter):
    """Layers have weights of the input's dtype; depthwise ones are tap by tap."""

    def convolve(
        self, x: torch.Tensor, folded: Folded, layer: Layer, stride: Sizes = 1, padding: Sizes = 0, groups: int = 1,
        dilation: Sizes = 1,
    ) -> torch.Tensor:  # fmt: skip
        square = all(len({*_pair(sizes)}) == 1 for sizes in (folded.weight.shape[2:], stride, padding))
        dilated = _pair(dilation) != (1, 1) and folded.weight.shape[2:] != (1, 1)
        if groups > 1 or folded.weight[0].numel() > MOST_FILTER or not square or dilated:
            return super().convolve(x, folded, layer, stride, padding, groups, dilation)
        return convolution(x, *folded, _pair(stride)[0], _pair(padding)[0], layer.act, layer.slope)

    def linear(self, v: torch.Tensor, folded: Folded, layer: Layer) -> torch.Tensor:
        weight, bias, slopes = folded
        return activate(F.linear(v, weight.flatten(1), bias), layer.act, layer.slope, slopes)

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        return image_sums(x, None, True)

    def excite(self, step: Excite, folded: list[Folded]) -> None:
        if step.reduce.act in WITH_SLOPES or step.expand.act != NONE:  # in no net: no kernel takes it
            return step.run(self, folded)
        weights = [t for layer in folded for t in (layer.weight.flatten(1), layer.bias)]
        self.excitation = excite(self.known(self.squeeze, "a squeeze"), *weights, step.reduce.act, step.gate)

    def depthwise(self, step: Depthwise, folded: list[Folded]) -> None:
        x, layer = self.read(step.source), step.layer
        if _is_line(step):
            weight, bias, _ = folded[0]
            vertical = step.kernel[1] == 1
            weight = weight.transpose(2, 3) if vertical else weight
            return self.write(step.out, line_with_epilogue(x, weight, bias, vertical, layer.act), step.squeeze)
        if not step.is_same or step.kernel[0] not in CHEAP_KERNELS:
            return step.run(self, folded)
        out, means = depthwise_with_epilogue(x, *folded[0], step.stride[0], layer.act, layer.slope, step.squeeze)
        self.write(step.out, out, step.squeeze, means)

    def ghost(self, step: Ghost, folded: list[Folded]) -> None:
        one, layer = folded[0], step.layer
        cheap, second = (folded[1], step.cheap) if step.cheap_channels else (Folded(None, None, None), Layer())
        out, means = ghost_module(
            self.read(step.source), one.weight, one.bias, cheap.weight, cheap.bias,
            self.excitation if step.scaled else None, None if step.residual < 0 else self.read(step.residual),
            one.slopes, cheap.slopes, step.out_channels, layer.act, second.act, layer.slope, second.slope, step.squeeze,
        )  # fmt: skip
        self.write(step.out, out, step.squeeze, means)

    kernels = {Ghost: ghost, Depthwise: depthwise, Excite: excite}
