"""``program`` on a device: its steps one after the other, Ghost modules and excitations by their own operators.

The packed form is that of every processor (``reference/program.py``). One gather turns it into folded weights on every
call, so that nothing can be stale; only the gather's index, which depends on the steps alone, is kept.
"""

from __future__ import annotations

from functools import cache
from math import prod

import torch

from ..activation import LEAKY_RELU, NONE, PRELU
from ..reference.program import Folded, numbers, places, unpack
from ..steps import Depthwise, Excite, Ghost, Layer, decode, precision_of
from ..walk import Walk
from .depthwise import depthwise
from .ghost_module import ghost_module
from .squeeze_excite import excite, image_sums


@cache  # for good: captured CUDA graphs read it
def _gather(steps: tuple[int, ...], length: int, device: torch.device) -> tuple[torch.Tensor, tuple[tuple, ...]]:
    """Where among the packed form's numbers the folded tensors lie, one after the other, and their shapes.

    Channels that a Ghost module makes and drops are not in it; their index is 0, and no kernel reads them.
    """
    precision = precision_of(steps)
    found = unpack(places(length, precision), decode(steps), precision)
    index = torch.cat([t.reshape(-1) for folded in found for t in folded if t is not None])
    shapes = tuple(tuple(None if t is None else tuple(t.shape) for t in folded) for folded in found)
    return index.to(torch.int32).to(device), shapes


def _unpacked(packed: torch.Tensor, steps: tuple[int, ...], dtype: torch.dtype) -> list[Folded]:
    index, shapes = _gather(steps, packed.numel(), packed.device)
    flat, at, found = numbers(packed, precision_of(steps)).index_select(0, index).to(dtype), 0, []
    for shape in (s for folded in shapes for s in folded):
        size = 0 if shape is None else prod(shape)
        found.append(None if shape is None else flat[at : at + size].view(shape))
        at += size
    return [Folded(*found[i : i + 3]) for i in range(0, len(found), 3)]


def program(x: torch.Tensor, packed: torch.Tensor, steps: list[int]) -> torch.Tensor:
    """The program's result on x, N x C x H x W of float32, float16 or bfloat16, from packed parameters."""
    steps = tuple(steps)
    return _Run(x, decode(steps), iter(_unpacked(packed, steps, x.dtype))).result


class _Run(Walk):
    def excite(self, step: Excite) -> torch.Tensor:
        if step.reduce.act in (LEAKY_RELU, PRELU) or step.expand.act != NONE:  # in no net: no kernel takes it
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
