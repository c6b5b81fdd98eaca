"""What a frozen module remembers, and how it notices that what was packed has changed."""

from __future__ import annotations

import importlib
import inspect
import weakref
from collections.abc import Callable
from types import ModuleType

import torch
from torch import fx, nn
from torch.nn.modules import module as _modules

from ..dispatch import PLAIN_TENSORS
from .graphed import Graphs
from .in_place import source_class

STATE = "_ghost_ops_frozen"  # beside what a module that was built fused has
AGAIN = "change the net that it was made from, or ghost_ops.thaw(net), and freeze again"
_OF_ONE_OBJECT = (
    "counter",
    "version",
    "defaults",
    "fast",
    "shapes",
    "replaced",
    "tables",
    "contents",
    "programs",
)  # of a state's attributes: no copy has them
_HOOKS_OF_ONE = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class Code:
    """A forward that was generated from a graph, of which copies and pickles keep the source."""

    def __init__(self, source: str, names: dict[str, object]) -> None:
        self.source = source
        self.names = names
        scope = {name: _found(value) for name, value in names.items()}
        exec(compile(source, "<ghost_ops.freeze>", "exec"), scope)
        self.forward: Callable[..., object] = scope["forward"]

    @classmethod
    def of(cls, graph: fx.Graph) -> Code:
        """The forward that computes a graph, whose modules are children of the module that it is called with."""
        code = graph.python_code("self")
        return cls(code.src, {name: _named(value) for name, value in code.globals.items()})

    @classmethod
    def of_source(cls, source: str, *modules: ModuleType) -> Code:
        """A function ``forward`` over these Python modules."""
        return cls(source, {module.__name__: _named(module) for module in modules})

    def __deepcopy__(self, memo: dict) -> Code:
        return self

    def __reduce__(self) -> tuple:
        return Code, (self.source, self.names)


class _Module(str):
    """The name of a Python module, which is not pickled itself."""


def _named(value: object) -> object:
    return _Module(value.__name__) if isinstance(value, ModuleType) else value


def _found(value: object) -> object:
    return importlib.import_module(value) if isinstance(value, _Module) else value


