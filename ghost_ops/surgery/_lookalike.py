"""Ghost modules in another structure, which nothing nominates: they are named with the reason, not passed over.

Such a module concatenates a map with what a depthwise convolution makes of that map. That is seen by running a copy.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Collection, Iterator

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..fused.behaviour import is_fused
from ..fused.errors import Unfusable
from ._copy import drawn_copy, normal
from ._inputs import ambient, smallest_side

_CONCATENATIONS = frozenset(("cat", "concat", "concatenate", "hstack"))
_MUST = "{} must be a module of its own, called with one map"
_MOST = 40  # convolutions in what is still a block


def resemblance(module: nn.Module, known: Collection[nn.Module]) -> str | None:
    """Why a module that computes a Ghost module in another structure is not fused; None of any other module.

    Args:
        module: it stays as it is.
        known: what was found to be a block, or to look like one: what happens inside of these is their own.
    """
    if len([m for m in module.modules() if isinstance(m, nn.Conv2d)]) > _MOST or not _concatenates(type(module)):
        return None
    own = dict(_own_convolutions(module, "", known))
    channels = {conv.out_channels for conv in own.values()}
    depthwise = [path for path, conv in own.items() if 1 < conv.groups == conv.in_channels and conv.groups in channels]
    if len(own) < 2 or not depthwise:
        return None
    for times in (1, 2):  # a block may split its input, and its first convolution take the half of it
        try:
            return _Run(module, own, depthwise, times).describe()
        except Unfusable as reason:
            return str(reason)
        except Exception:  # it is not made for one map of so many channels
            continue
    return None


def _concatenates(cls: type) -> bool:
    """Whether one of the class's own methods calls a function that concatenates."""
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] == "torch":
            return False
        for method in vars(base).values():
            if isinstance(method, types.FunctionType) and _mentions(method.__code__):
                return True
    return False


def _mentions(code: types.CodeType) -> bool:
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return bool(_CONCATENATIONS & {*code.co_names}) or any(map(_mentions, inner))


def _own_convolutions(module: nn.Module, path: str, known: Collection[nn.Module]) -> Iterator[tuple[str, nn.Conv2d]]:
    """The convolutions that a forward may call itself: not those of a child that has a concatenation of its own."""
    for name, child in module.named_children():
        if child in known or is_fused(child) or isinstance(child, torch.jit.ScriptModule):
            continue
        if isinstance(child, nn.Conv2d):
            yield f"{path}{name}", child
        elif not _concatenates(type(child)):
            yield from _own_convolutions(child, f"{path}{name}.", known)


class _Run:
    """One call of a copy: which convolutions were called, on what, and what was concatenated.

    Its input has ``times`` as many channels as the first convolution takes.

    Attributes:
        calls: the convolutions in the order of their calls, by their paths.
        inputs: what each depthwise one was called with.
        joined: the tensors of each concatenation.
    """

    def __init__(self, module: nn.Module, own: dict[str, nn.Conv2d], depthwise: list[str], times: int) -> None:
        self.own, self.depthwise = own, depthwise
        self.calls: list[str] = []
        self.inputs: dict[str, torch.Tensor] = {}
        self.joined: list[tuple[torch.Tensor, ...]] = []
        generator = torch.Generator().manual_seed(0)
        with ambient(), torch.no_grad():
            copied = drawn_copy(module, generator)
            for inner in copied.modules():
                inner.__dict__["training"] = False
            for path in own:
                copied.get_submodule(path).register_forward_pre_hook(self._noting(path))
            side = smallest_side(module)
            x = normal(generator, 2, times * next(iter(own.values())).in_channels, side, side + 1)
            with _Concatenations(self.joined):
                copied.forward(x)

    def _noting(self, path: str) -> Callable[[nn.Module, tuple], None]:
        def note(conv: nn.Module, args: tuple) -> None:
            self.calls.append(path)
            self.inputs[path] = args[0]

        return note

    def describe(self) -> str | None:
        """What was seen, as a reason; None where no map was concatenated with a depthwise convolution of it."""
        found: dict[int, list[str]] = {}  # by the concatenation, the cheap operations in it
        for path in self.depthwise:
            at = next((i for i, maps in enumerate(self.joined) if any(m is self.inputs.get(path) for m in maps)), None)
            if at is not None:
                found.setdefault(at, []).append(path)
        if not found:
            return None
        if len(found) > 1:
            cheap = _listed([paths[0] for paths in found.values()])
            return f"its forward computes {len(found)} Ghost modules itself, with {cheap}: {_MUST.format('each')}"
        ((at, paths),) = found.items()
        if len(self.joined[at]) > 2 and len(paths) > 1:
            return f"it has {len(paths)} cheap operations, {_listed(paths)}, where a Ghost module has one"
        if len(paths) > 1:
            what = f"its cheap operation is a sum of {len(paths)} convolutions, {_listed(paths)}"
            return f"{what}: fold its branches first, as its project's reparameterisation does"
        before = self.calls[: self.calls.index(paths[0])]
        of = self.own[paths[0]].in_channels
        primary = next((path for path in reversed(before) if self.own[path].out_channels == of), None)
        both = paths if primary is None else [primary, paths[0]]
        return f"its forward computes a Ghost module itself, with {_listed(both)}: {_MUST.format('it')}"


class _Concatenations(TorchFunctionMode):
    def __init__(self, joined: list[tuple[torch.Tensor, ...]]) -> None:
        super().__init__()
        self.joined = joined

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _CONCATENATIONS:
            self.joined.append(tuple(args[0] if args else kwargs["tensors"]))
        return func(*args, **kwargs)


def _listed(paths: list[str]) -> str:
    names = [repr(path) for path in paths]
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
