"""``program`` by the kernels of ``csrc/cuda``: a bottleneck is one call, so is a Ghost module outside of one.

Maps are channels_last throughout, whatever the input; the result has the input's memory format.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..reference.program import Folded
from ..steps import Conv, Depthwise, Ghost, Load, Step, decode
from ..walk import Walk
from . import launch, plan
from .calls import Call, calls_of
from .elsewhere import elsewhere, memory_format


def program(x: torch.Tensor, packed: torch.Tensor, steps: list[int]) -> torch.Tensor:
    """The program's result on x, N x C x H x W of float32, float16 or bfloat16, from packed parameters.

    Raises:
        ValueError: x has other channels, or the packed form another length, than the steps say.
    """
    code = tuple(steps)
    calls = calls_of(code, packed.numel(), x.dtype != torch.float32, x.device)
    last = x.contiguous(memory_format=torch.channels_last)
    try:
        buffers = launch.gather(packed.contiguous(), calls.index, calls.matrices, last)
        result = _Run(last, decode(code), calls.calls, *buffers).result
    except launch.NoPlan:
        return elsewhere("program", x, packed, steps)
    if result.dim() < 4:
        return result.contiguous()
    result = result.clone() if result is x else result
    return result.contiguous(memory_format=memory_format(x))


def describe(
    x: torch.Tensor, packed: torch.Tensor, steps: list[int], find: Callable = plan.find
) -> list[tuple[str, plan.Plan | None]]:
    """Of every kernel call on such an input: what it is, and its plan (None: it does not fit)."""
    code = tuple(steps)
    sizes: dict[int, tuple[int, int]] = {}
    found = []
    for call in calls_of(code, packed.numel(), x.dtype != torch.float32, x.device).calls:
        first, last = call.steps[0], call.steps[-1]
        if call.block is not None:
            size = sizes[first.source]
            what = "bottleneck" if call.block.primary else "Ghost module" if first.made else "1x1 convolution"
            numbers = tuple(call.block.numbers(*size))
            name = f"{what} {first.channels} to {last.kept} on {size[0]} x {size[1]}"
            found.append((name, find(numbers, x.dtype, x.shape[0], x.device)))
        elif isinstance(first, Load):
            size = tuple(x.shape[2:])
        elif isinstance(first, Conv):
            size = tuple((n + 2 * first.padding - first.kernel) // first.stride + 1 for n in x.shape[2:])
        elif isinstance(first, Depthwise):
            size = sizes[first.source]
        else:
            continue
        stride = call.block.stride if call.block is not None else first.stride if isinstance(first, Depthwise) else 1
        sizes[last.out] = tuple((n - 1) // stride + 1 for n in size)
    return found


def summary(x: torch.Tensor, packed: torch.Tensor, steps: list[int], find: Callable = plan.find) -> str:
    """In words: the kernels of a program on such an input, and the bytes that its bottlenecks do not move."""
    calls = describe(x, packed, steps, find)
    missing = [name for name, found in calls if found is None]
    if missing:
        return f"in fact on the next backend, since no tile fits the device: {missing[0]}"
    blocks = [(name, found) for name, found in calls if name.startswith("bottleneck")]
    fused, by_module = (sum(getattr(f, k) for _, f in calls) / 1e6 for k in ("fused", "by_module"))
    said = [f"{len(blocks)} bottlenecks and {len(calls) - len(blocks)} other kernels move {fused:.1f} MB, by module it "
            f"would be {by_module:.1f} MB"]  # fmt: skip
    return ", ".join([*said, *(f"{name}: {found}" for name, found in blocks)])


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
