"""Which nodes of a graph write to tensors that others read: a program runs at one place, and writes to nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import fx, nn

from ...fused.behaviour import Fused
from ...fused.frozen import FrozenProgram

# Functions and methods whose results share no memory with what they read; of all others it is assumed that they might.
_FRESH = frozenset(
    "add sub mul truediv floordiv pow neg matmul bmm mm cat concat concatenate stack clone zeros_like ones_like where "
    "mean sum amax amin max min norm var std exp log sqrt rsqrt abs clamp clip softmax log_softmax sigmoid tanh relu "
    "relu6 leaky_relu prelu silu hardswish hardsigmoid hardtanh gelu mish elu selu softplus logsigmoid conv2d linear "
    "batch_norm layer_norm group_norm instance_norm avg_pool2d max_pool2d adaptive_avg_pool2d adaptive_max_pool2d "
    "interpolate pixel_shuffle pixel_unshuffle size dim numel getattr ge gt le lt eq ne".split()
)
_MAY_BE_IN_PLACE = frozenset(  # and an argument says so
    "relu relu6 hardtanh elu selu celu leaky_relu rrelu threshold silu hardswish hardsigmoid mish dropout dropout2d "
    "alpha_dropout feature_alpha_dropout".split()
)
_IN_PLACE = frozenset("iadd isub imul itruediv ifloordiv ipow setitem".split())
_VIEWS = (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd)


def writes(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node writes to what it reads, or may do so."""
    if node.op == "call_module":
        module = modules[node.target]
        if type(module).__module__.startswith("torch.nn."):
            return bool(getattr(module, "inplace", False))
        return not isinstance(module, (Fused, FrozenProgram))
    if node.op not in ("call_function", "call_method"):
        return False
    name = _name(node)
    if node.kwargs.get("inplace") or "out" in node.kwargs:
        return True
    if name in _MAY_BE_IN_PLACE and any(a is True for a in node.args[1:]):
        return True
    return name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


class Writes:
    """Who writes to what in a graph.

    Attributes:
        place: of each node in the graph.
    """

    def __init__(self, graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
        self.place = {node: at for at, node in enumerate(graph.nodes)}
        self._roots: dict[fx.Node, frozenset[fx.Node]] = {}
        self._modules = modules
        self._writers = [node for node in graph.nodes if writes(node, modules)]
        for node in graph.nodes:
            self._roots[node] = self._root(node)

    def _root(self, node: fx.Node) -> frozenset[fx.Node]:
        """The nodes that may have made the memory of a node's value."""
        read = frozenset().union(*(self._roots[n] for n in node.all_input_nodes))
        if node.op == "call_module":
            module = self._modules[node.target]
            plain = type(module).__module__.startswith("torch.nn.") or isinstance(module, (Fused, FrozenProgram))
            if plain and not isinstance(module, _VIEWS):
                return read if writes(node, self._modules) else frozenset((node,))
        elif node.op in ("call_function", "call_method"):
            if writes(node, self._modules):
                return self._roots[node.all_input_nodes[0]] if node.all_input_nodes else frozenset((node,))
            if _name(node) in _FRESH:
                return frozenset((node,))
        return read | {node}

    def conflicts(self, nodes: Collection[fx.Node], begin: fx.Node) -> Iterator[tuple[fx.Node, str]]:
        """The nodes of a region that must not be in it, each with the reason.

        Args:
            nodes: the region, which runs at once in the place of ``begin``.
        """
        start = self.place[begin]
        for writer in self._writers:
            at = self.place[writer]
            written = frozenset().union(*(self._roots[n] for n in self._targets(writer)))
            if writer in nodes:
                if not self._made_inside(written, nodes):
                    yield writer, "it writes to a map that was made outside of a program"
                elif self._read_later(written, writer):
                    yield writer, "it writes to a map that is read again"
                continue
            for node in nodes:
                touched = any(self._roots[n] & written for n in node.all_input_nodes)
                if touched and start < at < self.place[node]:
                    yield node, f"it reads a map that {_name(writer) or writer.target} writes to"
            outside = [node for node in nodes if self._is_known_outside(node, nodes, written, at)]
            if len(outside) > 1:  # a program returns each as a map of its own
                for node in outside:
                    if self._roots[node] - {node}:
                        yield node, f"it is a view of a map that {_name(writer) or writer.target} writes to"

    def _is_known_outside(
        self, node: fx.Node, nodes: Collection[fx.Node], written: frozenset[fx.Node], at: int
    ) -> bool:  # fmt: skip
        """Whether something outside of a region sees the memory of a node when it is written to, or afterwards."""
        if not self._roots[node] & written:
            return False
        users = (user for user in node.users if user not in nodes)
        return any(self.place[user] >= at or self._roots[user] & written for user in users)

    def _targets(self, writer: fx.Node) -> list[fx.Node]:
        """What a node may write to."""
        if writer.op == "call_module" and not type(self._modules[writer.target]).__module__.startswith("torch.nn."):
            return writer.all_input_nodes
        if "out" in writer.kwargs:
            return writer.all_input_nodes
        return writer.all_input_nodes[:1]

    def _made_inside(self, written: frozenset[fx.Node], nodes: Collection[fx.Node]) -> bool:
        return all(root in nodes for root in written)

    def _read_later(self, written: frozenset[fx.Node], writer: fx.Node) -> bool:
        """Whether an earlier name of the memory is read after the node that writes to it."""
        at = self.place[writer]
        stale = (node for node, roots in self._roots.items() if self.place[node] < at and roots & written)
        return any(self.place[user] > at for node in stale for user in node.users)
