"""The graph of a forward that only running it gives: ``torch.export`` runs it on an example of dynamic sizes.

What a trace with proxies cannot go through is plain Python here: branches on sizes, ``isinstance``, ``len``, ``*args``.
What was decided by a size holds for the sizes that decide alike. The graph has a guard that says so of a call; the
module's own forward runs where it says no.
"""

from __future__ import annotations

import copy
import inspect
import io
import logging
import math
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from ...fused.behaviour import Fused
from ...fused.errors import first_line
from ...fused.frozen import FrozenProgram
from ...fused.frozen_net import Frozen
from ...fused.frozen_state import Code
from ...fused.structure import is_hooked
from ...nn import SyncBatchNorm
from ..fuse import revert
from . import aten
from .compare import Arguments
from .trace import ANY_NUMBER, Traced, Untraceable, arguments_of

_ROOT = "net"
_LAYOUT = re.compile(r"\.(stride|storage_offset)\(\)")  # other layouts are compared
_BOUND = re.compile(r"^2 <= L\['t(\d+)'\]\.size\(\)\[(\d+)\]$")


def export(net: nn.Module, whole: Collection[str], plain: Collection[str], calls: Sequence[Arguments]) -> Traced:
    """What the forward of ``net`` computes, as a graph whose modules are paths in ``net``.

    Args:
        net: stays as it is.
        whole: paths of modules that are not to be looked into.
        plain: paths of fused modules that are looked into, as if they were not fused.
        calls: the first is what it runs on; the guard must hold of all.

    Raises:
        Untraceable: it cannot be exported, or what it does depends on more than sizes.
    """
    names, optional, defaults = _named_inputs(net, calls)
    tensors = [_tensors_of(names, call) for call in calls]
    if any(found is None for found in tensors):
        raise Untraceable("an input of its forward is not a tensor")
    program = _run(net, tensors[0])
    guard = _guard(program, names, tensors)
    graph = _Lifted(net, whole, plain, program, names).graph()
    return Traced(graph, names, optional, defaults, {}, guard)


def _named_inputs(net: nn.Module, calls: Sequence[Arguments]) -> tuple[tuple[str, ...], tuple[str, ...], dict]:
    """Names of the inputs, which a forward of any number of arguments has none of, and of the optional arguments."""
    parameters = list(inspect.signature(type(net).forward).parameters.values())[1:]
    if any(p.kind not in ANY_NUMBER for p in parameters):
        inputs, defaults, _ = arguments_of(type(net).forward)
        return inputs, tuple(defaults), defaults
    counts = {len(call.args) for call in calls}
    if len(counts) != 1 or not all(counts):
        raise Untraceable("its forward takes any number of arguments")
    return tuple(f"args_{i}" for i in range(*counts)), (), {}


def _tensors_of(names: Sequence[str], call: Arguments) -> list[torch.Tensor] | None:
    values = {**dict(zip(names, call.args)), **call.kwargs}
    found = [values.get(name) for name in names]
    return found if all(isinstance(t, torch.Tensor) for t in found) else None


