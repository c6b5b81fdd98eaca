"""The list of integers in which steps travel through the operators.

The list begins with its format, the number of slots, and the precision of the packed form, which says what the weights
of products are packed as. Then come the steps, each its kind and its fields. ``csrc/cpu/program/parse.cpp`` reads the
same list; floats stand in it by their bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from .packed_layer import Channels
from .step import MapStep, Shape, Size, Step, step_kinds
from .weights import FLOAT32, WeightFormat, weight_format

FORMAT = 4
Result = TypeVar("Result")


def encode(steps: Sequence[Step], slots: int, precision: int = FLOAT32) -> list[int]:
    """The list for an operator."""
    return [FORMAT, slots, precision, *(number for step in steps for number in (step.kind, *step.encode()))]


def weights_of(numbers: Sequence[int]) -> WeightFormat:
    """The format that a list says for the weights of products. Raises ValueError where it says none that is known."""
    if len(numbers) < 3:
        raise ValueError("program: steps: expected a list with a precision, got one that ends before it")
    return weight_format(numbers[2])


def precision_of(numbers: Sequence[int]) -> int:
    """The code of that format."""
    return weights_of(numbers).precision


def with_precision(numbers: Sequence[int], precision: int) -> list[int]:
    """The same steps for another packed form."""
    return [*numbers[:2], precision, *numbers[3:]]


def decode(numbers: Sequence[int]) -> list[Step]:
    """The steps of a list that ``encode`` made.

    Raises:
        ValueError: the list is not such a list.
    """
    rest, kinds, steps = iter(numbers), step_kinds(), []
    try:
        if (found := next(rest)) != FORMAT or next(rest) < 1:
            raise ValueError(
                f"program: steps: expected a list of format {FORMAT}, got format {found}: "
                "a net that another version of ghost_ops froze must be frozen again"
            )
        weights_of(numbers)
        next(rest)
        for kind in rest:
            if kind not in kinds:
                raise ValueError(f"program: steps: expected a kind from 0 to {max(kinds)}, got {kind}")
            steps.append(kinds[kind].decode(rest))
    except (StopIteration, RuntimeError):  # a generator turns the end of the list into a RuntimeError
        raise ValueError("program: steps: expected a list that ends with a step, got one that ends within") from None
    if not steps:
        raise ValueError("program: steps: expected at least one step")
    return steps


def output_sizes(steps: Sequence[Step], height: int, width: int) -> list[Size]:
    """Height and width of what each step makes, 1 x 1 where it is not a map; sizes may be symbolic."""
    slots: dict[int, Size] = {}
    found = []
    for step in steps:
        size = (1, 1)
        if isinstance(step, MapStep):
            slots[step.out] = size = step.output_size(slots, (height, width))
        found.append(size)
    return found


def slot_channels(steps: Sequence[Step]) -> dict[int, Channels]:
    """Channels of the map in each slot after the steps."""
    channels: dict[int, Channels] = {}
    for step in steps:
        if isinstance(step, MapStep):
            channels[step.out] = step.output_channels(channels)
    return channels


def returning(steps: Sequence[Step]) -> list[Step]:
    """The steps of which each returns a result: those that say so, or the last one."""
    return [step for step in steps if step.is_result] or [steps[-1]]


def output_shapes(steps: Sequence[Step], batch: int, height: int, width: int) -> list[Shape]:
    """Shapes of a program's results for an input of batch x channels x height x width; sizes may be symbolic."""
    sizes: dict[int, Size] = {}
    for step in steps:
        if isinstance(step, MapStep):
            sizes[step.out] = step.output_size(sizes, (height, width))
    channels = slot_channels(steps)
    return [step.result_shape(batch, channels, sizes) for step in returning(steps)]


def output_shape(steps: Sequence[Step], batch: int, height: int, width: int) -> Shape:
    """Shape of the only result.

    Raises:
        ValueError: the program returns several results.
    """
    return only_result(output_shapes(steps, batch, height, width))


def only_result(results: Sequence[Result]) -> Result:
    """The result of a program that returns one; raises ValueError where it returns several."""
    if len(results) != 1:
        raise ValueError(
            f"program: steps: expected one result to return, got {len(results)}: program_maps returns several"
        )
    return results[0]
