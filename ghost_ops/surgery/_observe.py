"""What a forward does besides computing, seen while it runs: the functions that it calls, the attributes that it reads.

``Watch`` is a mode to which PyTorch brings every function of tensors that the forward calls, reading ``x.shape`` or
``bool(x)`` included. What fused code could not do in its stead is an objection. The modules of the copy get classes
that tell which attributes are read and set.
"""

from __future__ import annotations

import itertools
import sys
import types
from collections.abc import Callable, Iterator
from enum import Enum
from functools import partial

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ._sizes import Size, Sizes, branches, call_that_takes, instruction_at

_CUTS = "its forward cuts the gradient ({name!r})"
_HOOKS = "its forward hooks a tensor ({name!r})"
_FORBIDDEN = {
    **dict.fromkeys(("detach", "detach_", "data"), _CUTS),
    **dict.fromkeys(("register_hook", "register_post_accumulate_grad_hook", "retain_grad"), _HOOKS),
    **dict.fromkeys(("grad", "backward", "requires_grad_"), "its forward handles gradients itself ({name!r})"),
    "_set_grad_enabled": "its forward turns gradients on or off for a part of it",
}
_SIZES = frozenset(("shape", "size", "numel", "nelement", "__len__"))
_RANK = frozenset(("dim", "ndim", "ndimension", "is_floating_point", "is_complex", "is_contiguous"))
_SIZED = frozenset(  # what sizes say to them is the size of a result
    "interpolate adaptive_avg_pool2d adaptive_max_pool2d view reshape expand unflatten".split()
)
_KINDS = frozenset(("dtype", "device", "layout", "type", "get_device", "result_type", "is_cuda", "is_cpu", "is_meta"))
_BENIGN = frozenset("cat concat concatenate __getitem__ view reshape flatten contiguous narrow".split())
_CASTS = frozenset(("float", "half", "bfloat16", "double", "to", "type", "type_as"))
_COMPUTED = (torch.Tensor, type(None))