class _Call(nn.Module):
    """A call of a net with tensors only."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *tensors: torch.Tensor) -> object:
        return self.net(*tensors)


def _run(net: nn.Module, tensors: list[torch.Tensor]) -> torch.export.ExportedProgram:
    known = {id(t): t for t in (*net.parameters(), *net.buffers())}
    scratch = revert(copy.deepcopy(net, known))
    for module in scratch.modules():
        for name, hooks in vars(module).items():
            if "_hooks" in name and isinstance(hooks, dict):
                hooks.clear()  # they are for real calls
    tensors = [torch.cat([t, t]) if t.dim() == 4 and t.shape[0] == 1 else t.clone() for t in tensors]
    auto = torch.export.Dim.AUTO
    sizes = [{0: auto, 2: auto, 3: auto} if t.dim() == 4 else None for t in tensors]
    try:
        with torch.no_grad(), _silent():
            return torch.export.export(_Call(scratch).eval(), tuple(tensors), dynamic_shapes={"tensors": tuple(sizes)})
    except Exception as error:
        raise Untraceable(f"its forward cannot be exported ({first_line(error)})") from error


@contextmanager
def _silent() -> Iterator[None]:
    """What PyTorch writes of an export that fails is in the reason, as far as it helps."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _guard(program: torch.export.ExportedProgram, names: Sequence[str], calls: list[list[torch.Tensor]]) -> Code | None:
    """A function of the inputs that says whether the graph stands for them; None where it always does."""
    inputs = [node.meta["val"] for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    env = next((t.fake_mode.shape_env for t in inputs if isinstance(t, torch.Tensor)), None)
    if env is None:
        raise Untraceable("its forward has no input")
    try:
        text = env.produce_guards_expression(inputs, ignore_static=False)
    except Exception as error:
        raise Untraceable(f"what it asks of sizes is not known ({first_line(error)})") from error
    found = [part.strip() for part in (text or "").split(" and ")]
    found = [part for part in found if part and not _LAYOUT.search(part) and not _is_compared(part, calls)]
    if not found:
        return None
    ranks = [f"L['t{i}'].dim() == {t.dim()}" for i, t in enumerate(calls[0])]
    body = re.sub(r"L\['t(\d+)'\]", lambda m: names[int(m[1])], " and ".join((*ranks, *found)))
    guard = Code.of_source(f"def forward({', '.join(names)}):\n    return bool({body})\n", math)
    try:
        holds = all(guard.forward(*tensors) for tensors in calls)
    except Exception as error:
        raise Untraceable(f"what it asks of sizes cannot be asked again ({first_line(error)})") from error
    if not holds:
        raise Untraceable("what its forward does depends on the size of its input")
    return guard


def _is_compared(bound: str, calls: list[list[torch.Tensor]]) -> bool:
    """Whether a bound says that a size is not 1, as every export does, and an input has it 1: then what the graph makes
    of that is compared."""
    found = _BOUND.match(bound)
    return found is not None and any(tensors[int(found[1])].shape[int(found[2])] == 1 for tensors in calls)


class _Lifted:
    """A graph of modules and of PyTorch's functions, made of one of operators."""

    def __init__(
        self, net: nn.Module, whole: Collection[str], plain: Collection[str], program: torch.export.ExportedProgram,
        names: Sequence[str],
    ) -> None:  # fmt: skip
        self.net, self.program, self.names = net, program, names
        self.modules = dict(net.named_modules(remove_duplicate=False))
        self.whole, self.plain = whole, plain
        signature = program.graph_signature
        self.states = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.made: dict[fx.Node, fx.Node] = {}
        self.result = fx.Graph()

    def graph(self) -> fx.Graph:
        """Raises ``Untraceable`` where something is in it that a frozen net cannot do."""
        self._check()
        inputs = iter(self.names)
        groups = self._groups()
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                if node.name in self.program.graph_signature.user_inputs:
                    self.made[node] = self.result.placeholder(next(inputs))
            elif node.op == "output":
                flat = [self._mapped(item) for item in node.args[0]]
                self.result.output(pytree.tree_unflatten(flat, self.program.call_spec.out_spec))
            elif node in groups:
                group = groups[node]
                if node is group.last:
                    call = self.result.call_module(group.path, (self._mapped(group.source),))
                    self.made[node] = self._with_stack(call, node)
            elif node.op == "call_function":
                made = aten.lifted(self.result, node, self._mapped, self._like)
                if made is not None:
                    self.made[node] = self._with_stack(made, node)
            else:
                raise Untraceable(f"its exported graph has a {node.op}")
        for node in reversed(list(self.result.nodes)):  # sizes that only calls of modules have asked for
            if not node.users and node.op in ("get_attr", "call_function", "call_method"):
                self.result.erase_node(node)
        self.result.lint()
        return self.result

    def _check(self) -> None:
        from torch.export.graph_signature import InputKind, OutputKind

        signature = self.program.graph_signature
        kinds = {InputKind.USER_INPUT, InputKind.PARAMETER, InputKind.BUFFER}
        if any(spec.kind not in kinds for spec in signature.input_specs):
            raise Untraceable("its forward makes a tensor that an export would keep as it was")
        if any(spec.kind is not OutputKind.USER_OUTPUT for spec in signature.output_specs):
            raise Untraceable("its forward writes to a buffer or to its input")

    def _mapped(self, argument: object) -> object:
        return fx.node.map_arg(argument, self._node)

    def _node(self, node: fx.Node) -> fx.Node:
        if node in self.made:
            return self.made[node]
        if node.name not in self.states:
            raise Untraceable("its exported graph needs what a module keeps to itself")
        return self.result.get_attr(self.states[node.name].removeprefix(f"{_ROOT}."))

    def _like(self, node: fx.Node, size: Sequence[object]) -> fx.Node | None:
        """The last map before a node that has this height and width."""
        wanted = [_value(n) for n in size]
        for other in reversed(list(self.made)):
            shape = getattr(_value(other), "shape", ())
            if other not in node.all_input_nodes[:1] and len(shape) == 4 and _are_same(shape[2:], wanted):
                return self.made[other]
        return None

    def _with_stack(self, made: fx.Node, node: fx.Node) -> fx.Node:
        """Says whose forward it is from, as a traced node does."""
        stack = {key: (_path(of), kind) for key, (of, kind) in node.meta.get("nn_module_stack", {}).items()}
        made.meta["nn_module_stack"] = {key: (path, kind) for key, (path, kind) in stack.items() if path is not None}
        return made

    # Calls of modules

    def _groups(self) -> dict[fx.Node, _Group]:
        """By node the call of a module that it is part of."""
        members: dict[tuple[str, str], list[fx.Node]] = {}
        for node in self.program.graph.nodes:
            found = self._leaf(node)
            if found is not None:
                members.setdefault(found, []).append(node)
        groups = (_Group.of(path, nodes, self.states) for (_, path), nodes in members.items())
        return {node: group for group in groups if group is not None for node in group.nodes}

    def _leaf(self, node: fx.Node) -> tuple[str, str] | None:
        """The call of a module that is not looked into, which a node is from: its key and the path of the module."""
        if node.op != "call_function":
            return None
        for key, (of, _) in node.meta.get("nn_module_stack", {}).items():
            path = _path(of)
            if path and path in self.modules and self._is_leaf(path):
                return key, path
        return None

    def _is_leaf(self, path: str) -> bool:
        module = self.modules[path]
        if path in self.whole or is_hooked(module):
            return True
        if isinstance(module, (Fused, FrozenProgram, Frozen, SyncBatchNorm)):
            return path not in self.plain
        return type(module).__module__.startswith("torch.nn.") and not isinstance(module, nn.Sequential)


class _Group:
    """The nodes of one call of a module with one map.

    Attributes:
        path: of the module.
        source: what it was called with.
        last: what it returned.
    """

    def __init__(self, path: str, nodes: list[fx.Node], source: fx.Node, last: fx.Node) -> None:
        self.path, self.nodes, self.source, self.last = path, nodes, source, last

    @classmethod
    def of(cls, path: str, nodes: list[fx.Node], states: Collection[str]) -> _Group | None:
        """None where it was called with something else, or more than its result is read outside."""
        nodes = [node for node in nodes if isinstance(_value(node), torch.Tensor) or node.users]
        inside = set(nodes)
        read = [n for node in nodes for n in node.all_input_nodes if n not in inside and n.name not in states]
        sources = dict.fromkeys(n for n in read if isinstance(_value(n), torch.Tensor))
        returned = [node for node in nodes if any(user not in inside for user in node.users)]
        sizes = [n for n in returned if not isinstance(_value(n), torch.Tensor)]
        returned = [n for n in returned if n not in sizes]
        if len(sources) != 1 or len(returned) != 1 or any(n.args[:1] != (returned[0],) for n in sizes):
            return None
        return cls(path, [node for node in nodes if node not in sizes], *sources, *returned)


def _path(of: str) -> str | None:
    """A path in the net, of one in the module that calls it."""
    of = of.partition("@")[0]
    if of == _ROOT:
        return ""
    return of.removeprefix(f"{_ROOT}.") if of.startswith(f"{_ROOT}.") else None


def _value(item: object) -> object:
    return item.meta.get("val") if isinstance(item, fx.Node) else item


def _are_same(a: Sequence[object], b: Sequence[object]) -> bool:
    """Whether sizes are the same whatever the input is."""
    return len(a) == len(b) and all(_expression(x) == _expression(y) for x, y in zip(a, b))


def _expression(size: object) -> object:
    return size.node.expr if isinstance(size, torch.SymInt) else size
