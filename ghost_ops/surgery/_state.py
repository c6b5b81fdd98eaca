"""What a forward could leave behind, kept before a run and compared after it.

Looked at are the attributes and tensors of every module, the attributes of their classes, and what the functions that a
forward names can change: closure cells, default arguments, globals of their modules; lists, dictionaries, sets and
objects are followed. Tensors are compared by value, everything else by identity.
"""

from __future__ import annotations

import random
import sys
import types
from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

_DEPTH, _NODES, _LONG = 6, 4000, 500
_FOREIGN = frozenset((*sys.stdlib_module_names, "torch", "numpy", "ghost_ops"))  # their own state is not a module's
_ATOMS = frozenset(
    (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, types.BuiltinFunctionType)
)
_FUNCTIONS = (types.FunctionType, classmethod, staticmethod, property)


class Generators:
    """The random generators of PyTorch, Python and NumPy as they are now."""

    def __init__(self) -> None:
        self._torch, self._python, self._numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()

    def have_moved(self) -> bool:
        """Whether numbers were drawn since."""
        kind, keys, *rest = np.random.get_state()
        return (
            random.getstate() != self._python
            or (kind, *rest) != (self._numpy[0], *self._numpy[2:])
            or not np.array_equal(keys, self._numpy[1])
            or not torch.equal(torch.get_rng_state(), self._torch)
        )

    def restore(self) -> None:
        """Put them back."""
        torch.set_rng_state(self._torch)
        random.setstate(self._python)
        np.random.set_state(self._numpy)


class State:
    """All that can be reached from ``module`` and from its forward, as it is now."""

    def __init__(self, module: nn.Module) -> None:
        self._kept: dict[int, tuple[object, str, object]] = {}
        self._bindings: dict[tuple[int, str], tuple[dict, str, object]] = {}
        modules = list(module.named_modules())
        for path, child in modules:
            self._keep_module(child, f"{path}." if path else "")
        for cls in dict.fromkeys(type(child) for _, child in modules):
            self._keep_class(cls)

    def difference(self) -> str | None:
        """The name of the first thing that is no longer as it was, or None."""
        for namespace, name, value in self._bindings.values():
            if namespace.get(name) is not value:
                return f"{name!r}, a variable outside of it"
        for thing, label, before in self._kept.values():
            after = _content(thing)
            if _same(before, after):
                continue
            if isinstance(before, dict):
                for key in (*before, *after):
                    if key not in after or key not in before or before[key] is not after[key]:
                        return label.replace("*", str(key))
            return label
        return None

    def restore(self) -> None:
        """Put everything back that can be: a probe must leave no trace in what it shares with the user's net."""
        for namespace, name, value in self._bindings.values():
            namespace[name] = value
        for thing, _, before in self._kept.values():
            if not _same(before, _content(thing)):
                _put_back(thing, before)

    def _keep_module(self, module: nn.Module, prefix: str) -> None:
        attributes = vars(module)
        self._kept[id(module)] = module, f"'{prefix}*'", _content(module)
        for name, value in attributes.items():
            if type(value) in _ATOMS:
                continue
            if name == "_modules" or "_hooks" in name:  # the hooks are ours
                self._kept[id(value)] = value, f"the {name[1:]} of '{prefix[:-1]}'", dict(value)
            elif name in ("_parameters", "_buffers"):
                self._kept[id(value)] = value, f"'{prefix}*'", _content(value)
                for inner, t in value.items():
                    counter = inner == "num_batches_tracked" and isinstance(module, nn.modules.batchnorm._NormBase)
                    if t is not None and not counter:
                        self._keep(t, f"the {name[1:-1]} '{prefix}{inner}'", 0)
            else:
                self._keep(value, f"'{prefix}{name}'", 0)

    def _keep_class(self, cls: type) -> None:
        for base in cls.__mro__:
            if id(base) in self._kept or not _is_users(base.__module__):
                continue
            self._keep(base, "", 0)
            if "forward" in vars(base):
                self._keep_function(vars(base)["forward"], cls, 0)

    def _keep(self, thing: object, label: str, depth: int) -> None:
        if type(thing) in _ATOMS or id(thing) in self._kept or depth > _DEPTH or len(self._kept) > _NODES:
            return
        if isinstance(thing, types.MethodType):
            thing = thing.__func__
        if isinstance(thing, _FUNCTIONS):
            self._keep_function(thing, None, depth)
            return
        if isinstance(thing, nn.Module) and depth == 0:
            return  # a child's own turn comes
        if isinstance(thing, type):
            if not _is_users(thing.__module__):
                return
            label = f"'*' of the class {thing.__name__}"
        content = _content(thing)
        if content is None:
            return
        self._kept[id(thing)] = thing, label, content
        if isinstance(content, (list, dict, set)) and len(content) <= _LONG:
            values = content.items() if isinstance(content, dict) else ((None, value) for value in content)
            for key, value in values:
                if not (isinstance(thing, type) and isinstance(value, _FUNCTIONS)):
                    self._keep(value, label.replace("*", str(key)), depth + 1)

    def _keep_function(self, function: object, cls: type | None, depth: int) -> None:
        """What a function can change, and what those that it names can."""
        if isinstance(function, property):
            for part in (function.fget, function.fset):
                if part is not None:
                    self._keep_function(part, cls, depth)
            return
        function = getattr(function, "__func__", function)
        function = getattr(function, "__wrapped__", function)
        if not isinstance(function, types.FunctionType) or id(function) in self._kept or depth > _DEPTH:
            return
        if not _is_users(function.__module__):
            return
        self._kept[id(function)] = function, f"the function {function.__name__}", _content(function)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
            if name != "__class__":
                self._keep(cell, f"{name!r}, a variable outside of it", depth + 1)
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._keep(value, f"a default argument of {function.__name__}", depth + 1)
        names = set(_names(function.__code__))
        self._keep_named(function.__globals__, names, depth)
        for base in () if cls is None else cls.__mro__:
            if _is_users(base.__module__):
                for name in names & vars(base).keys():
                    if isinstance(vars(base)[name], _FUNCTIONS):
                        self._keep_function(vars(base)[name], cls, depth)

    def _keep_named(self, namespace: dict, names: set[str], depth: int) -> None:
        for name in names:
            value = namespace.get(name, sys.modules.get(name))
            if name in namespace:
                self._bindings[id(namespace), name] = namespace, name, value
            if isinstance(value, types.ModuleType):
                if _is_users(value.__name__) and depth < 2 and vars(value) is not namespace:
                    self._keep_named(vars(value), names & vars(value).keys(), depth + 1)
            elif value is not None:
                self._keep(value, f"{name!r}, a variable outside of it", depth + 1)