class Watch(TorchFunctionMode):
    """Notes what a forward does.

    Attributes:
        objections: why fused code cannot stand in for it, in sentences, the most telling first.
        called: the names of the functions that it calls itself.
        unfollowed: whether sizes became plain numbers, or went where branches are that might depend on them, and not
            straight into a function that makes a result of that size.
        quiet: above 0 where nothing is noted: outside of a watched run, and inside of what is known.
    """

    def __init__(self, channels: frozenset[int]) -> None:
        super().__init__()
        self._channels = channels
        self.objections: list[str] = []
        self.called: list[str] = []
        self.unfollowed = False
        self.quiet = 1
        self._modes: tuple = ()
        self._awaited: set[tuple[int, int]] = set()  # frames and their calls that are to take sizes

    def __enter__(self) -> Watch:
        self._modes = _modes()
        self.quiet -= 1
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.quiet += 1
        self.unfollowed |= bool(self._awaited)
        self._awaited.clear()

    def object(self, reason: str, first: bool = False) -> None:
        """Note an objection, once."""
        if reason not in self.objections:
            self.objections.insert(0 if first else len(self.objections), reason)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.quiet:
            return func(*args, **kwargs)
        name = _name(func)
        known = name in _RANK
        if not known and not (name in _FORBIDDEN and _is_checkpointing()):
            self._judge(name)
        self.quiet += 1
        try:
            out = func(*args, **kwargs)
        finally:
            self.quiet -= 1
        if known:
            return out
        if self._awaited and name in _SIZED:
            frame = _caller()
            if frame is not None:
                self._awaited.discard((id(frame), instruction_at(frame.f_code, frame.f_lasti)))
        if name in _SIZES:
            return self._sized(out, name, args, kwargs)
        if not _is_computed(out):
            self._read(name)
        return out

    def _judge(self, name: str) -> None:
        if name in _FORBIDDEN:
            self.object(_FORBIDDEN[name].format(name=name), first=_FORBIDDEN[name] is _HOOKS)
        elif name not in _SIZES and name not in _BENIGN and name not in self.called:
            self.called.append(name)
        now = _modes()
        if now != self._modes and not _is_checkpointing():
            if now[2:] != self._modes[2:]:
                self.object("its forward changes autocast for a part of it", first=True)
            elif not _is_in_a_function():
                self.object(_FORBIDDEN["_set_grad_enabled"])

    def _read(self, name: str) -> None:
        """A tensor tells something about itself that is not a tensor."""
        if _is_checkpointing():
            return
        frame = _caller()
        if frame is not None and "autocast" in frame.f_code.co_names:
            self.object("its forward changes autocast for a part of it", first=True)
        elif name in _KINDS:  # where nothing branches it can only be handed on, as to `to` or `zeros`
            if frame is None or branches(frame.f_code):
                self.object(f"its forward asks for the {name} of a tensor, which may decide what it computes")
        else:
            self.object(
                f"its forward reads a tensor into Python ({name.strip('_')!r}), which may decide what it computes"
            )

    def _sized(self, out: object, name: str, args: tuple, kwargs: dict) -> object:
        if name == "__len__":
            self.unfollowed = True
            return out
        frame = _caller()
        if frame is not None and branches(frame.f_code):
            call = call_that_takes(frame.f_code, instruction_at(frame.f_code, frame.f_lasti))
            if call is None:
                self.unfollowed = True
            else:
                self._awaited.add((id(frame), call))
        if isinstance(out, tuple):
            return Sizes(self._size(size, at) for at, size in enumerate(out))
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        return self._size(out, None if dim is None else dim % args[0].dim())

    def _size(self, size: int, dim: int | None) -> int:
        """A size that tells, but for the channels, which are the same for every input."""
        if dim == 1 and size in self._channels:
            return size
        return Size(size, self._compared, self._converted)

    def _compared(self) -> None:
        if not self.quiet:
            self.object("its forward branches on the size of a tensor")

    def _converted(self) -> None:
        if not self.quiet:
            self.unfollowed = True

    def casts(self) -> str | None:
        """By which function the forward changes the dtype of a tensor, if it does."""
        return next((name for name in self.called if name in _CASTS), None)

    def explain(self) -> str:
        """What the forward calls that may be why it computes something else; empty if nothing is known."""
        cast = self.casts()
        if cast is not None:
            return f"; its forward casts tensors ({cast!r})"
        names = ", ".join(name.strip("_") for name in self.called[:6])
        return f"; its forward also calls {names}" if names else ""


def _name(func: Callable) -> str:
    if getattr(func, "__name__", "") in ("__get__", "__set__", "__delete__"):
        return getattr(func.__self__, "__name__", "")
    return getattr(func, "__name__", str(func))


