"""Programs in training: a step over slots becomes an operation over values, each made once, so that the backward can
go through them in reverse.

The parameters of an operation are those of its step's layers, in order. Where several operations read a value, their
gradients are summed: an operation adds what came before it to its own, so that no sum is a pass of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..activations import ACTIVATIONS, NONE, WITH_SLOPES
from .format import decode
from .step import Step
from .steps import Conv, Depthwise, Excite, Ghost, Load, Store

INPUT = 0  # the value that is the program's input
MOST_KERNEL = 7  # of a depthwise convolution
MOST_STRIDE = 3  # of a depthwise convolution, in its backward
MOST_FILTER = 256  # of a value of a first convolution, which are one step of a product


class NotTrainable(Exception):
    """The program has no backward of its own; the message says why, as the end of a sentence."""


class LayerTensors(NamedTuple):
    """The tensors of a layer, in the order in which a program's caller gives them; None where there is none."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    gamma: torch.Tensor | None
    beta: torch.Tensor | None
    mean: torch.Tensor | None
    var: torch.Tensor | None
    slopes: torch.Tensor | None
    batches: torch.Tensor | None


PER_LAYER = len(LayerTensors._fields)
DIFFERENTIABLE = ("weight", "bias", "gamma", "beta", "slopes")


class Operation(NamedTuple):
    """A step between values.

    Attributes:
        step: a ``Conv``, ``Ghost``, ``Depthwise`` or ``Excite``; the latter multiplies its source by the excitation
            here.
        source, out: the values that it reads and makes.
        residual: the value that it adds, or -1.
        layer: number of its first layer among all.
        squeezes: whether an ``Excite`` that follows reads the channel sums of its result.
        is_shortcut: whether it is a 1x1 convolution without activation whose result is only added by Ghost modules,
            which apply its BatchNorm as they add it.
    """

    step: Step
    source: int
    out: int
    residual: int
    layer: int
    squeezes: bool = False
    is_shortcut: bool = False

    @property
    def adds_gradients(self) -> bool:
        """Whether its backward adds what other operations found to the gradient of its source."""
        return not isinstance(self.step, Excite)


@dataclass(frozen=True, eq=False)
class TrainingProgram:
    """What the backends get.

    Attributes:
        number: stands for the program in the keys of caches; no other program ever has it.
        operations: in order.
        layers: of each layer of all of them, whether a BatchNorm follows it.
    """

    number: int
    operations: tuple[Operation, ...]
    layers: tuple[bool, ...]

    @functools.cached_property
    def result(self) -> int:
        """The value that the program returns."""
        return self.operations[-1].out

    @functools.cached_property
    def channels(self) -> int:
        """Channels of the input."""
        return self.operations[0].step.channels

    @functools.cached_property
    def has_input_gradient(self) -> bool:
        """Whether the backward finds the gradient of the input: a first convolution's has none."""
        return not any(isinstance(operation.step, Conv) for operation in self.operations)

    @functools.cached_property
    def inner(self) -> tuple[int, ...]:
        """The values that the backward reads, without the input, in order."""
        return tuple(sorted({operation.source for operation in self.operations} - {INPUT}))

    def fewest_pixels(self, height: int, width: int) -> int:
        """Pixels of the smallest map that a BatchNorm sees in an image of that size."""
        return _fewest_pixels(self, height, width)


_programs: list[TrainingProgram] = []


def _output_size(step: Step, size: tuple[int, int]) -> tuple[int, ...]:
    return step.output_size({step.source: size}, size) if isinstance(step, (Conv, Depthwise)) else size


@functools.lru_cache(maxsize=4096)
def _fewest_pixels(program: TrainingProgram, height: int, width: int) -> int:
    sizes = {INPUT: (height, width)}
    for operation in program.operations:
        sizes[operation.out] = _output_size(operation.step, sizes[operation.source])
    return min(max(h, 0) * max(w, 0) for h, w in sizes.values())


def trained(program: TrainingProgram, layers: Sequence[LayerTensors]) -> list[tuple[int, str]]:
    """Layer and name of each parameter of which ``program_train_backward`` returns a gradient, in its order: all but
    the biases before BatchNorms, whose gradients are 0."""
    found = []
    for i, (has_norm, layer) in enumerate(zip(program.layers, layers, strict=True)):
        names = [name for name in DIFFERENTIABLE if getattr(layer, name) is not None]
        found += [(i, name) for name in names if not (has_norm and name == "bias")]
    return found