class FrozenState:
    """What a frozen module remembers.

    Attributes:
        child: name of the child that holds its programs.
        code: the forward that was generated; None where the module's own forward runs, over frozen children.
        whole: whether the one program is all that the forward computes.
        inputs: names of the arguments of the generated forward.
        optional: names of the other arguments of the module's forward, for whose defaults the generated one stands.
        guard: says by the sizes of the inputs whether the generated forward stands for them; None where it always does.
        shapes: those of the only input that the guard has let pass, so that it is not asked again.
        watched: paths of the modules whose parameters and buffers were packed, with the names of these.
        wanted: paths of the parameters that needed a gradient before.
        left: what stayed PyTorch: paths, each with the reason in a sentence.
        graphs: CUDA graphs of its calls, by shape; None where they are not wanted.
        replaced: which parameter, buffer or child was given to a module of which something was packed; None of none.
        tables: the dictionaries in which modules have the parameters and buffers that were packed.
        contents: what these held then.
        programs: the buffers of each program, with the packed parameters that it had then.
    """

    def __init__(
        self,
        child: str = "frozen_programs",
        code: Code | None = None,
        whole: bool = False,
        inputs: tuple[str, ...] = (),
        optional: tuple[str, ...] = (),
        watched: tuple[tuple[str, str], ...] = (),
        guard: Code | None = None,
    ) -> None:
        self.child = child
        self.code = code
        self.whole = whole
        self.inputs = inputs
        self.optional = optional
        self.watched = watched
        self.guard = guard
        self.wanted: tuple[str, ...] = ()
        self.left: tuple[tuple[str, str], ...] = ()
        self.graphs: Graphs | None = None
        self.defaults: dict[str, object] = {}
        self.counter: torch.Tensor | None = None
        self.version: int | None = 0
        self.fast: tuple | None = None
        self.shapes: set[torch.Size] = set()
        self.replaced: str | None = None
        self.tables: list[dict[str, torch.Tensor | None]] = []
        self.contents: list[dict[str, torch.Tensor | None]] = []
        self.programs: list[tuple[dict[str, torch.Tensor | None], torch.Tensor]] = []

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name not in _OF_ONE_OBJECT}

    def __setstate__(self, state: dict) -> None:
        FrozenState.__init__(self)
        self.__dict__.update(state)

    @torch.inference_mode(False)  # what is made within has no version
    def attach(self, net: nn.Module) -> None:
        """Find out what no copy has: defaults, the way of a fast call, a version counter for what was packed.

        All that was packed shares one counter, so that a change of any is seen at one glance. The tensors keep their
        values, and become other objects. The counter is that of an empty tensor: what ``detach`` returns shares it, and
        keeps it when it is given other data.
        """
        if self.optional:
            parameters = inspect.signature(source_class(net).forward).parameters
            self.defaults = {name: parameters[name].default for name in self.optional}
        self.counter, made = None, {}
        for path, name in self.watched:
            owner = net.get_submodule(path)
            t = owner._parameters.get(name, owner._buffers.get(name))
            if type(t) not in PLAIN_TENSORS or t.is_inference():
                continue
            if self.counter is None:
                self.counter = torch.empty(0, dtype=t.dtype, device=t.device)
            if t.device == self.counter.device:
                made[id(t)] = t, _sharing(self.counter, t)
        for module in net.modules() if made else ():  # a tensor that modules share stays one
            if isinstance(module, torch.jit.ScriptModule):  # nothing of it was packed, and its tables cannot be written
                continue
            for entries in (module._parameters, module._buffers):
                entries.update({name: made[id(t)][1] for name, t in entries.items() if id(t) in made})
        self.counter = torch.empty(0, device="cpu") if self.counter is None else self.counter
        self.version, self.replaced = self.counter._version, None
        owners = [net.get_submodule(path) for path in dict.fromkeys(path for path, _ in self.watched)]
        self.tables = [table for owner in owners for table in (owner._parameters, owner._buffers) if table]
        self.contents = [dict(table) for table in self.tables]
        self.programs = [(made._buffers, made.packed) for made in net._modules.get(self.child, ())]
        self.fast = self._fast_call(net)
        self._watch(net)

    def _watch(self, net: nn.Module) -> None:
        """Notice when a module of which something was packed gets another parameter, buffer or child, and when one on
        the way to it gets another child."""
        for path in dict.fromkeys(path for path, _ in self.watched if path):
            module = net
            for name in path.split("."):
                if module is not net:  # which refuses by itself
                    _watchers.add(module, name, self)
                module = module._modules[name]
            _watchers.add(module, None, self)

    def notice(self, what: str) -> None:
        """Make the next call raise, since something that was packed was replaced."""
        self.replaced = self.replaced or what
        torch.autograd.graph.increment_version(self.counter)

    def is_whole(self) -> bool:
        """Whether a call with one argument is one of its program, whatever the argument is."""
        return self.whole and self.guard is None

    def _fast_call(self, net: nn.Module) -> tuple | None:
        """What ``Frozen.__call__`` looks at; None where every call is one of a module like any other."""
        if not self.whole or self.graphs is not None or source_class(net).__call__ is not nn.Module.__call__:
            return None
        program = net._modules[self.child]._modules["0"]
        hooks = tuple(getattr(_modules, f"_global{name}") for name in _HOOKS_OF_ONE)
        hooks += tuple(entries for m in (net, program) for name, entries in vars(m).items() if name in _HOOKS_OF_ONE)
        shapes = None if self.guard is None else self.shapes
        return net._modules, hooks, program._dtypes, self.counter, program._buffers, program.steps, shapes, self.tables

    def check(self, net: nn.Module) -> None:
        """Look whether a tensor that was packed has been changed since; raises ``RuntimeError``."""
        if self.version not in (None, self.counter._version):
            what = "a parameter or buffer was changed in place" if self.replaced is None else self.replaced
            raise RuntimeError(f"{frozen_name(net)}: {what}: {AGAIN}")
        self.version, self.replaced = self.counter._version, None  # after load_state_dict, which loads what is packed
        if not torch.compiler.is_compiling() and self._is_called_with_others():  # compilers put in tensors of their own
            raise RuntimeError(
                f"{frozen_name(net)}: it was called with other parameters or buffers than those that were packed, as "
                "by torch.func.functional_call: call the net that it was made from, or ghost_ops.thaw(net)"
            )

    def _is_called_with_others(self) -> bool:
        """Whether modules have other tensors than those of which programs have packed their own. ``functional_call``
        puts them in past every hook, and takes them out again."""
        try:
            if self.tables == self.contents:  # the quickest: identical objects are not compared
                return False
        except Exception:  # others are, by value, and a tensor of several has no truth value
            pass
        return any(buffers["packed"] is packed for buffers, packed in self.programs)  # else a whole state was given


def _sharing(counter: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    shares = counter.detach()
    if isinstance(t, nn.Parameter):
        shares = nn.Parameter(shares, requires_grad=False)
    shares.data = t.data
    return shares


class _Watchers:
    """Which states want to know when a module gets something new. PyTorch tells of every module in the process, by
    hooks that are set with the first frozen net; modules need not be hashable."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[weakref.ref, dict[str | None, weakref.WeakSet[FrozenState]]]] = {}
        self.told = False

    def add(self, module: nn.Module, name: str | None, state: FrozenState) -> None:
        """Tell ``state`` when ``module`` gets a child of this name; None stands for whatever it gets."""
        if not self.told:
            self.told = True
            for kind in ("parameter", "buffer", "module"):
                getattr(_modules, f"register_module_{kind}_registration_hook")(self.tell)
        key = id(module)
        if key not in self.known or self.known[key][0]() is not module:
            self.known[key] = weakref.ref(module, lambda _: self.known.pop(key, None)), {}
        self.known[key][1].setdefault(name, weakref.WeakSet()).add(state)

    def tell(self, module: nn.Module, name: str, value: object) -> None:
        found = self.known.get(id(module))
        if found is None or found[0]() is not module:
            return
        for key in (None, name):
            for state in tuple(found[1].get(key, ())):
                state.notice(f"{name!r} of a {type(module).__name__} was replaced")


_watchers = _Watchers()


def state_of(module: nn.Module) -> FrozenState:
    """What a frozen module remembers."""
    return module.__dict__[STATE]


def frozen_name(module: nn.Module) -> str:
    """What error messages call a frozen module."""
    return f"{source_class(module).__name__} (frozen)"
