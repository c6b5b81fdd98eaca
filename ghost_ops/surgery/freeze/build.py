"""Frozen modules made in place: each the longest runs of what it calls as programs, its forward generated from them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from torch import fx, nn

from ...dispatch import PLAIN_TENSORS
from ...fused.behaviour import Fused, remove
from ...fused.errors import Unfusable
from ...fused.frozen import FrozenProgram
from ...fused.frozen_net import Code, Frozen, FrozenState, freeze_class
from ...fused.in_place import made_class
from .opened import opened
from .runs import Run, replace_runs
from .trace import Untraceable, trace

WHOLE = "traced as a whole"
OURS = "traced, all but modules without one of ours"
INSIDE = "its children one by one"
PLAIN = "as it is"


def freeze_in_place(module: nn.Module, modes: Mapping[str, str], whole: frozenset[str], path: str = "") -> nn.Module:
    """Freeze a module and what is inside, in place.

    Args:
        module: fused, of parameters that need no gradient.
        modes: by path how each module is frozen; of those that it lacks nothing is.
        whole: paths of modules that are not to be looked into.
        path: of the module.

    Returns:
        the module; another one where a class in place could not do.

    Raises:
        Untraceable: a module that is to be traced cannot be.
    """
    if isinstance(module, (FrozenProgram, Frozen)):
        return module
    mode = modes.get(path, PLAIN)
    if mode in (WHOLE, OURS):
        inside = f"{path}." if path else ""
        own = frozenset(p.removeprefix(inside) for p in whole if p.startswith(inside) and p != path)
        return freeze_module(module, own, mode == OURS)
    if mode == INSIDE:
        for name, child in module._modules.items():
            if child is not None:
                module._modules[name] = freeze_in_place(child, modes, whole, f"{path}.{name}" if path else name)
    return module


def freeze_module(module: nn.Module, whole: frozenset[str], only_ours: bool) -> nn.Module:
    """One module frozen in place, if there is a program in it; raises ``Untraceable``."""
    if "forward" in module.__dict__:
        raise Untraceable("its forward was replaced on the instance")
    if isinstance(module, Fused):
        return _single(module)
    modules = dict(module.named_modules(remove_duplicate=False))
    known = opened(module)
    traced = trace(module, {*whole, *(path for path, m in modules.items() if m in known)}, only_ours)
    child = free_name(module)
    runs = replace_runs(traced.graph, modules, known, child)
    if not runs:
        return module
    if isinstance(module, fx.GraphModule):
        return _graph_module(module, traced.graph, runs, child)
    state = FrozenState(
        child,
        Code.of(traced.graph),
        _is_one_call(traced.graph),
        traced.inputs,
        traced.optional,
        _watched(module, runs),
    )
    return _changed(module, state, runs)


def _single(module: Fused) -> nn.Module:
    """A Ghost module or bottleneck as a program; itself where no program computes it."""
    run = Run(None, {})
    if not run.add_block("", module):
        return module
    try:
        run.finish()
    except Unfusable:
        return module
    plain = plain_of(module)
    child = free_name(plain)
    graph = fx.Graph()
    run.argument = _first_argument(plain)
    graph.output(graph.call_module(f"{child}.0", (graph.placeholder(run.argument),)))
    state = FrozenState(child, Code.of(graph), True, (run.argument,), (), _watched(plain, [run]))
    return _changed(plain, state, [run])


def plain_of(module: Fused) -> nn.Module:
    """The module with its own class, and what is inside still fused. One that was built fused is as it is."""
    if made_class(type(module)) is not None:
        remove(module)
    return module


def _first_argument(module: nn.Module) -> str:
    return list(inspect.signature(type(module).forward).parameters)[1]


def _changed(module: nn.Module, state: FrozenState, runs: list[Run]) -> nn.Module:
    for run in runs:
        run.program.input_name = f"{type(module).__name__} (frozen): {run.argument or 'the input of a program'}"
    try:
        freeze_class(module, state, [run.program for run in runs])
    except TypeError as error:
        raise Untraceable(f"no class can be derived from its own ({error})") from error
    return module


def _graph_module(module: fx.GraphModule, graph: fx.Graph, runs: list[Run], child: str) -> fx.GraphModule:
    """A graph module made anew: its class is of one object, and says nothing about the net."""
    module.add_module(child, nn.ModuleList(run.program for run in runs))
    graph._tracer_cls = fx.Tracer  # a saved one is made again by it, with every module a leaf
    made = fx.GraphModule(module, graph, type(module).__name__)
    made.delete_all_unused_submodules()
    return made.eval()


def free_name(module: nn.Module) -> str:
    """A name for the child that holds a module's programs."""
    name = "frozen_programs"
    while hasattr(module, name):
        name += "_"
    return name


def _is_one_call(graph: fx.Graph) -> bool:
    """Whether the graph is one program from the only input to the output."""
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    (output,) = (node for node in graph.nodes if node.op == "output")
    called = len(nodes) == 1 and nodes[0].op == "call_module"
    return called and output.args == (nodes[0],) and nodes[0].args == tuple(inputs)


def _watched(module: nn.Module, runs: list[Run]) -> tuple[tuple[str, str], ...]:
    """Paths and names of the tensors that were packed."""
    paths = {m: path for path, m in module.named_modules()}
    found = []
    for packed in dict.fromkeys(m for run in runs for m in run.packed() if m in paths):
        for name, t in (*packed._parameters.items(), *packed._buffers.items()):
            if type(t) in PLAIN_TENSORS and t.is_floating_point():
                found.append((paths[packed], name))
    return tuple(found)


def holds_programs(module: nn.Module) -> bool:
    return any(isinstance(m, FrozenProgram) for m in module.modules())


def holds_ours(module: nn.Module) -> bool:
    """Whether a module of ours is inside that a program might compute."""
    return any(isinstance(m, Fused) for m in module.modules())