def _modes() -> tuple:
    """What a context manager may change, autocast last."""
    autocast = [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast


def _is_computed(out: object) -> bool:
    if isinstance(out, (tuple, list)):
        return all(_is_computed(item) for item in out)
    return isinstance(out, _COMPUTED)


def _caller() -> types.FrameType | None:
    """The nearest frame of the module that is run; None where there are only PyTorch's. Whoever calls the probe is none
    of it."""
    return next((frame for frame in _frames() if not _is_between(_module_of(frame))), None)


def _frames() -> Iterator[types.FrameType]:
    """The frames between here and the probe, the innermost first."""
    frame = sys._getframe(1)
    while frame is not None and not _module_of(frame).startswith("ghost_ops.surgery._probe"):
        yield frame
        frame = frame.f_back


def _module_of(frame: types.FrameType) -> str:
    return frame.f_globals.get("__name__") or ""


def _is_between(module: str) -> bool:
    """Whether a function of ``module`` stands between what a forward calls and the forward itself."""
    return module.partition(".")[0] == "torch" or module.startswith("ghost_ops.surgery.")


def _runs(module: str, name: str | None = None) -> bool:
    """Whether a function of ``module`` is running, between here and the probe."""
    return any(_module_of(frame) == module and name in (None, frame.f_code.co_name) for frame in _frames())


def _is_checkpointing() -> bool:
    """Whether it is PyTorch's checkpointing that asks, which computes the same."""
    between = itertools.takewhile(_is_between, map(_module_of, _frames()))
    return "torch.utils.checkpoint" in between


def _is_in_a_function() -> bool:
    """Whether the forward of a ``torch.autograd.Function`` runs, in which gradients are off."""
    return _runs("torch.autograd.function", "apply") or _runs("torch.utils.checkpoint")


# Attributes

_FRAMEWORK = frozenset((*vars(nn.Module), *vars(nn.Module())))
MISSING = object()


class _Recording:
    """Comes before the class of a module of the copy. Subclasses are not announced to the class's registries."""

    def __init_subclass__(cls, **kwargs: object) -> None:
        pass


class Recorder:
    """Gives modules classes that note which plain attributes are read, and object to setting any."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._paths: dict[int, str] = {}
        self._classes: dict[type, type] = {}
        self.values: dict[tuple[str, str], object] = {}

    def record(self, module: nn.Module, path: str) -> None:
        """Change the class of ``module``, of a copy, in place."""
        source = type(module)
        if source not in self._classes:
            self._classes[source] = self._make(source)
        self._paths[id(module)] = path
        try:
            object.__setattr__(module, "__class__", self._classes[source])
        except TypeError:  # Python cannot change it
            self._watch.object(f"its class {source.__name__} cannot be watched")

    def unwatchable(self) -> str | None:
        """Why not all changes of what is read could be noticed, or None."""
        for (path, name), value in self.values.items():
            kind = _unwatchable(value, 0)
            if kind is not None:
                full = f"{path}.{name}" if path else name
                return f"its forward reads {full!r}, {kind}, whose changes could not be noticed"
        return None

    def _is_on(self) -> bool:
        return not self._watch.quiet

    def _make(self, source: type) -> type:
        def __getattribute__(module, name):
            value = super(made, module).__getattribute__(name)
            if name not in _FRAMEWORK and name[:2] != "__" and self._is_on():
                plain = name in super(made, module).__getattribute__("__dict__")
                if plain or _is_data(type(module), name):
                    self.values.setdefault((self._paths[id(module)], name), value)
            return value

        def __getattr__(module, name):
            try:
                return super(made, module).__getattr__(name)
            except AttributeError:
                if name not in _FRAMEWORK and name[:2] != "__" and self._is_on():
                    self.values.setdefault((self._paths[id(module)], name), MISSING)
                raise

        def __setattr__(module, name, value):
            self._stored(module, name)
            super(made, module).__setattr__(name, value)

        def __delattr__(module, name):
            self._stored(module, name)
            super(made, module).__delattr__(name)

        methods = (__getattribute__, __getattr__, __setattr__, __delattr__)
        body = {method.__name__: method for method in methods}
        body |= {"__module__": source.__module__, "__qualname__": source.__qualname__}
        made = types.new_class(source.__name__, (_Recording, source), exec_body=lambda names: names.update(body))
        return made

    def _stored(self, module: nn.Module, name: str) -> None:
        if self._is_on():
            path = self._paths[id(module)]
            full = f"{path}.{name}" if path else name
            self._watch.object(f"its forward leaves something behind: it sets {full!r}", first=True)


def _is_data(cls: type, name: str) -> bool:
    """Whether a class attribute is neither a method nor computed."""
    for base in cls.__mro__:
        if name in vars(base):
            value = vars(base)[name]
            return isinstance(value, (type, types.BuiltinFunctionType)) or not hasattr(type(value), "__get__")
    return False


_WATCHABLE = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Tensor, type)
_CALLABLE = (types.FunctionType, types.BuiltinFunctionType, types.ModuleType, torch.jit.ScriptFunction)


def _unwatchable(value: object, depth: int) -> str | None:
    """What in ``value`` could change unseen, or None. Functions are watched by identity, containers by content."""
    if value is MISSING or isinstance(value, (*_WATCHABLE, *_CALLABLE, Enum)):
        return None
    if isinstance(value, partial):
        value = (value.func, value.args, value.keywords)
    if isinstance(value, types.MethodType) and isinstance(value.__self__, (nn.Module, type)):
        return None
    if isinstance(value, (tuple, list, dict, set, frozenset)) and depth < 8:
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            found = _unwatchable(item, depth + 1)
            if found is not None:
                return found if depth else f"a {type(value).__name__} that holds {found}"
        return None
    return f"a {type(value).__name__}"