def _is_users(module: str | None) -> bool:
    return (module or "").partition(".")[0] not in _FOREIGN


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _content(thing: object) -> object:
    """What can change in it, to be compared later; None: nothing that is looked at."""
    if isinstance(thing, torch.Tensor):
        return thing.detach().clone() if thing.layout is torch.strided and not thing.is_meta else None
    if isinstance(thing, nn.Module):
        content = dict(vars(thing))
        content.pop("training", None)
        return content
    if isinstance(thing, types.FunctionType):
        return dict(vars(thing))
    if isinstance(thing, type):
        return {k: v for k, v in vars(thing).items() if k not in ("__dict__", "__weakref__", "__abstractmethods__")}
    if isinstance(thing, dict):
        return dict(thing)
    if isinstance(thing, (list, tuple, deque)):
        return list(thing)
    if isinstance(thing, (set, frozenset)):
        return set(thing)
    if isinstance(thing, bytearray):
        return bytes(thing)
    if isinstance(thing, np.ndarray):
        return thing.copy()
    if isinstance(thing, types.CellType):
        try:
            return [thing.cell_contents]
        except ValueError:  # empty
            return []
    if type(thing).__module__ == "itertools":
        return repr(thing)  # a counter shows where it is
    if type(thing).__module__ == "builtins":
        try:
            return repr(thing.__reduce__()[1:])  # how far an iterator is
        except (TypeError, AttributeError, IndexError):
            return None
    return dict(vars(thing)) if hasattr(thing, "__dict__") else None


def _same(before: object, after: object) -> bool:
    if isinstance(before, torch.Tensor):
        if before.shape != after.shape:
            return False
        return torch.equal(before, after) or bool(((before == after) | ((before != before) & (after != after))).all())
    if isinstance(before, np.ndarray):
        return before.shape == after.shape and before.tobytes() == after.tobytes()
    if isinstance(before, dict):
        return len(before) == len(after) and all(key in after and before[key] is after[key] for key in before)
    if isinstance(before, list):
        return len(before) == len(after) and all(a is b for a, b in zip(before, after))
    return before == after


def _put_back(thing: object, before: object) -> None:
    if isinstance(thing, torch.Tensor):
        with torch.no_grad():
            thing.copy_(before)
    elif isinstance(thing, type):
        for name in vars(thing).keys() - before.keys():
            delattr(thing, name)
        for name, value in before.items():
            if vars(thing).get(name) is not value:
                setattr(thing, name, value)
    elif isinstance(thing, (dict, set)):
        thing.clear()
        thing.update(before)
    elif isinstance(thing, list):
        thing[:] = before
    elif isinstance(thing, deque):
        thing.clear()
        thing.extend(before)
    elif isinstance(thing, types.CellType) and before:
        thing.cell_contents = before[0]
    elif isinstance(before, dict):
        kept = {"training": vars(thing)["training"]} if isinstance(thing, nn.Module) else {}
        vars(thing).clear()
        vars(thing).update(before | kept)
