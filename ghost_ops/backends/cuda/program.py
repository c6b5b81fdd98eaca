"""``program`` by the kernels of ``csrc/cuda``: a bottleneck is one call, so is a Ghost module outside of one.

Maps are channels_last throughout, whatever the input; the result has the input's memory format.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from ...activations import activate
from ...program import Folded, Ghost, Layer, MapStep, only_result, weights_of
from ...program.interpreter import ProgramInterpreter
from ..kept import KeptOf
from ..layout import memory_format
from ..tensor_cache import cached_with_tensor
from . import launch, plan
from .calls import Call, Calls, calls_of
from .elsewhere import elsewhere
from .weights import Block

Find = Callable[[tuple[int, ...], torch.dtype, int, torch.device], object]


def program(x: torch.Tensor, packed: torch.Tensor, steps: list[int]) -> torch.Tensor:
    """The program's result on x, N x C x H x W of float32, float16 or bfloat16, from packed parameters.

    Raises:
        ValueError: x has other channels, or the packed form another length, than the steps say.
    """
    return only_result(program_maps(x, packed, steps))


def program_maps(x: torch.Tensor, packed: torch.Tensor, steps: list[int]) -> list[torch.Tensor]:
    """The same for a program that may return several maps."""
    code = tuple(steps)
    calls = fitting(packed, code, packed.numel(), tuple(x.shape), x.dtype, x.device, launch.find)
    if calls is None:
        return elsewhere("program_maps", x, packed, steps)
    last = x.contiguous(memory_format=torch.channels_last)
    results = CudaInterpreter(last, *_buffers(packed, code, x.dtype, calls.apart)).run_calls(calls)
    formats = (memory_format(x) if result.dim() == 4 else torch.contiguous_format for result in results)
    return [result.contiguous(memory_format=layout) for result, layout in zip(results, formats)]


def _gathered(
    packed: torch.Tensor, code: tuple[int, ...], dtype: torch.dtype, apart: frozenset[int]
) -> torch.Tensor:  # fmt: skip
    """Matrices in the dtype of maps and vectors in float32, as bytes one after the other."""
    calls = calls_of(packed, code, packed.numel(), dtype != torch.float32, packed.device, apart)
    floats = weights_of(code).numbers(packed).float().contiguous()
    both = launch.gather(floats, calls.index, calls.matrices, floats.new_empty(0, dtype=dtype))
    return torch.cat([buffer.view(torch.uint8) for buffer in both])


def _split(
    packed: torch.Tensor, made: torch.Tensor, code: tuple[int, ...], dtype: torch.dtype, apart: frozenset[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    calls = calls_of(packed, code, packed.numel(), dtype != torch.float32, packed.device, apart)
    end = calls.matrices * dtype.itemsize
    return made[:end].view(dtype), made[end:].view(torch.float32)


_buffers = KeptOf(_gathered, _split)


@cached_with_tensor(size=256)
def fitting(
    packed: torch.Tensor, code: tuple[int, ...], length: int, shape: tuple[int, ...], dtype: torch.dtype,
    device: torch.device, find: Find,
) -> Calls | None:  # fmt: skip
    """The calls of a program on such an input. A bottleneck of which nothing fits the device is a call for each step;
    None where a Ghost module does not fit."""
    apart: frozenset[int] = frozenset()
    while True:
        calls = calls_of(packed, code, length, dtype != torch.float32, device, apart)
        missing = [call for call, _, found in planned(calls, shape, dtype, device, find) if found is None]
        if not missing:
            return calls
        if not missing[0].block.primary:
            return None
        apart |= {missing[0].at}


def planned(
    calls: Calls, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, find: Find
) -> list[tuple[Call, tuple[int, int], object]]:
    """Of every kernel call on an input of this shape: the size of its map, and what ``find`` says of it."""
    sizes: dict[int, tuple[int, int]] = {}
    found = []
    for call in calls.calls:
        if call.block is not None:
            size = sizes[call.steps[0].source]
            found.append((call, size, find(tuple(call.block.numbers(*size)), dtype, shape[0], device)))
        for step in call.steps:
            if isinstance(step, MapStep):
                sizes[step.out] = step.output_size(sizes, tuple(shape[2:]))
    return found


def describe(
    x: torch.Tensor, packed: torch.Tensor, steps: list[int], find: Find = plan.find
) -> list[tuple[str, plan.Plan]] | None:
    """Of every kernel call on such an input: what it is, and its plan. None where the program runs elsewhere."""
    calls = fitting(packed, tuple(steps), packed.numel(), tuple(x.shape), x.dtype, x.device, find)
    if calls is None:
        return None
    found = []
    for call, (height, width), p in planned(calls, x.shape, x.dtype, x.device, find):
        first, last = call.steps[0], call.steps[-1]
        kind = "bottleneck" if call.block.primary else "Ghost module" if first.cheap_channels else "1x1 convolution"
        found.append((f"{kind} {first.channels} to {last.out_channels} on {height} x {width}", p))
    return found


def summary(x: torch.Tensor, packed: torch.Tensor, steps: list[int], find: Find = plan.find) -> str:
    """In words: the kernels of a program on such an input, and the bytes that its bottlenecks do not move."""
    calls = describe(x, packed, steps, find)
    if calls is None:
        return "in fact on the next backend, since no part of a Ghost module fits the device"
    blocks = [(name, found) for name, found in calls if name.startswith("bottleneck")]
    fused, by_module = (sum(getattr(f, k) for _, f in calls) / 1e6 for k in ("fused", "by_module"))
    counts = f"{len(blocks)} bottlenecks and {len(calls) - len(blocks)} other kernels"
    moved = f"move {fused:.1f} MB, by module it would be {by_module:.1f} MB"
    return ", ".join([f"{counts} {moved}", *(f"{name}: {found}" for name, found in blocks)])


class CudaInterpreter(ProgramInterpreter):
    """Runs calls, whose parameters are in two buffers: matrices, in the dtype of the maps, and vectors."""

    def __init__(self, x: torch.Tensor, matrices: torch.Tensor, vectors: torch.Tensor) -> None:
        super().__init__(x)
        self.matrices, self.vectors = matrices, vectors

    def run_calls(self, calls: Calls) -> list[torch.Tensor]:
        for call in calls.calls:
            last = call.steps[-1]
            if call.block is None:
                self.take(last, [self._folded(entry) for entry in call.plain])
            elif call.block.primary:
                source = self.read(call.steps[0].source)
                self.write(last.out, launch.launch_bottleneck(source, self.matrices, self.vectors, call.block))
            else:
                self.run_ghost_module(last, call.block)
        return self.results(calls.steps)

    def run_ghost_module(self, step: Ghost, block: Block) -> None:
        scale = self.excitation if step.scaled else None
        residual = None if step.residual < 0 else self.read(step.residual)
        out, means = launch.launch_ghost_module(
            self.read(step.source), self.matrices, self.vectors, block, scale, residual, step.squeeze
        )
        self.write(step.out, out, step.squeeze, means)

    def write(
        self, slot: int, out: torch.Tensor, squeeze: bool = False, means: torch.Tensor | None = None
    ) -> None:  # fmt: skip
        """In channels_last, which not all of PyTorch's operators give, nor is a view of some channels in it."""
        super().write(slot, out.contiguous(memory_format=torch.channels_last), squeeze, means)

    def convolve(self, *args: object, **kwargs: object) -> torch.Tensor:
        """In channels_last, which not all of PyTorch's convolutions keep on a device: not its depthwise ones, nor any
        of a map of one channel, whose layout it takes for NCHW."""
        return super().convolve(*args, **kwargs).contiguous(memory_format=torch.channels_last)

    def linear(self, v: torch.Tensor, folded: Folded, layer: Layer) -> torch.Tensor:
        weight, bias, slopes = folded
        return activate(F.linear(v, weight.flatten(1), bias), layer.act, layer.slope, slopes)

    def _folded(self, entry) -> Folded:
        def view(place):
            at, shape = place
            size = torch.Size(shape).numel()
            return self.matrices[at : at + size].view(shape)

        return Folded(*(None if place is None else view(place) for place in entry))
