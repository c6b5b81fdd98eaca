"""The graph of a forward, of which everything that tracing would get wrong is refused."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection
from typing import NamedTuple

from torch import fx, nn

from ...fused.behaviour import Fused
from ...fused.frozen import FrozenProgram
from ...fused.frozen_net import Frozen
from ...fused.structure import is_hooked
from ...nn import SyncBatchNorm
from ..recognise import survey

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Untraceable(Exception):
    """Why a forward has no graph, in a sentence."""


class Traced(NamedTuple):
    """A graph, the arguments of the forward that it reads, and those for whose defaults it stands."""

    graph: fx.Graph
    inputs: tuple[str, ...]
    optional: tuple[str, ...]


def kept_whole(net: nn.Module) -> frozenset[str]:
    """Paths of what only looks known: ``explain`` is to name it, so that no tracing may look into it."""
    return frozenset(finding.name for finding in survey(net))


def trace(net: nn.Module, whole: Collection[str], only_ours: bool = False) -> Traced:
    """What the forward of ``net`` calls, as a graph whose modules are paths in ``net``.

    Tracing runs the forward, on a copy: what it counts or keeps does not change ``net``.

    Args:
        net: stays as it is.
        whole: paths of modules that are not to be looked into.
        only_ours: look into no module of the net's own classes unless one of ours is inside: its forward may do what no
            trace can see.

    Raises:
        Untraceable: it depends on values, or on what tracing would fix.
    """
    inputs, optional = _arguments(type(net).forward)
    tensors = {id(t): t for t in (*net.parameters(), *net.buffers())}
    scratch = copy.deepcopy(net, tensors)
    leaves = {scratch.get_submodule(path) for path in whole}
    if optional:
        _fix_defaults(scratch, inputs)
    try:
        graph = _Tracer(leaves, only_ours).trace(scratch)
    except Exception as error:  # a forward that depends on what only running it tells
        text = str(error).strip().splitlines()
        why = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
        raise Untraceable(f"its forward cannot be traced ({why})") from error
    for node in graph.nodes:
        if node.op == "get_attr" and not _has(net, node.target):
            raise Untraceable("its forward makes a tensor that tracing would keep as it was")
    return Traced(graph, inputs, optional)


class _Tracer(fx.Tracer):
    """Looks into modules, but for those that are known, those where something else runs than their forward, and those
    that only look known."""

    proxy_buffer_attributes = True  # what is computed of a buffer is not to be computed once and for all

    def __init__(self, whole: set[nn.Module], only_ours: bool) -> None:
        super().__init__()
        self.whole = whole
        self.only_ours = only_ours

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        known = isinstance(module, (Fused, FrozenProgram, Frozen, SyncBatchNorm)) or module in self.whole
        if known or is_hooked(module) or super().is_leaf_module(module, path):
            return True
        return self.only_ours and type(module) is not nn.Sequential and not self._holds_ours(module)

    def _holds_ours(self, module: nn.Module) -> bool:
        return any(isinstance(m, Fused) or m in self.whole for m in module.modules())


def _arguments(forward: Callable) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the arguments that are inputs, and of the optional ones."""
    _, *parameters = inspect.signature(forward).parameters.values()
    if any(p.kind not in _NAMED for p in parameters):
        raise Untraceable("its forward takes any number of arguments")
    required = tuple(p.name for p in parameters if p.default is inspect.Parameter.empty)
    if any(p.kind is inspect.Parameter.KEYWORD_ONLY and p.name in required for p in parameters):
        raise Untraceable("its forward has a keyword that it requires")
    inputs = required or tuple(p.name for p in parameters[:1])
    return inputs, tuple(p.name for p in parameters if p.name not in inputs)


def _fix_defaults(net: nn.Module, inputs: tuple[str, ...]) -> None:
    """Give a copy a forward of its inputs only, so that the optional arguments are what they are by default."""
    scope = {"forward_of": type(net).forward}
    code = f"def forward(self, {', '.join(inputs)}): return forward_of(self, {', '.join(inputs)})"
    exec(code, scope)
    object.__setattr__(net, "__class__", type(type(net).__name__, (type(net),), {"forward": scope["forward"]}))


def _has(net: nn.Module, path: str) -> bool:
    for name in path.split("."):
        if not hasattr(net, name):
            return False
        net = getattr(net, name)
    return True
