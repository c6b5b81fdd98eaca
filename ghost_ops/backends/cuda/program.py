"""``program`` by the kernels of ``csrc/cuda``: a bottleneck is one call, so is a Ghost module outside of one.

Maps are channels_last throughout, whatever the input; the result has the input's memory format.
"""

from __future__ import annotations

import torch

from ..reference.program import Folded
from ..steps import Ghost, Step, decode
from ..walk import Walk
from . import launch
from .calls import Call, calls_of


def program(x: torch.Tensor, packed: torch.Tensor, steps: list[int]) -> torch.Tensor:
    """The program's result on x, N x C x H x W of float32, float16 or bfloat16, from packed parameters.

    Raises:
        ValueError: x has other channels, or the packed form another length, than the steps say.
    """
    steps = tuple(steps)
    calls = calls_of(steps, packed.numel(), x.dtype != torch.float32, x.device)
    buffers = launch.gather(packed, calls.index, calls.matrices, x)
    last = x.contiguous(memory_format=torch.channels_last)
    result = _Run(last, decode(steps), calls.calls, *buffers).result
    plain = result.dim() == 4 and x.is_contiguous()
    return result.contiguous() if plain else result


class _Run(Walk):
    def __init__(self, x, steps: list[Step], calls: tuple[Call, ...], matrices, vectors) -> None:
        self.calls, self.matrices, self.vectors = calls, matrices, vectors
        super().__init__(x, steps, iter(()))

    def walk(self, x: torch.Tensor) -> None:
        for call in self.calls:
            last = call.steps[-1]
            if call.block is None:
                self.folded = iter([self._folded(entry) for entry in call.plain])
                (step,) = call.steps
                self.take(step, x)
            elif call.block.primary:
                source = self.maps[call.steps[0].source]
                self.maps[last.out] = launch.bottleneck(source, self.matrices, self.vectors, call.block)
            else:
                self.block = call.block
                self.take(last, x)

    def _folded(self, entry) -> Folded:
        def view(place):
            at, shape = place
            size = torch.Size(shape).numel()
            return self.matrices[at : at + size].view(shape)

        return Folded(*(None if place is None else view(place) for place in entry))

    def ghost(self, step: Ghost) -> tuple[torch.Tensor, torch.Tensor | None]:
        scale = self.excitation if step.scaled else None
        residual = None if step.residual < 0 else self.maps[step.residual]
        return launch.module(
            self.maps[step.source], self.matrices, self.vectors, self.block, scale, residual, step.squeeze
        )
