"""What every step of a program is, and the register of the kinds that there are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, ClassVar, get_type_hints

import torch
from torch import nn

from .layer import Fold, Folded, Layer, bits, real
from .packed_layer import Channels, PackedLayer, Product

if TYPE_CHECKING:
    from .interpreter import ProgramInterpreter

Size = tuple[int, int]  # height and width, which may be symbolic
Slots = tuple[int, ...]  # numbers of slots
Shape = tuple[int, ...]
ONLY_IF = "only if"  # metadata of a field that is in the list only where the field of this name is not 0
_KINDS: dict[int, type[Step]] = {}


class Step:
    """A step: a frozen dataclass whose fields are what the list of integers says of it, in order.

    A field is an int, a bool, a float (by its bits), a ``Size`` (two ints), ``Slots`` (any number of ints, which their
    number precedes) or a ``Layer``. A kind with parameters says which in ``layers``; one that makes a map is a
    ``MapStep`` and says which in ``output_channels`` and ``output_size``; ``run`` is its meaning.

    Attributes:
        kind: the number that stands for the kind in the list.
        reads_squeeze: whether it reads the squeeze.
        is_result: whether it names a result of the program.
        returns_map: whether that is a map.
    """

    kind: ClassVar[int]
    reads_squeeze: ClassVar[bool] = False
    is_result: ClassVar[bool] = False
    returns_map: ClassVar[bool] = False
    _types: ClassVar[dict[str, object]]

    def encode(self) -> list[int]:
        """Its numbers after the kind."""
        found: list[int] = []
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Layer):
                found += value.encode()
            elif isinstance(value, tuple):
                found += (len(value), *value) if self._types[field.name] == Slots else value
            elif value is not None:
                found.append(bits(value) if self._types[field.name] is float else int(value))
        return found

    @classmethod
    def decode(cls, numbers: Iterator[int]) -> Step:
        """Takes its numbers from a list."""
        values: dict[str, object] = {}
        for field in fields(cls):
            kind = cls._types[field.name]
            if ONLY_IF in field.metadata and not values[field.metadata[ONLY_IF]]:
                values[field.name] = None
            elif kind in (Layer, Layer | None):
                values[field.name] = Layer.decode(numbers)
            elif kind in (Size, Slots):
                values[field.name] = tuple(next(numbers) for _ in range(2 if kind == Size else next(numbers)))
            else:
                number = next(numbers)
                values[field.name] = real(number) if kind is float else kind(number)
        return cls(**values)

    # Parameters

    def layers(self) -> list[tuple[Layer, Shape]]:
        """Its layers in order, each with the shape of its weight."""
        return []

    def folded(self, tensors: Iterator[torch.Tensor], fold: Fold) -> list[Folded]:
        """Takes the parameters of its layers, and folds their BatchNorms in."""
        return [layer.folded(shape, tensors, fold) for layer, shape in self.layers()]

    def packed_layers(self, channels: Mapping[int, Channels]) -> list[PackedLayer]:
        """How its layers are packed; ``channels`` are those of the slots before it."""
        return [Product(layer, shape) for layer, shape in self.layers()]

    # Shapes

    def reads(self) -> set[int]:
        """The slots that it reads."""
        read = [getattr(self, name) for name in ("source", "residual", "other") if hasattr(self, name)]
        return {slot for slot in (*read, *getattr(self, "sources", ())) if slot >= 0}

    def result_shape(self, batch: int, channels: Mapping[int, Channels], sizes: Mapping[int, Size]) -> Shape:
        """Shape of the result of a program that ends with it."""
        raise ValueError(f"program: steps: expected a last step that returns something, got a {type(self).__name__}")

    # Meaning

    def run(self, state: ProgramInterpreter, folded: list[Folded]) -> None:
        """What it does to the slots, the squeeze, the excitation and the features, in plain PyTorch."""
        raise NotImplementedError

    def result(self, state: ProgramInterpreter) -> torch.Tensor:
        """The result of a program that ends with it."""
        return state.known(state.features, "a map or features to return")


class MapStep(Step):
    """A step that fills slot ``out`` with a map, like the one in slot ``source`` where it does not say otherwise."""

    source: int
    out: int

    @classmethod
    def of_module(cls, module: nn.Module, source: int, out: int, channels: int) -> MapStep | None:
        """The step that computes one of PyTorch's modules on a map of so many channels; None where none does."""
        return None

    @staticmethod
    def module_of(function: object, arguments: tuple, options: Mapping[str, object]) -> nn.Module | None:
        """The module for :meth:`of_module` that computes what a function does; None where there is none.

        Args:
            function: a function of a map, or the name of a tensor's method.
            arguments, options: those after the map.
        """
        return None

    def output_channels(self, channels: Mapping[int, Channels]) -> Channels:
        """Channels of its map, given those of the slots."""
        return channels[self.source]

    def output_size(self, sizes: Mapping[int, Size], entry: Size) -> Size:
        """Size of its map, given those of the slots and of the program's input."""
        return sizes[self.source]


def convolved_size(size: Size, kernel: Size, stride: Size, padding: Size, dilation: Size = (1, 1)) -> Size:
    """Size of what a convolution or pooling makes of a map; each argument is of rows, then of columns."""
    numbers = zip(size, kernel, stride, padding, dilation)
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in numbers)


def register_step(cls: type[Step]) -> type[Step]:
    """Makes a kind of step known.

    Raises:
        TypeError: it is not a dataclass.
        ValueError: another kind has its number.
    """
    if not is_dataclass(cls):
        raise TypeError(f"register_step: expected a dataclass, got {cls.__name__}")
    if cls.kind in _KINDS:
        taken = _KINDS[cls.kind].__name__
        raise ValueError(f"register_step: {cls.__name__}: expected a kind that no step has, got {cls.kind} ({taken})")
    cls._types = get_type_hints(cls)
    _KINDS[cls.kind] = cls
    return cls


def _map_steps() -> list[type[MapStep]]:
    return [kind for kind in _KINDS.values() if issubclass(kind, MapStep)]


def step_of_module(module: nn.Module, source: int, out: int, channels: int) -> MapStep | None:
    """The step that computes a module on its own, from slot to slot; None where there is none."""
    steps = (kind.of_module(module, source, out, channels) for kind in _map_steps())
    return next((step for step in steps if step is not None), None)


def module_of_function(function: object, arguments: tuple, options: Mapping[str, object]) -> nn.Module | None:
    """The module that computes what a function, or the method of a name, does after a map; None where no step does."""
    modules = (kind.module_of(function, arguments, options) for kind in _map_steps())
    return next((module for module in modules if module is not None), None)


def step_kinds() -> dict[int, type[Step]]:
    """The kinds of steps by their numbers."""
    return dict(_KINDS)
