"""Where a method calls children of its object one after the other, so that nothing but the next one sees a result.

``x = self.conv(x); x = self.bn(x); x = self.act(x)`` and ``self.act(self.bn(self.conv(x)))`` are such places. What they
say is proven, not guessed: the source is compiled, and must give the very code that runs; the place is found by the
position of the call within it. Between the calls Python does nothing but look the next child up.
"""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import types
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import NamedTuple

from torch import nn

Position = tuple[int, int, int, int]  # first and last line, first and last column
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
_OWN_LOOPS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@functools.lru_cache(maxsize=1024)
def call_sites(code: CodeType) -> dict[Position, tuple[str, ...]]:
    """The names of children that are called one after the other, by the position of the first call.

    Empty where the source is not there, is not that of the code, or Python does not tell positions (before 3.11).
    """
    function = _source(code) if hasattr(code, "co_positions") else None
    if function is None or not function.args.args:
        return {}
    owner = function.args.args[0].arg
    names = [node for node in _of_function(function) if isinstance(node, ast.Name)]
    if any(n.id == owner and not isinstance(n.ctx, ast.Load) for n in names):
        return {}
    found: dict[Position, tuple[str, ...]] = {}
    shared = {n for node in _of_function(function) if isinstance(node, (ast.Global, ast.Nonlocal)) for n in node.names}
    for call, children in (*_nested(function, owner), *_in_turn(function, owner, shared)):
        at = call.lineno, call.end_lineno, call.col_offset, call.end_col_offset
        found[at] = max(found.get(at, ()), children, key=len)
    return found


def children_called_at(frame: FrameType) -> tuple[str, ...]:
    """The names of children that the frame calls one after the other, where it is in the first of these calls now."""
    sites = call_sites(frame.f_code)
    return sites.get(_positions(frame.f_code)[frame.f_lasti // 2], ()) if sites else ()


def sites_of_class(cls: type[nn.Module]) -> Iterator[tuple[str, ...]]:
    """What :func:`call_sites` finds in all methods of a class, those of PyTorch's ``Module`` left out."""
    for base in cls.__mro__[: cls.__mro__.index(nn.Module)]:
        for method in vars(base).values():
            if isinstance(method, types.FunctionType):
                yield from call_sites(inspect.unwrap(method).__code__).values()


@functools.lru_cache(maxsize=1024)
def _positions(code: CodeType) -> list[Position]:
    return list(code.co_positions())


class _File(NamedTuple):
    """A file's functions by name and first line, and its code, compiled again."""

    functions: dict[tuple[str, int], list[ast.FunctionDef]]
    code: CodeType


@functools.lru_cache(maxsize=64)
def _parsed(file: str) -> _File | None:
    text = "".join(linecache.getlines(file))
    try:
        tree, code = ast.parse(text), compile(text, file, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return None
    functions: dict[tuple[str, int], list[ast.FunctionDef]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            functions.setdefault((node.name, first), []).append(node)
    return _File(functions, code)


def _source(code: CodeType) -> ast.FunctionDef | None:
    """The function whose code it is; None where the source gives other code."""
    parsed = _parsed(code.co_filename)
    if parsed is None or code not in _inside(parsed.code):
        return None
    found = parsed.functions.get((code.co_name, code.co_firstlineno), [])
    return found[0] if len(found) == 1 else None


def _inside(code: CodeType) -> Iterator[CodeType]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner
            yield from _inside(inner)


def _of_function(function: ast.AST) -> Iterator[ast.AST]:
    """The nodes whose code is the function's own."""
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, (*_SCOPES, *_OWN_LOOPS)):
            yield node
            yield from _of_function(node)


def _child(node: ast.AST, owner: str) -> str | None:
    """The name of the child that a call calls with one argument; None of another node."""
    if not isinstance(node, ast.Call) or node.keywords or len(node.args) != 1:
        return None
    called, (argument,) = node.func, node.args
    is_own = isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == owner
    return called.attr if is_own and not isinstance(argument, ast.Starred) else None


def _nested(function: ast.AST, owner: str) -> Iterator[tuple[ast.Call, tuple[str, ...]]]:
    """Calls whose argument is a call."""
    for node in _of_function(function):
        children: list[str] = []
        while (name := _child(node, owner)) is not None:
            children.insert(0, name)
            first, node = node, node.args[0]
        for count in range(2, len(children) + 1):
            yield first, tuple(children[:count])


def _in_turn(function: ast.AST, owner: str, shared: set[str]) -> Iterator[tuple[ast.Call, tuple[str, ...]]]:
    """Assignments to the same local name, each of a call with this name as its argument."""
    for node in (function, *_of_function(function)):
        for body in (getattr(node, name, None) for name in ("body", "orelse", "finalbody")):
            if not isinstance(body, list):
                continue
            for i, statement in enumerate(body):
                name, call = _assigned(statement, owner)
                children = [] if name is None or name in shared else [_child(call, owner)]
                for following in body[i + 1 :] if children else ():
                    other, next_call = _assigned(following, owner)
                    if other != name or not (isinstance(next_call.args[0], ast.Name) and next_call.args[0].id == name):
                        break
                    children.append(_child(next_call, owner))
                    yield call, tuple(children)


def _assigned(statement: ast.stmt, owner: str) -> tuple[str | None, ast.Call | None]:
    """The name to which a statement assigns a call of a child, and the call."""
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return None, None
    (target,), value = statement.targets, statement.value
    return (target.id, value) if isinstance(target, ast.Name) and _child(value, owner) else (None, None)
