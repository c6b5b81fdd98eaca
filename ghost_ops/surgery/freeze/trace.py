"""The graph of a forward, of which everything that tracing would get wrong is refused."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from torch import fx, nn

from ...fused.behaviour import Fused
from ...fused.frozen import FrozenProgram
from ...fused.frozen_net import Frozen
from ...fused.frozen_state import Code
from ...fused.structure import is_hooked
from ...nn import SyncBatchNorm

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
ANY_NUMBER = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Untraceable(Exception):
    """Why a forward has no graph, in a sentence."""


class Traced(NamedTuple):
    """The graph of a forward.

    Attributes:
        inputs: names of the arguments of the forward that it reads.
        optional: names of those for whose defaults it stands.
        defaults: these, by name.
        opaque: paths of modules whose forwards could not be traced, each with the reason; the graph calls them.
        guard: says of the inputs whether the graph stands for a call with them; None where it does for all.
    """

    graph: fx.Graph
    inputs: tuple[str, ...]
    optional: tuple[str, ...]
    defaults: dict[str, object]
    opaque: dict[str, str]
    guard: Code | None = None


def trace(
    net: nn.Module, whole: Collection[str], only_ours: bool = False, plain: Collection[str] = ()
) -> Traced:  # fmt: skip
    """What the forward of ``net`` calls, as a graph whose modules are paths in ``net``.

    Tracing runs the forward, on a copy: what it counts or keeps does not change ``net``. Where the forward of a module
    inside cannot be traced, the graph calls this module.

    Args:
        net: stays as it is.
        whole: paths of modules that are not to be looked into.
        only_ours: look into no module of the net's own classes unless a convolution or a fused module is inside: its
            forward may do what no trace can see.
        plain: paths of fused modules that are looked into, as if they were not fused.

    Raises:
        Untraceable: the forward of ``net`` itself depends on values, or on what tracing would fix.
    """
    inputs, defaults, more = arguments_of(type(net).forward)
    tensors = {id(t): t for t in (*net.parameters(), *net.buffers())}
    opaque: dict[str, str] = {}
    while True:
        scratch = copy.deepcopy(net, dict(tensors))
        leaves = {scratch.get_submodule(path) for path in (*whole, *opaque)}
        if defaults or more:
            _fix_defaults(scratch, inputs)
        tracer = _Tracer(leaves, only_ours, {scratch.get_submodule(path) for path in plain})
        try:
            graph = tracer.trace(scratch)
        except Exception as error:  # a forward that depends on what only running it tells
            text = str(error).strip().splitlines()
            why = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
            why, path, cause = f"its forward cannot be traced ({why})", tracer.failed, error
        else:
            made = (node for node in graph.nodes if node.op == "get_attr" and not _has(net, node.target))
            node = next(made, None)
            if node is None:
                return Traced(graph, inputs, tuple(defaults), defaults, opaque)
            why, path, cause = "its forward makes a tensor that tracing would keep as it was", caller_of(node), None
        if not path or path in opaque:
            raise Untraceable(why) from cause
        opaque[path] = why


def caller_of(node: fx.Node) -> str:
    """Path of the module whose forward a node is from; empty for the net's."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1][0] if stack else ""


class _Proxy(fx.Proxy):
    """A value of a traced forward. That of a split map has a length, which ``list`` asks for."""

    def __len__(self) -> int:
        count = _part_count(self.node)
        return super().__len__() if count is None else count


class _Tracer(fx.Tracer):
    """Looks into modules, but for those that are known, those where something else runs than their forward, and those
    that are to be kept whole.

    Attributes:
        failed: path of the innermost module whose forward raised; empty where none inside did.
    """

    proxy_buffer_attributes = True  # what is computed of a buffer is not to be computed once and for all

    def __init__(self, whole: set[nn.Module], only_ours: bool, plain: set[nn.Module]) -> None:
        super().__init__()
        self.plain = plain
        self.whole = whole
        self.only_ours = only_ours
        self.failed = ""

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        known = isinstance(module, (Fused, FrozenProgram, Frozen, SyncBatchNorm)) and module not in self.plain
        if known or module in self.whole or is_hooked(module) or super().is_leaf_module(module, path):
            return True
        return self.only_ours and type(module) is not nn.Sequential and not self._holds_ours(module)

    def _holds_ours(self, module: nn.Module) -> bool:
        return any(isinstance(m, (Fused, nn.Conv2d)) or m in self.whole for m in module.modules())

    def call_module(self, module: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> object:
        def watched(*args: object, **kwargs: object) -> object:
            try:
                return forward(*args, **kwargs)
            except Exception:
                self.failed = self.failed or path
                raise

        path = self.path_of_module(module)
        return super().call_module(module, watched, args, kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def iter(self, proxy: fx.Proxy) -> Iterator:
        """The items of a split map, whose number the call says; it is looked at again when the graph runs."""
        count = _part_count(proxy.node)
        return super().iter(proxy) if count is None else iter([proxy[i] for i in range(count)])


def _part_count(node: fx.Node) -> int | None:
    """Number of items that a call of chunk, split or tensor_split asks for; None of anything else."""
    name = getattr(node.target, "__name__", node.target)
    if name not in ("chunk", "split", "split_with_sizes", "tensor_split") or node.op == "call_module":
        return None
    keys = ("chunks", "split_size_or_sections", "split_size", "split_sizes", "indices_or_sections")
    wanted = next((node.kwargs[key] for key in keys if key in node.kwargs), None)
    wanted = node.args[1] if len(node.args) > 1 else wanted
    if isinstance(wanted, (tuple, list)):
        return len(wanted) + (name == "tensor_split")
    return wanted if type(wanted) is int and name in ("chunk", "tensor_split") else None


def arguments_of(forward: Callable) -> tuple[tuple[str, ...], dict[str, object], bool]:
    """Names of the arguments that are inputs, the optional ones with their defaults, and whether it takes any more."""
    _, *parameters = inspect.signature(forward).parameters.values()
    more = any(p.kind in ANY_NUMBER for p in parameters)
    parameters = [p for p in parameters if p.kind not in ANY_NUMBER]
    if any(p.kind not in _NAMED for p in parameters) or (more and not parameters):
        raise Untraceable("its forward takes any number of arguments")
    required = tuple(p.name for p in parameters if p.default is inspect.Parameter.empty)
    if any(p.kind is inspect.Parameter.KEYWORD_ONLY and p.name in required for p in parameters):
        raise Untraceable("its forward has a keyword that it requires")
    inputs = required or tuple(p.name for p in parameters[:1])
    return inputs, {p.name: p.default for p in parameters if p.name not in inputs}, more


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
