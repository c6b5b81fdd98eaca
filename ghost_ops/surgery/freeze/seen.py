"""What the nodes of a graph were on examples: shapes, numbers, and of which map a size is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import fx, nn

from .compare import Arguments, private, undisturbed
from .trace import Traced, Untraceable


class Shape(tuple):
    """Shape of a floating-point tensor."""

    __slots__ = ()


class Other(NamedTuple):
    """A tensor that no program reads, of this shape."""

    shape: tuple[int, ...]


class Dim(NamedTuple):
    """A dimension of the value of a node."""

    node: fx.Node
    index: int


class Seen:
    """The values of a graph's nodes on each of some calls.

    Of a tensor only the shape is kept; tuples, numbers and sizes are as they were.

    Args:
        known: the values by the names of the nodes, filled by the first that looks at a graph.

    Raises:
        Untraceable: the graph does not run on any of the calls.
    """

    def __init__(
        self, module: nn.Module, traced: Traced, calls: Sequence[Arguments], known: dict[str, list[object]]
    ) -> None:  # fmt: skip
        nodes = list(traced.graph.nodes)
        if known.keys() != {node.name for node in nodes}:
            known.clear()
            known.update((node.name, []) for node in nodes)
            self._run(module, traced, calls, known)
        self._values = {node: known[node.name] for node in nodes}

    @staticmethod
    def _run(
        module: nn.Module, traced: Traced, calls: Sequence[Arguments], known: dict[str, list[object]]
    ) -> None:  # fmt: skip
        runs = 0
        with undisturbed(module), torch.no_grad():
            for call in calls:
                inputs = _bound(traced, call)
                if inputs is not None:
                    run = _Run(private(module), traced.graph)
                    try:
                        run.run(*inputs)
                    except Exception as error:
                        raise Untraceable(f"its graph does not run ({type(error).__name__}: {error})") from error
                    runs += 1
                    for node in traced.graph.nodes:
                        known[node.name].append(run.seen.get(node))
        if not runs:
            known.clear()
            raise Untraceable("none of its calls is one of its inputs only")

    def values(self, node: fx.Node) -> list[object]:
        """What a node was on each call."""
        return self._values[node]

    def shapes(self, node: object) -> list[Shape] | None:
        """The shapes of a floating-point tensor on each call; None of anything else."""
        found = self._values[node] if isinstance(node, fx.Node) else []
        return found if found and all(type(value) is Shape for value in found) else None

    def channels(self, node: object) -> int | None:
        """Number of channels of a map; None of anything else."""
        shapes = self.shapes(node) or [()]
        same = all(len(shape) == 4 and shape[1] == shapes[0][1] for shape in shapes)
        return shapes[0][1] if same and shapes[0] else None

    def is_tensor(self, node: fx.Node) -> bool:
        """Whether the value is or holds a tensor, or is unknown."""
        return any(_holds_tensor(value) for value in self._values[node])

    def is_size(self, node: fx.Node) -> bool:
        """Whether a call computes nothing but numbers."""
        calls = node.op in ("call_function", "call_method")
        return calls and node in self._values and not self.is_tensor(node)

    def number(self, argument: object) -> int | None:
        """An integer that is the same on each call, such as a number of channels; None of anything else."""
        if isinstance(argument, fx.Node):
            values = self._values[argument]
            argument = values[0] if all(value == values[0] for value in values) else None
        return argument if type(argument) is int else None

    def size(self, node: fx.Node) -> int:
        """Number of elements of a tensor on the first call, as far as it is known."""
        value = self._values[node][0]
        shape = value.shape if isinstance(value, Other) else value if type(value) is Shape else ()
        return math.prod(shape)

    def dims(self, argument: object) -> list[Dim] | None:
        """The dimensions that an argument such as ``(x.size(2), x.size(3))`` or ``x.shape[2:]`` is; None of another."""
        if isinstance(argument, (tuple, list)):
            parts = [self.dims(item) for item in argument]
            return None if any(part is None for part in parts) else [dim for part in parts for dim in part]
        if not isinstance(argument, fx.Node) or not argument.args:
            return None
        of, *rest = argument.args
        if not isinstance(of, fx.Node):
            return None
        if (argument.op, argument.target) == ("call_method", "size") or (
            argument.op == "call_function" and argument.target is getattr and rest == ["shape"]
        ):
            shapes = self.shapes(of)
            if shapes is None:
                return None
            rank = len(shapes[0])
            index = argument.kwargs.get("dim", rest[0] if rest and argument.target == "size" else None)
            if index is None:
                return [Dim(of, i) for i in range(rank)]
            return [Dim(of, index % rank)] if type(index) is int else None
        if argument.op == "call_function" and argument.target.__name__ == "getitem":
            within = self.dims(of)
            (index,) = rest
            if within is None or not isinstance(index, (int, slice)):
                return None
            found = within[index]
            return found if isinstance(found, list) else [found]
        return None


class _Run(fx.Interpreter):
    """Runs a graph and describes the values of its nodes."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, garbage_collect_values=True, graph=graph)
        self.extra_traceback = False
        self.seen: dict[fx.Node, object] = {}

    def run_node(self, n: fx.Node) -> object:
        found = super().run_node(n)
        self.seen[n] = _described(found)
        return found

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple, dict]:
        """The arguments, of which lists may be written to, as when the generated code runs."""
        return _unlocked(super().fetch_args_kwargs_from_env(n))


def _unlocked(value: object) -> object:
    if isinstance(value, list):
        return [_unlocked(item) for item in value]
    if isinstance(value, dict):
        return {key: _unlocked(item) for key, item in value.items()}
    return tuple(map(_unlocked, value)) if type(value) is tuple else value


def _described(value: object) -> object:
    if isinstance(value, torch.Tensor):
        plain = type(value) in (torch.Tensor, nn.Parameter) and value.is_floating_point()
        return Shape(value.shape) if plain else Other(tuple(value.shape))
    if isinstance(value, torch.Size):
        return tuple(int(n) for n in value)
    if isinstance(value, (tuple, list)):
        return tuple(map(_described, value))
    return value if isinstance(value, (bool, int, float, str, torch.dtype, torch.device)) else None


def _holds_tensor(value: object) -> bool:
    if type(value) is tuple:
        return any(map(_holds_tensor, value))
    return value is None or isinstance(value, (Shape, Other))


def _bound(traced: Traced, call: Arguments) -> tuple | None:
    """The inputs of the graph in a call, as copies; None where it has other arguments too."""
    call = call.copied()
    names = (*traced.inputs, *traced.optional)
    if len(call.args) > len(names):
        return None
    values = {**dict(zip(names, call.args)), **call.kwargs}
    fits = values.keys() <= set(names) and all(name in values for name in traced.inputs)
    given = [name for name in values if name not in traced.inputs]
    if not fits or any(values[name] is not traced.defaults.get(name, values) for name in given):
        return None
    inputs = tuple(values[name] for name in traced.inputs)
    return inputs if traced.guard is None or traced.guard.forward(*inputs) else None
