"""Regions of a graph, each a program: convex sets of nodes that read one map from outside."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from typing import NamedTuple

from torch import fx, nn

from ...fused.errors import Unfusable
from ...fused.frozen import FrozenProgram
from ...fused.layers import ParameterSource
from . import values as v
from .calls import describe
from .lower import Refused, lower
from .read import Found, Reader
from .seen import Seen
from .trace import caller_of
from .values import PADDED, Features, Map, Operation, Padded, Value
from .writes import Writes

_CALLS = ("call_module", "call_function", "call_method")
_OUTSIDE = "it reads what is made outside of a program"


class Left(NamedTuple):
    """A node that stays PyTorch: path of the module that calls it, the reason, and the size of what it makes."""

    path: str
    why: str
    size: int


class Program(NamedTuple):
    """A program, what was packed, and the argument of the forward that it reads (None: something else)."""

    module: FrozenProgram
    sources: list[ParameterSource]
    argument: str | None


def replace_regions(
    graph: fx.Graph,
    modules: dict[str, nn.Module],
    opened: dict[nn.Module, tuple[nn.Module, ...]],
    seen: Seen,
    child: str,
    opaque: Collection[str] = (),
) -> tuple[list[Program], list[Left]]:
    """Put a call of a program in the place of every region that a program computes.

    Args:
        graph: changed in place.
        modules: what its nodes call, by path.
        opened: modules of other classes, each with those of PyTorch that compute the same.
        seen: what its nodes were on examples.
        child: path of the module whose children ``"0"``, ``"1"``, ... the programs are to be.
        opaque: modules that it calls since they could not be traced, of which nothing is said again.

    Returns:
        the programs in the order of the graph, and what was left as it is.
    """
    finder = _Finder(graph, modules, opened, seen)
    regions = finder.find()
    left = finder.left({node for region in regions for node in region.nodes}, opaque)
    replaced: dict[fx.Node, fx.Node] = {}
    for index, region in enumerate(regions):
        region.replace(graph, f"{child}.{index}", seen, replaced)
    graph.lint()
    return [region.program for region in regions], left


class _Finder:
    """Goes through the nodes in order. A region begins at one that a program computes, and takes every later one all of
    whose tensors are in it, or are the one map that the first has read."""

    def __init__(
        self, graph: fx.Graph, modules: dict[str, nn.Module], opened: dict[nn.Module, tuple[nn.Module, ...]], seen: Seen
    ) -> None:  # fmt: skip
        self.nodes = [node for node in graph.nodes if node.op in _CALLS]
        self.modules, self.seen = modules, seen
        self.refused: dict[fx.Node, str] = {}
        self.reasons: dict[fx.Node, str] = {}
        self.reader = Reader(modules, opened, seen, self.refused)
        self.writes = Writes(graph, modules)
        self.done: set[fx.Node] = set()

    def find(self) -> list[_Region]:
        regions = []
        for at, node in enumerate(self.nodes):
            if node not in self.done and (entry := self._entry(node)) is not None:
                region = self._region(at, entry)
                if region is not None:
                    regions.append(region)
                    self.done |= region.nodes
        return regions

    def _entry(self, node: fx.Node) -> fx.Node | None:
        """The one tensor that a node reads, where it is a map."""
        tensors = self._tensors(node)
        return tensors[0] if len(tensors) == 1 and self.seen.channels(tensors[0]) else None

    def _tensors(self, node: fx.Node) -> list[fx.Node]:
        return [n for n in node.all_input_nodes if self.seen.is_tensor(n)]

    def _region(self, at: int, entry: fx.Node) -> _Region | None:
        """The region that begins at a node; None where it is not worth a program. What cannot stand in it is refused,
        and the region is grown anew without."""
        begin = self.nodes[at]
        self.refused.clear()  # what cannot stand in one region may stand in another
        while True:
            region = self._grown(at, entry)
            if region is None or begin not in region.nodes:
                return None
            conflict = next(self.writes.conflicts(region.nodes, begin), None)
            if conflict is None:
                try:
                    region.finish(self.seen, self.writes.place.__getitem__)
                    return region
                except Refused as error:
                    conflict = error.node, error.why
                except Unfusable as error:  # parameters of a dtype or on a device that no kernel reads
                    self.reasons.update(dict.fromkeys(region.worth, str(error)))
                    return None
            if conflict[0] is None or conflict[0] in self.refused:
                return None
            self.refused[conflict[0]] = self.reasons[conflict[0]] = conflict[1]

    def _grown(self, at: int, entry: fx.Node) -> _Region | None:
        region = _Region(self.nodes[at], entry, self.seen.channels(entry), self.modules)
        for node in self.nodes[at:]:
            if node in self.done or node in region.nodes or not self.seen.is_tensor(node):
                continue
            outside = [n for n in self._tensors(node) if n not in region.values]
            if outside and all(n.op == "get_attr" for n in outside):
                name = describe(node, None)
                self.reasons[node] = f"no step computes {name} with a parameter or buffer that no layer has"
            if outside or not self._tensors(node):
                self.reasons.setdefault(node, _OUTSIDE)
                continue
            try:
                found = self.reader.read(node, region.values)
            except Unfusable as error:
                self.reasons[node] = str(error)
                continue
            region.take(found)
        return region if region.worth else None

    def left(self, taken: Collection[fx.Node], opaque: Collection[str]) -> list[Left]:
        """The nodes outside of programs, the largest first, each reason of a module once. Of those that only read what
        others have left nothing is said, unless there is nothing else to say."""
        found: dict[tuple[str, str], int] = {}
        for node in self.nodes:
            if node not in taken and self.seen.is_tensor(node) and node.target not in opaque:
                why = self.reasons.get(node, _OUTSIDE)
                path = node.target if node.op == "call_module" else caller_of(node)
                found[path, why] = found.get((path, why), 0) + self.seen.size(node)
        left = [Left(path, why, size) for (path, why), size in found.items()]
        told = [one for one in left if one.why != _OUTSIDE] or left
        return sorted(told, key=lambda one: -one.size)


class _Region:
    """A region as it grows.

    Attributes:
        begin: the first node, in whose place the program runs.
        entry: the node whose value it reads.
        nodes: those that it stands for.
        values: what they are, the entry included.
        worth: those that make it worth a program: convolutions and blocks.
        program: what ``finish`` makes.
    """

    def __init__(self, begin: fx.Node, entry: fx.Node, channels: int, modules: dict[str, nn.Module]) -> None:
        self.begin, self.entry, self.modules = begin, entry, modules
        self.ops: list[Operation] = [v.Entry(None, channels)]
        self.values: dict[fx.Node, Value] = {entry: Map.of(self.ops[0])}
        self.nodes: set[fx.Node] = set()
        self.worth: list[fx.Node] = []
        self.parts: list[str] = []
        self.results: list[tuple[fx.Node, int]] = []  # nodes that are read outside, each with its place in the results
        self.program: Program

    def take(self, found: Found) -> None:
        if found.ops and isinstance(found.ops[0], v.Pool):  # means of one map are taken once
            pools = (op for op in self.ops if isinstance(op, v.Pool) and op.pooled == found.ops[0].pooled)
            known = next(pools, found.ops[0])
            found = found._replace(value=found.value._replace(op=known), ops=() if known in self.ops else found.ops)
        self.values[found.nodes[-1]] = found.value
        self.nodes |= set(found.nodes)
        self.ops += found.ops
        self.worth += found.nodes[:1] if found.is_worth else ()
        if found.ops and not isinstance(found.ops[0], v.Pool):
            self.parts += (node.target for node in found.nodes if node.op == "call_module")

    def finish(self, seen: Seen, order: Callable[[fx.Node], int]) -> None:
        """Make the program.

        Raises:
            Refused: one of the nodes must be left to PyTorch.
            Unfusable: no kernel reads the parameters.
        """
        outputs: list[Map | Features] = []
        self.results = []
        for node in sorted(self.nodes, key=order):
            if not any(_is_read(user, self.nodes, seen) for user in node.users):
                continue
            value = self.values.get(node)
            if not isinstance(value, (Map, Features)) or (isinstance(value, Features) and value.dims not in (2, 4)):
                why = PADDED if isinstance(value, Padded) else "what it makes is read outside of a program"
                raise Refused(node, why)
            if isinstance(value, Features) and not self._is_of_any_size(value.op):
                raise Refused(node, "how many features it makes is a matter of the size of the image")
            if isinstance(value, Map) and isinstance(value.op, v.Entry):
                raise Refused(node, "it makes nothing of the input of a program")
            value = value._replace(dims=2) if isinstance(value, Features) else value
            if value not in outputs:
                outputs.append(value)
            self.results.append((node, outputs.index(value)))
        if not outputs:
            raise Unfusable("nothing reads what it makes")
        builder, returned = lower(self.ops, outputs)
        self.results = [(node, returned.index(outputs[index])) for node, index in self.results]
        built = builder.finish()
        argument = self.entry.target if self.entry.op == "placeholder" else None
        self.program = Program(FrozenProgram.of(built, tuple(self.parts)), built.sources, argument)

    def _is_of_any_size(self, op: Operation) -> bool:
        """Whether features are as many of every image that the net takes: for other maps a layer raises an error."""
        known = not isinstance(op, v.Flatten) or op.is_said
        return known or any(isinstance(layer, v.OfFeatures) and layer.features is op for layer in self.ops)

    def replace(self, graph: fx.Graph, path: str, seen: Seen, replaced: dict[fx.Node, fx.Node]) -> None:
        """Put a call of the program in the place of the nodes; ``replaced`` has what stands for nodes of others."""
        several = self.program.module.result_count() > 1
        with graph.inserting_before(self.begin):
            call = graph.call_module(path, (replaced.get(self.entry, self.entry),))
            made: dict[tuple[int, bool], fx.Node] = {}
            for node, index in self.results:
                value = self.values[node]
                is_pixel = isinstance(value, Features) and value.dims == 4
                if (index, is_pixel) not in made:
                    found = graph.call_function(operator.getitem, (call, index)) if several else call
                    if is_pixel:
                        pixel = (slice(None), slice(None), None, None)
                        found = graph.call_function(operator.getitem, (found, pixel))
                    made[index, is_pixel] = found
                found = replaced[node] = made[index, is_pixel]
                node.replace_all_uses_with(found)
        for node in reversed(list(graph.nodes)):
            if node in self.nodes or (not node.users and seen.is_size(node)):
                graph.erase_node(node)


def _is_read(user: fx.Node, region: Collection[fx.Node], seen: Seen) -> bool:
    """Whether something outside of a region needs a node of it: a size only counts where something outside needs it."""
    if user in region:
        return False
    if user.op not in _CALLS or seen.is_tensor(user):
        return True
    return any(_is_read(reader, region, seen) for reader in user.users)
