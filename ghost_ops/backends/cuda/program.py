"""``program`` by the kernels of ``csrc/cuda``: blocks that follow each other are one call, down to a net's logits.

Maps are channels_last throughout, whatever the input; the result has the input's memory format. A net's first
convolution reads the image as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from ...activations import activate
from ...program import Depthwise, Folded, Ghost, Layer, Load, MapStep, Store, StoreFeatures, only_result, weights_of
from ...program.interpreter import ProgramInterpreter
from ..kept import KeptOf
from ..layout import memory_format
from ..tensor_cache import cached_with_tensor
from . import launch, plan
from .calls import Call, Calls, calls_of
from .elsewhere import depthwise_elsewhere, elsewhere
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
    fitted = fitting(packed, code, packed.numel(), tuple(x.shape), x.dtype, x.device, launch.find)
    if fitted is None:
        return elsewhere("program_maps", x, packed, steps)
    results = CudaInterpreter(x, *_buffers(packed, code, x.dtype, fitted.calls.apart)).run_calls(fitted)
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


@dataclass(frozen=True, eq=False)
class Fitted:
    """The calls of a program for inputs of one shape, and of each chain the numbers of its blocks; none of a step that
    PyTorch runs."""

    calls: Calls
    numbers: tuple[list[int], ...]


@cached_with_tensor(size=256)
def fitting(
    packed: torch.Tensor, code: tuple[int, ...], length: int, shape: tuple[int, ...], dtype: torch.dtype,
    device: torch.device, find: Find,
) -> Fitted | None:  # fmt: skip
    """The calls of a program on such an input. A block of which nothing fits the device is a call for each step; None
    where a Ghost module does not fit."""

    def fits(numbers: list[int]) -> bool:
        return find(tuple(numbers), dtype, shape[0], device) is not None

    apart: frozenset[int] = frozenset()
    while True:
        calls = calls_of(packed, code, length, dtype != torch.float32, device, apart)
        numbers = _numbers(calls, shape)
        missing: set[int] = set()
        for chain, each in zip(calls.chains, numbers):
            if chain[0].block is not None and not fits([n for block in each for n in block]):
                alone = [call for call, block in zip(chain, each) if not call.block.linear and not fits(block)]
                if any(not call.block.primary and not call.block.window for call in alone):
                    return None
                maps = [call for call in chain if not call.block.linear]
                missing |= {call.at for call in alone or maps[-1:]}  # the linear layers do not fit
        if not missing:
            return Fitted(calls, tuple([n for block in each for n in block] for each in numbers))
        if missing <= apart:
            return None
        apart |= missing


def _numbers(calls: Calls, shape: tuple[int, ...]) -> list[list[list[int]]]:
    """The numbers of every block of every chain, on an input of this shape."""
    entry, sizes, found = tuple(shape[2:]), {}, []
    for chain in calls.chains:
        each = []
        for call in chain:
            first, block = call.steps[0], call.block
            size = sizes.get(getattr(first, "source", -1), entry)
            for step in call.steps:
                if isinstance(step, MapStep):
                    sizes[step.out] = step.output_size(sizes, entry)
            if block is not None:
                size = (1, 1) if block.linear else sizes[first.out] if block.window else size
                each.append(block.numbers(*size, entry))
        found.append(each)
    return found


def _name(call: Call, size: tuple[int, int]) -> str:
    block, first = call.block, call.steps[0]
    if block.linear:
        return f"linear layer {block.channels} to {block.kept2}"
    if block.window:
        return f"convolution {first.channels} to {first.filters} on {size[0]} x {size[1]}"
    kind = "bottleneck" if block.primary else "Ghost module" if first.cheap_channels else "1x1 convolution"
    return f"{kind} {block.channels} to {block.kept2} on {size[0]} x {size[1]}"


def describe(
    x: torch.Tensor, packed: torch.Tensor, steps: list[int], find: Find = plan.find
) -> list[tuple[tuple[str, ...], plan.Plan | None]] | None:
    """Of every chain of blocks on such an input: what they are, and their plan; of a step that PyTorch runs its kind,
    and None. None where the program runs elsewhere."""
    fitted = fitting(packed, tuple(steps), packed.numel(), tuple(x.shape), x.dtype, x.device, find)
    if fitted is None:
        return None
    found = []
    for chain, each in zip(fitted.calls.chains, _numbers(fitted.calls, x.shape)):
        if not each:
            if not isinstance(chain[0].steps[0], Load | Store | StoreFeatures):
                found.append(((type(chain[0].steps[0]).__name__,), None))
            continue
        names = tuple(_name(call, numbers[:2]) for call, numbers in zip(chain, each))
        found.append((names, find(tuple(n for numbers in each for n in numbers), x.dtype, x.shape[0], x.device)))
    return found


def summary(x: torch.Tensor, packed: torch.Tensor, steps: list[int], find: Find = plan.find) -> str:
    """In words: the kernels of a program on such an input, the bytes that its blocks do not move, and the steps
    that are no block: Triton's kernels or PyTorch run them."""
    calls = describe(x, packed, steps, find)
    if calls is None:
        return "in fact on the next backend, since no part of a Ghost module fits the device"
    chains = [(names, found) for names, found in calls if found is not None]
    blocks = [name for names, _ in chains for name in names]
    bottlenecks = sum(name.startswith("bottleneck") for name in blocks)
    launches = [(names[one.first : one.last + 1], one) for names, found in chains for one in found.launches]
    fused, by_module = (sum(getattr(f, k) for _, f in chains) / 1e6 for k in ("fused", "by_module"))
    counts = f"{bottlenecks} bottlenecks and {len(blocks) - bottlenecks} other blocks in {len(launches)} launches"
    moved = f"move {fused:.1f} MB, by module it would be {by_module:.1f} MB"
    others = Counter(names[0] for names, found in calls if found is None)
    without = [f"no kernel here computes {', '.join(f'{n} {kind}' for kind, n in others.items())}"] if others else []
    each = (f"{' and '.join(names)}: {one}" for names, one in launches)
    return ", ".join([f"{counts} {moved}", *without, *each])


class CudaInterpreter(ProgramInterpreter):
    """Runs calls, whose parameters are in two buffers: matrices, in the dtype of the maps, and vectors."""

    kernels: ClassVar = {Depthwise: depthwise_elsewhere}

    def __init__(self, x: torch.Tensor, matrices: torch.Tensor, vectors: torch.Tensor) -> None:
        super().__init__(x)
        self.matrices, self.vectors = matrices, vectors

    def run_calls(self, fitted: Fitted) -> list[torch.Tensor]:
        for chain, numbers in zip(fitted.calls.chains, fitted.numbers):
            first, last = chain[0], chain[-1]
            if first.block is None:
                self.take(first.steps[0], [self._folded(entry) for entry in first.plain])
            elif first.is_plain:
                source = self._image(first) if first.block.window else self.read(first.steps[0].source)
                out = launch.launch_chain(source, self.matrices, self.vectors, numbers)
                if last.block.linear:
                    self.features = out[: self.x.shape[0]]
                else:
                    self.write(last.steps[-1].out, out)
            else:
                self.run_ghost_module(first.steps[0], first.block)
        return self.results(fitted.calls.steps)

    def _image(self, call: Call) -> torch.Tensor:
        """The input, in one of the layouts that windows are read from."""
        x = super().input(call.steps[0].channels)
        return x if x.is_contiguous() else x.contiguous(memory_format=torch.channels_last)

    def input(self, channels: int) -> torch.Tensor:
        return super().input(channels).contiguous(memory_format=torch.channels_last)

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