def training_program(number: int) -> TrainingProgram:
    """The program of that number."""
    return _programs[number]


@functools.cache
def number_of_program(code: tuple[int, ...]) -> int:
    """The number of the program whose list of steps this is.

    Raises:
        NotTrainable: one of its steps has no backward here, or gradients would have to be summed in a pass.
    """
    operations = _operations(decode(code))
    operations = tuple(o._replace(is_shortcut=_is_shortcut(o, operations)) for o in operations)
    _check_gradients(operations)
    layers = tuple(not isinstance(o.step, Excite) for o in operations for _ in o.step.layers())
    _programs.append(TrainingProgram(len(_programs), operations, layers))
    return len(_programs) - 1


def _operations(steps: Sequence[Step]) -> list[Operation]:
    if not isinstance(steps[0], (Load, Conv)) or not isinstance(steps[-1], Store) or len(steps) < 2:
        raise NotTrainable("it does not go from a map to a map")
    inner = steps[1:-1] if isinstance(steps[0], Load) else steps[:-1]
    values, count, layer = {steps[0].out: INPUT} if isinstance(steps[0], Load) else {}, INPUT, 0
    squeezed, excited = None, {}  # the value whose means are the squeeze; the excited one by the value that it is of
    found: list[Operation] = []
    for step in inner:
        count += 1
        if isinstance(step, Excite):
            if squeezed is None:
                raise NotTrainable("its excitation has no squeeze before it")
            if step.reduce.act in WITH_SLOPES:
                raise NotTrainable(f"{ACTIVATIONS[step.reduce.act]} within an excitation has none")
            excited = {squeezed: count}
            found[-1] = found[-1]._replace(squeezes=found[-1].out == squeezed)
            found.append(Operation(step, squeezed, count, -1, layer))
        elif isinstance(step, (Ghost, Depthwise)):
            source, residual = values[step.source], -1
            if isinstance(step, Ghost):
                residual = values[step.residual] if step.residual >= 0 else -1
                if step.scaled:
                    if source not in excited:
                        raise NotTrainable("an excitation multiplies another map than the one that was squeezed")
                    source = excited[source]
            elif not step.is_same or step.kernel[0] > MOST_KERNEL or step.stride[0] > MOST_STRIDE:
                raise NotTrainable(f"a depthwise convolution of kernel {step.kernel}, stride {step.stride} has none")
            values[step.out] = count
            squeezed = count if step.squeeze else squeezed
            found.append(Operation(step, source, count, residual, layer))
        elif isinstance(step, Conv):
            if not _is_plain(step):
                raise NotTrainable("a dense convolution has one only of the input, square, and with nothing added")
            if step.channels * step.kernel[0] ** 2 > MOST_FILTER:
                raise NotTrainable(f"its first convolution has more than {MOST_FILTER} inputs a value")
            values[step.out] = count
            found.append(Operation(step, INPUT, count, -1, layer))
        else:
            raise NotTrainable(f"the step {type(step).__name__} has none")
        layer += len(step.layers())
    if not found or values.get(steps[-1].source) != found[-1].out:
        raise NotTrainable("it does not return what its last step makes")
    return found


def _is_plain(step: Conv) -> bool:
    """Whether a convolution reads the input, and is as its kernels have it."""
    square = all(first == second for first, second in (step.kernel, step.stride, step.padding))
    alone = step.source < 0 and step.residual < 0 and not step.squeeze
    return square and alone and step.groups == 1 and step.dilation == (1, 1)


def _is_shortcut(operation: Operation, operations: Sequence[Operation]) -> bool:
    step, adding = operation.step, [o for o in operations if o.residual == operation.out]
    if not isinstance(step, Ghost) or step.cheap_channels or step.layer.act != NONE or operation.residual >= 0:
        return False
    read = any(o.source == operation.out for o in operations)
    return bool(adding) and not read and all(o.step.cheap_channels for o in adding)


def _check_gradients(operations: tuple[Operation, ...]) -> None:
    """Refuse programs in which a gradient would be added to one that is there already by nobody."""
    there: set[int] = set()
    for operation in reversed(operations):
        if operation.residual in there or (operation.source in there and not operation.adds_gradients):
            raise NotTrainable("gradients of one of its maps would have to be added in a pass of their own")
        there |= {operation.residual, operation.source} - {-1}
