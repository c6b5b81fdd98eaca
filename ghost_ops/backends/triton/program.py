"""``program`` on a device: its steps one after the other, Ghost modules and excitations by their own operators.

The packed form is that of every processor (``reference/program.py``). One gather turns it into folded weights on every
call, so that nothing can be stale; only the gather's index, which depends on the steps only, is kept, as long as the
packed form exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch

from ...activations import NONE, WITH_SLOPES
from ..reference.program import Folded, numbers, places, unpack
from ..steps import Depthwise, Excite, Ghost, Layer, Step, decode, precision_of
from ..tensor_cache import cached_with_tensor
from ..walk import Walk
from .convolution import MOST, convolution
from .depthwise import layer as depthwise
from .ghost_module import ghost_module
from .squeeze_excite import excite, image_sums
from .sums import as_taps


@dataclass(frozen=True, eq=False)
class _Plan:
    """What follows from a program's steps.

    Channels that a Ghost module makes and drops are not in ``index``; theirs is 0, and no kernel reads them.
    """

    steps: list[Step]
    precision: int
    index: torch.Tensor  # where among the packed form's numbers the folded tensors lie, one after the other
    shapes: tuple[tuple[int, ...] | None, ...]  # of these, three a layer
    sizes: list[int]  # of those that are there


@cached_with_tensor()
def _plan(packed: torch.Tensor, steps: tuple[int, ...], length: int, device: torch.device) -> _Plan:
    """The plan of a program whose packed form is so long; the index is on the device."""
    precision, decoded = precision_of(steps), decode(steps)
    found = [t for folded in unpack(places(length, precision), decoded, precision) for t in folded]
    shapes = tuple(None if t is None else tuple(t.shape) for t in found)
    found = [t if t is None or not _by_taps(t.shape) else t.permute(2, 3, 1, 0) for t in found]
    index = torch.cat([t.reshape(-1) for t in found if t is not None])
    sizes = [prod(shape) for shape in shapes if shape is not None]
    return _Plan(decoded, precision, index.to(torch.int32).to(device), shapes, sizes)


def _folded(plan: _Plan, packed: torch.Tensor, dtype: torch.dtype) -> Iterator[Folded]:
    flat = numbers(packed, plan.precision).index_select(0, plan.index).to(dtype)
    pieces = iter(flat.split(plan.sizes))
    tensors = (None if shape is None else _shaped(next(pieces), shape) for shape in plan.shapes)
    return map(Folded, tensors, tensors, tensors)


def _by_taps(shape: tuple[int, ...]) -> bool:
    """Of a depthwise weight, whose kernels read all channels of a tap at once."""
    return len(shape) == 4 and shape[1] == 1


def _shaped(piece: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    if _by_taps(shape):
        return as_taps(piece, shape)
    return piece if len(shape) == 1 else piece.view(shape)


def program(x: torch.Tensor, packed: torch.Tensor, steps: list[int]) -> torch.Tensor:
    """The program's result on x, N x C x H x W of float32, float16 or bfloat16, from packed parameters."""
    plan = _plan(packed, tuple(steps), packed.numel(), packed.device)
    return _Run(x, plan.steps, _folded(plan, packed, x.dtype)).result


class _Run(Walk):
    def convolved(
        self, x: torch.Tensor, folded: Folded, layer: Layer, stride: int, padding: int, groups: int
    ) -> torch.Tensor:
        if groups > 1 or folded.weight[0].numel() > MOST:
            return super().convolved(x, folded, layer, stride, padding, groups)
        return convolution(x, *folded, stride, padding, layer.act, layer.slope)

    def excite(self, step: Excite) -> torch.Tensor:
        if step.reduce.act in WITH_SLOPES or step.expand.act != NONE:  # in no net: no kernel takes it
            return super().excite(step)
        reduce, expand = next(self.folded), next(self.folded)
        weights = reduce.weight.flatten(1), reduce.bias, expand.weight.flatten(1), expand.bias
        return excite(self.squeeze, *weights, step.reduce.act, step.gate)

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        return image_sums(x, None, True)

    def depthwise(self, step: Depthwise) -> tuple[torch.Tensor, torch.Tensor | None]:
        if step.kernel % 2 == 0:
            return super().depthwise(step)
        layer = step.layer
        return depthwise(
            self.maps[step.source], *next(self.folded), step.stride, layer.act, layer.slope, step.squeeze
        )  # fmt: skip

    def ghost(self, step: Ghost) -> tuple[torch.Tensor, torch.Tensor]:
        one, layer = next(self.folded), step.layer
        cheap, second = (next(self.folded), step.cheap) if step.made else (Folded(None, None, None), Layer())
        return ghost_module(
            self.maps[step.source], one.weight, one.bias, cheap.weight, cheap.bias,
            self.excitation if step.scaled else None, None if step.residual < 0 else self.maps[step.residual],
            one.slopes, cheap.slopes, step.kept, layer.act, second.act, layer.slope, second.slope, step.squeeze,
        )  # fmt: skip
