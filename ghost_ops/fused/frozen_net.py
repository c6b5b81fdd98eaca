"""``Frozen``: how a net, or part of one, runs that ``ghost_ops.freeze`` has given this class."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import nn

from ..dispatch import recorder
from ..ops.program import program
from .frozen import FrozenProgram
from .frozen_state import AGAIN, STATE, FrozenState, frozen_name, state_of
from .graph_key import ModuleState
from .in_place import InPlace, change_class, made_class, restore_class

if TYPE_CHECKING:
    from typing_extensions import Self

_TENSOR, _autocasts, _jit_trace = torch.Tensor, torch._C._is_any_autocast_enabled, torch._C._get_tracing_state
_function_modes = torch._C._len_torch_function_stack
_MOST_SHAPES = 64  # of inputs that a guard has let pass
_TRACED = (
    "a frozen net is recorded in plain PyTorch by torch.jit.trace, without its kernels, for tools that do not know "
    "them: torch.export keeps them"
)
_REBUILDING = ("reset_classifier",)  # methods, of timm's nets, that set attributes before they set new children


class _IgnoredByJit:
    """The attributes that ``torch.jit`` leaves out: the programs, and what the module's own class names. (A property
    would be compiled.)"""

    def __get__(self, module: Frozen | None, owner: type) -> list[str]:
        made = made_class(owner)
        own = getattr(made._source_class, "__jit_ignored_attributes__", ()) if made is not None else ()
        return [*own, *(() if module is None else (module.__dict__[STATE].child,))]


class Frozen(InPlace):
    """The behaviour of a frozen module: its forward is a generated one, which calls children and programs.

    Whatever is left of the module's own methods runs through its children, which are plain PyTorch, or fused. What
    cannot be true of a frozen net any more raises an error of one sentence.
    """

    name_prefix = "Frozen"
    state_name = STATE
    __jit_ignored_attributes__ = _IgnoredByJit()

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
            modules, hooks, dtypes, counter, buffers, steps, shapes, tables = state.fast
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
                and not _function_modes()
            ):
                try:
                    if tables == state.contents:
                        return program(x, buffers["packed"], steps)
                except Exception:  # whatever it was, what follows says it better
                    pass
        return super().__call__(*args, **kwargs)

    def _forward(self, *args: object, **kwargs: object) -> object:
        state = self.__dict__[STATE]
        if recorder() is not None:
            state.check(self)
            if _jit_trace() is not None and not torch.onnx.is_in_onnx_export():
                warnings.warn(_TRACED, UserWarning, stacklevel=2)
            return self._own(*args, **kwargs)
        if torch.compiler.is_compiling():
            if state.is_whole() and len(args) == 1 and not kwargs:
                return self._modules[state.child]._modules["0"](args[0])
        else:
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
            raise ValueError(f"{frozen_name(self)}: train: a frozen net stays in eval mode: train the net that it was "
                             "made from, or ghost_ops.thaw(net)")  # fmt: skip
        return super().train(mode)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        if requires_grad:
            raise ValueError(f"{frozen_name(self)}: requires_grad_: a frozen net has no gradients: train the net that "
                             "it was made from, or ghost_ops.thaw(net)")  # fmt: skip
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
        assigned = kwargs.get("assign", args[1] if len(args) > 1 else False)
        for module in self.modules():
            if isinstance(module, Frozen):
                state_of(module).check(module)
                if assigned:  # then they are other objects
                    state_of(module).attach(module)
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


def _is_kept(module: nn.Module, name: str) -> bool:
    own = vars(module)  # torch.export makes proxies of modules, which have nothing yet
    return name in own.get("_modules", ()) or name in own.get("_parameters", ())


def _refuse_plain(net: nn.Module, state_dict: Mapping[str, object], prefix: str) -> None:
    for path, module in net.named_modules():
        if isinstance(module, FrozenProgram) and f"{prefix}{path}.packed" not in state_dict:
            raise ValueError(
                f"{frozen_name(net)}: load_state_dict: expected the state of a frozen net, got that of a plain one: "
                "load it into the net that this one was made from and freeze again"
            )


def _refuse_change(module: nn.Module, name: str) -> NoReturn:
    raise ValueError(f"{frozen_name(module)}: {name}: a frozen net keeps its children and parameters: {AGAIN}")


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
    name = f"{frozen_name(module)}: {state.inputs[0] if state.inputs else 'its input'}"
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
