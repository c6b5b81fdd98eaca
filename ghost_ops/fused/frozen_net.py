"""``Frozen``: how a net, or part of one, runs that ``ghost_ops.freeze`` has given this class."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import fx, nn
from torch.nn.modules import module as _modules

from ..dispatch import PLAIN_TENSORS
from ..ops.program import program
from .frozen import FrozenProgram
from .graph_key import ModuleState
from .graphed import Graphs
from .in_place import InPlace, change_class, restore_class, source_class

if TYPE_CHECKING:
    from typing_extensions import Self

STATE = "_ghost_ops_frozen"  # beside what a module that was built fused has
_TENSOR, _autocasts, _jit_trace = torch.Tensor, torch._C._is_any_autocast_enabled, torch._C._get_tracing_state
_MOST_SHAPES = 64  # of inputs that a guard has let pass
_OF_ONE_OBJECT = ("counter", "version", "defaults", "fast", "shapes")  # of a state's attributes: no copy has them
_HOOKS_OF_ONE = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_REBUILDING = ("reset_classifier",)  # methods, of timm's nets, that set attributes before they set new children
_AGAIN = "change the net that it was made from, or ghost_ops.thaw(net), and freeze again"


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
        self.version = self.counter._version
        self.fast = self._fast_call(net)

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
        return net._modules, hooks, program._dtypes, self.counter, program._buffers, program.steps, shapes

    def check(self, net: nn.Module) -> None:
        """Look whether a tensor that was packed has been changed since; raises ``RuntimeError``."""
        if self.version not in (None, self.counter._version):
            raise RuntimeError(f"{_name(net)}: a parameter or buffer was changed in place: {_AGAIN}")
        self.version = self.counter._version  # after load_state_dict, which loads what is packed too


def _sharing(counter: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    shares = counter.detach()
    if isinstance(t, nn.Parameter):
        shares = nn.Parameter(shares, requires_grad=False)
    shares.data = t.data
    return shares


class Frozen(InPlace):
    """The behaviour of a frozen module: its forward is a generated one, which calls children and programs.

    Whatever is left of the module's own methods runs through its children, which are plain PyTorch, or fused. What
    cannot be true of a frozen net any more raises an error of one sentence.
    """

    name_prefix = "Frozen"
    state_name = STATE

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        for name in _REBUILDING if "_source_class" in cls.__dict__ else ():
            if hasattr(cls, name):
                setattr(cls, name, _refusing(name))

    def __call__(self, *args: object, **kwargs: object) -> object:
        """A call of one program, past all that a module's call looks for, where nothing of it is there.

        At batch 1 that is a tenth of the time of a small module.
        """
        state = self.__dict__[STATE]
        if state.fast is not None and len(args) == 1 and not kwargs:
            (x,) = args
            modules, hooks, dtypes, counter, buffers, steps, shapes = state.fast
            if (
                not torch.compiler.is_dynamo_compiling()  # the first: what follows is not to be compiled
                and type(x) is _TENSOR
                and x.is_cpu
                and x.dtype in dtypes
                and (shapes is None or x.shape in shapes)
                and self._modules is modules  # not so in a replica, which has the state of its source
                and counter._version == state.version
                and not any(hooks)
                and not _autocasts()
                and _jit_trace() is None
            ):
                try:
                    return program(x, buffers["packed"], steps)
                except Exception:  # whatever it was, what follows says it better
                    pass
        return super().__call__(*args, **kwargs)

    def _forward(self, *args: object, **kwargs: object) -> object:
        state = self.__dict__[STATE]
        if torch.compiler.is_compiling():
            if state.is_whole() and len(args) == 1 and not kwargs:
                return self._modules[state.child]._modules["0"](args[0])
        else:
            if state.counter._version != state.version:
                state.check(self)
            if state.graphs is not None:
                return _replayed(self, state, args, kwargs)
            if state.is_whole() and len(args) == 1 and not kwargs:
                return self._modules[state.child]._modules["0"](args[0])
        return _run(self, state, args, kwargs)

    def _own(self, *args: object, **kwargs: object) -> object:
        """The module's own forward."""
        return super().forward(*args, **kwargs)

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """The module's own children, as people slice them; the programs are not among them."""
        child = self.__dict__[STATE].child
        return ((name, module) for name, module in super().named_children() if name != child)

    def train(self, mode: bool = True) -> Self:
        if mode:
            raise ValueError(f"{_name(self)}: train: a frozen net stays in eval mode: train the net that it was made "
                             "from, or ghost_ops.thaw(net)")  # fmt: skip
        return super().train(mode)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        if requires_grad:
            raise ValueError(f"{_name(self)}: requires_grad_: a frozen net has no gradients: train the net that it was "
                             "made from, or ghost_ops.thaw(net)")  # fmt: skip
        return super().requires_grad_(False)

    def __setattr__(self, name: str, value: object) -> None:
        if name in ("forward", "_compiled_call_impl"):
            self.__dict__[STATE].fast = None
        if isinstance(value, (nn.Module, nn.Parameter)) or _is_kept(self, name):
            _refuse_change(self, name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if _is_kept(self, name):
            _refuse_change(self, name)
        super().__delattr__(name)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        _refuse_change(self, name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        _refuse_change(self, name)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        state = self.__dict__[STATE]
        super()._apply(fn, recurse)
        if recurse and state.child in self._modules:
            self._modules[state.child]._apply(fn)
        if state.graphs is not None:
            state.graphs.forget()
        state.attach(self)
        return self

    def load_state_dict(self, state_dict: Mapping[str, object], *args: object, **kwargs: object) -> object:
        _refuse_plain(self, state_dict, "")
        found = super().load_state_dict(state_dict, *args, **kwargs)
        for module in self.modules():
            if isinstance(module, Frozen):
                module.__dict__[STATE].check(module)
        return found

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        _refuse_plain(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.__dict__[STATE].version = None

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self.__dict__[STATE].attach(self)


class FrozenSequence(Frozen):
    """The behaviour of a frozen ``Sequential``, whose length and items are those of its own children."""

    def __len__(self) -> int:
        return len(self._modules) - (self.__dict__[STATE].child in self._modules)

    def __iter__(self) -> Iterator[nn.Module]:
        child = self.__dict__[STATE].child
        return (module for name, module in self._modules.items() if name != child)

    def __getitem__(self, index: int | slice) -> nn.Module:
        child = self.__dict__[STATE].child
        items = {name: module for name, module in self._modules.items() if name != child}
        if not isinstance(index, slice):
            return list(items.values())[index]
        plain = nn.Sequential()
        for name in list(items)[index]:
            plain.add_module(name, items[name])
        return plain.eval()

    def insert(self, index: int, module: nn.Module) -> Self:
        _refuse_change(self, str(index))


def _name(module: nn.Module) -> str:
    return f"{source_class(module).__name__} (frozen)"


def _is_kept(module: nn.Module, name: str) -> bool:
    own = vars(module)  # torch.export makes proxies of modules, which have nothing yet
    return name in own.get("_modules", ()) or name in own.get("_parameters", ())


def _refuse_plain(net: nn.Module, state_dict: Mapping[str, object], prefix: str) -> None:
    for path, module in net.named_modules():
        if isinstance(module, FrozenProgram) and f"{prefix}{path}.packed" not in state_dict:
            raise ValueError(
                f"{_name(net)}: load_state_dict: expected the state of a frozen net, got that of a plain one: load it "
                "into the net that this one was made from and freeze again"
            )


def _refuse_change(module: nn.Module, name: str) -> None:
    raise ValueError(f"{_name(module)}: {name}: a frozen net keeps its children and parameters: {_AGAIN}")


def _refusing(name: str) -> Callable:
    def refused(self: nn.Module, *args: object, **kwargs: object) -> None:
        _refuse_change(self, name)

    refused.__name__ = name
    return refused


def _inputs(state: FrozenState, args: tuple, kwargs: dict) -> tuple | None:
    """The arguments of the generated forward; None where the call is one that it does not stand for."""
    if state.code is None:
        return None
    inputs = _bound(state, args, kwargs)
    if inputs is None or state.guard is None:
        return inputs
    if not all(isinstance(t, _TENSOR) for t in inputs) or not state.guard.forward(*inputs):
        return None
    if type(inputs[0]) is _TENSOR and not torch.compiler.is_compiling() and len(state.shapes) < _MOST_SHAPES:
        state.shapes.add(inputs[0].shape)  # in plain numbers, which a trace's need not be
    return inputs


def _bound(state: FrozenState, args: tuple, kwargs: dict) -> tuple | None:
    names = (*state.inputs, *state.optional)
    if len(args) == len(state.inputs) and not kwargs:
        return args
    values = dict(zip(names, args, strict=False))
    if len(args) > len(names) or not values.keys().isdisjoint(kwargs):
        return None
    values.update(kwargs)
    if any(name not in values for name in state.inputs):
        return None
    given = {name: value for name, value in values.items() if name not in state.inputs}
    if any(name not in state.defaults or value is not state.defaults[name] for name, value in given.items()):
        return None
    return tuple(values[name] for name in state.inputs)


def _run(module: Frozen, state: FrozenState, args: tuple, kwargs: dict) -> object:
    inputs = _inputs(state, args, kwargs)
    if inputs is None:  # its own forward also says what is wrong with a call that fits no signature
        return module._own(*args, **kwargs)
    if state.whole:
        return module._modules[state.child]._modules["0"](*inputs)
    return state.code.forward(module, *inputs)


def _replayed(module: Frozen, state: FrozenState, args: tuple, kwargs: dict) -> object:
    """A call by its CUDA graph. Calls that the generated forward does not stand for are not captured."""
    inputs = args if state.code is None and not kwargs else _inputs(state, args, kwargs)
    if inputs is None or len(inputs) != 1:
        return _run(module, state, args, kwargs)
    name = f"{_name(module)}: {state.inputs[0] if state.inputs else 'its input'}"
    look = lambda: ModuleState(module, packed_modules(module), strict=False)
    return state.graphs(lambda x: _run(module, state, (x,), {}), inputs[0], name, look)


def packed_modules(net: nn.Module) -> frozenset[nn.Module]:
    """The modules inside a frozen net whose parameters programs have packed: they do not run."""
    packed: set[nn.Module] = set()
    programs: set[nn.Module] = set()
    for module in net.modules():
        for made in module._modules.get(state_of(module).child, ()) if isinstance(module, Frozen) else ():
            programs.update(made.modules())
            packed.update(inner for part in made.parts for inner in module.get_submodule(part).modules())
    return frozenset(packed - programs)


def state_of(module: Frozen) -> FrozenState:
    """What a frozen module remembers."""
    return module.__dict__[STATE]


def freeze_class(module: nn.Module, state: FrozenState, programs: list[FrozenProgram]) -> None:
    """Make a module a frozen one, in place.

    Raises:
        TypeError: its class cannot be derived from.
    """
    change_class(module, FrozenSequence if isinstance(module, nn.Sequential) else Frozen, state)
    if programs:
        module._modules[state.child] = nn.ModuleList(programs).eval()
    state.attach(module)


def thaw_class(module: nn.Module) -> None:
    """Give a frozen module its own class back, without programs, in place."""
    state = module.__dict__[STATE]
    restore_class(module)
    module._modules.pop(state.child, None)
    wanted = set(state.wanted)
    for path, parameter in module.named_parameters():
        if path in wanted:
            parameter.requires_grad_(True)
