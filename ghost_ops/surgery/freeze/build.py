"""Frozen modules made in place: each the regions of what it calls as programs, its forward generated from them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx, nn

from ...dispatch import PLAIN_TENSORS
from ...fused.behaviour import Fused, block_of, remove
from ...fused.builder import Builder
from ...fused.errors import Unfusable
from ...fused.frozen import FrozenProgram
from ...fused.frozen_net import Frozen, freeze_class
from ...fused.frozen_state import Code, FrozenState
from ...fused.in_place import made_class
from ...fused.layers import ParameterSource
from ...fused.squeeze_excite import SqueezeExciteBlock
from .compare import Arguments
from .exported import export
from .opened import opened
from .regions import Left, Program, replace_regions
from .seen import Seen
from .trace import Traced, Untraceable, trace

WHOLE = "traced as a whole"
OURS = "traced, all but modules without one of ours"
EXPORTED = "exported, since it cannot be traced"
INSIDE = "its children one by one"


@dataclass(frozen=True)
class Way:
    """How a module is frozen.

    Attributes:
        mode: ``WHOLE``, ``OURS``, ``EXPORTED`` or ``INSIDE``.
        calls: of a module that has a graph, on which shapes are looked at.
        known: what ``Seen`` has seen there.
        exported: its graph once it was exported, which takes long.
    """

    mode: str
    calls: tuple[Arguments, ...] = ()
    known: dict[str, list[object]] = field(default_factory=dict)
    exported: list[Traced] = field(default_factory=list)


@dataclass
class Built:
    """What was frozen of a module and the modules inside.

    Attributes:
        module: it, or another one where a class in place could not do.
        left: what stays PyTorch: by path, largest first.
        opaque: paths of modules whose forwards could not be traced, each with the reason.
    """

    module: nn.Module
    left: list[Left] = field(default_factory=list)
    opaque: dict[str, str] = field(default_factory=dict)


def freeze_in_place(module: nn.Module, ways: Mapping[str, Way], path: str = "") -> Built:
    """Freeze a module and what is inside, in place.

    Args:
        module: fused, of parameters that need no gradient.
        ways: by path how each module is frozen; of those that it lacks nothing is.
        path: of the module.

    Raises:
        Untraceable: a module that is to be traced cannot be.
    """
    built, way = Built(module), ways.get(path)
    if way is None or isinstance(module, (FrozenProgram, Frozen)):
        return built
    inside = f"{path}." if path else ""
    apart = [at for at in ways if at.startswith(inside) and at != path]
    if way.mode == INSIDE or apart:
        _freeze_children(module, ways, path, built)
    if way.mode != INSIDE:
        made = freeze_module(module, way, frozenset(at.removeprefix(inside) for at in apart))
        built.module = made.module
        built.opaque |= {f"{inside}{at}": why for at, why in made.opaque.items()}
        built.left += (left._replace(path=f"{inside}{left.path}".rstrip(".")) for left in made.left)
    return built


def _freeze_children(module: nn.Module, ways: Mapping[str, Way], path: str, built: Built) -> None:
    """Freeze the children of a module, and of those that no way is known of theirs."""
    for name, child in module._modules.items():
        at = f"{path}.{name}" if path else name
        if child is None or isinstance(child, (FrozenProgram, Frozen)):
            continue
        if at not in ways:
            _freeze_children(child, ways, at, built)
            continue
        made = freeze_in_place(child, ways, at)
        module._modules[name] = made.module
        built.left += made.left
        built.opaque |= made.opaque


def freeze_module(module: nn.Module, way: Way, apart: frozenset[str]) -> Built:
    """One module frozen in place, if there is a program in it.

    Args:
        apart: paths of modules that are not to be looked into.

    Raises:
        Untraceable: its forward has no graph.
    """
    if "forward" in module.__dict__:
        raise Untraceable("its forward was replaced on the instance")
    if isinstance(module, Fused) and _has_steps(module):
        return Built(_single(module))
    modules = dict(module.named_modules(remove_duplicate=False))
    known = opened(module)
    leaves = {*apart, *(path for path, m in modules.items() if m in known)}
    plain = [path for path, m in modules.items() if isinstance(m, Fused) and not _has_steps(m)]
    traced = _graph_of(module, way, leaves, plain)
    child = free_name(module)
    seen = Seen(module, traced, way.calls, way.known)
    programs, left = replace_regions(traced.graph, modules, known, seen, child, {*traced.opaque, *apart})
    if programs and isinstance(module, fx.GraphModule):
        module = _graph_module(module, traced.graph, programs, child)
    elif programs:
        whole = _is_one_call(traced.graph) and programs[0].module.result_count() == 1
        watched = _watched(module, programs, known)
        code = Code.of(traced.graph)
        module = plain_of(module) if isinstance(module, Fused) else module
        state = FrozenState(child, code, whole, traced.inputs, traced.optional, watched, traced.guard)
        _change(module, state, programs)
    return Built(module, left, traced.opaque)


def _graph_of(module: nn.Module, way: Way, leaves: set[str], plain: list[str]) -> Traced:
    """The graph of its forward. Raises ``Untraceable`` where it has none."""
    if way.mode != EXPORTED:
        return trace(module, leaves, way.mode == OURS, plain)
    if not way.exported:
        way.exported.append(export(module, leaves, plain, way.calls))
    (known,) = way.exported
    graph = fx.Graph()
    graph.output(graph.graph_copy(known.graph, {}))
    return known._replace(graph=graph)


def _has_steps(module: Fused) -> bool:
    """Whether a program computes a fused module, or its excitation."""
    block, builder = block_of(module), Builder()
    if isinstance(block, SqueezeExciteBlock):
        return True
    try:
        block.lower_module(module, builder, builder.load(block.channels(module)))
    except Unfusable:
        return False
    return True


def _single(module: Fused) -> nn.Module:
    """A Ghost module or bottleneck as a program; itself where no program computes it."""
    block, builder = block_of(module), Builder()
    if not block.has_program:
        return module
    try:
        builder.store(block.lower_module(module, builder, builder.load(block.channels(module))))
        built = builder.finish()
        made = FrozenProgram.of(built, ("",))
    except Unfusable:
        return module
    plain = plain_of(module)
    child = free_name(plain)
    graph = fx.Graph()
    argument = list(inspect.signature(type(plain).forward).parameters)[1]
    graph.output(graph.call_module(f"{child}.0", (graph.placeholder(argument),)))
    programs = [Program(made, built.sources, argument)]
    _change(plain, FrozenState(child, Code.of(graph), True, (argument,), (), _watched(plain, programs, {})), programs)
    return plain


def plain_of(module: Fused) -> nn.Module:
    """The module with its own class, and what is inside still fused. One that was built fused is as it is."""
    if made_class(type(module)) is not None:
        remove(module)
    return module


def _change(module: nn.Module, state: FrozenState, programs: list[Program]) -> None:
    for program in programs:
        name = f"{type(module).__name__} (frozen): {program.argument or 'the input of a program'}"
        program.module.input_name = name
    try:
        freeze_class(module, state, [program.module for program in programs])
    except TypeError as error:
        raise Untraceable(f"no class can be derived from its own ({error})") from error


def _graph_module(module: fx.GraphModule, graph: fx.Graph, programs: list[Program], child: str) -> fx.GraphModule:
    """A graph module made anew: its class is of one object, and says nothing about the net."""
    module.add_module(child, nn.ModuleList(program.module for program in programs))
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


def _watched(
    module: nn.Module, programs: list[Program], known: Mapping[nn.Module, tuple[nn.Module, ...]]
) -> tuple[tuple[str, str], ...]:
    """Paths and names of the tensors that were packed."""
    paths = {m: path for path, m in module.named_modules()}
    own = {parts[0]: m for m, parts in known.items()}
    packed = (own.get(m, m) for program in programs for source in program.sources for m in _tensors_of(source))
    found = []
    for m in dict.fromkeys(m for m in packed if m in paths):
        for name, t in (*m._parameters.items(), *m._buffers.items()):
            if type(t) in PLAIN_TENSORS and t.is_floating_point():
                found.append((paths[m], name))
    return tuple(found)


def _tensors_of(source: ParameterSource) -> tuple[nn.Module | None, ...]:
    """The modules whose tensors a source is made of."""
    return tuple(m for part in source.parts() for m in part[:3])


def holds_programs(module: nn.Module) -> bool:
    return any(isinstance(m, FrozenProgram) for m in module.modules())


def holds_ours(module: nn.Module) -> bool:
    """Whether something is inside that makes a program worth its while: a convolution, or a module of ours."""
    return any(isinstance(m, (Fused, nn.Conv2d)) for m in module.modules())
