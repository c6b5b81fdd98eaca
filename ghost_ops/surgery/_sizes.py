"""Sizes of tensors that tell when a forward branches on them, and functions whose branches would have to be feared."""

from __future__ import annotations

import dis
import functools
import math
import sys
import types
from collections.abc import Callable, Iterable


class Sizes(tuple):
    """What ``x.shape`` gives: as a ``torch.Size``, of sizes that tell."""

    def numel(self) -> int:
        return math.prod(self)

    def __getitem__(self, index):
        item = super().__getitem__(index)
        return Sizes(item) if isinstance(index, slice) else item

    def __add__(self, other):
        return Sizes(super().__add__(tuple(other)))


class Size(int):
    """A size, or what was computed of sizes. ``compared`` and ``converted`` are called when that happens to it.

    Comparing decides a branch. Converted to a plain number it can no longer be followed.
    """

    def __new__(cls, value: int, compared: Callable | None = None, converted: Callable | None = None):
        self = super().__new__(cls, value)
        self.compared, self.converted = compared, converted
        return self


class Ratio(float):
    """As ``Size``, for what is no longer whole."""

    def __new__(cls, value: float, compared: Callable | None = None, converted: Callable | None = None):
        self = super().__new__(cls, value)
        self.compared, self.converted = compared, converted
        return self


def _follow(value: object, source: Size | Ratio) -> object:
    if isinstance(value, tuple):
        return tuple(_follow(item, source) for item in value)
    if type(value) is int:
        return Size(value, source.compared, source.converted)
    return Ratio(value, source.compared, source.converted) if type(value) is float else value


def _define(cls: type, base: type, names: Iterable[str], make: Callable) -> None:
    for name in names:
        if name in vars(base):
            setattr(cls, name, make(getattr(base, name), name))


def _arithmetic(method: Callable, name: str) -> Callable:
    def run(self, *others):
        if isinstance(self, int) and others and isinstance(others[0], float):  # int's own leaves this to float's
            return _follow(getattr(float, name, method)(float.__add__(0.0, self), *others), self)
        return _follow(method(self, *others), self)

    return run


def _comparing(method: Callable, name: str) -> Callable:
    def run(self, *others):
        if self.compared is not None:
            self.compared()
        return method(self, *others)

    return run


def _converting(method: Callable, name: str) -> Callable:
    def run(self, *others):
        if self.converted is not None:
            self.converted()
        return method(self, *others)

    return run


_OPERATORS = "add sub mul truediv floordiv mod divmod pow and or xor lshift rshift".split()
_ARITHMETIC = [
    *(f"__{side}{name}__" for name in _OPERATORS for side in ("", "r")),
    *(f"__{name}__" for name in "neg pos abs invert round floor ceil trunc".split()),
]
_COMPARING = [f"__{name}__" for name in "lt le eq ne gt ge bool".split()]
_CONVERTING = [f"__{name}__" for name in "int float hash format str repr index".split()]
for _cls, _base in ((Size, int), (Ratio, float)):
    _define(_cls, _base, _ARITHMETIC, _arithmetic)
    _define(_cls, _base, _COMPARING, _comparing)
    _define(_cls, _base, _CONVERTING, _converting)


@functools.lru_cache(maxsize=1024)
def branches(code: types.CodeType) -> bool:
    """Whether a function compares or branches at all."""
    return any(
        step.opname.startswith(("COMPARE_OP", "CONTAINS_OP", "POP_JUMP", "JUMP_IF"))
        for step in dis.get_instructions(code)
    )


@functools.lru_cache(maxsize=1024)
def instruction_at(code: types.CodeType, offset: int) -> int:
    """The offset of the instruction that an offset is in: that of a running call may be behind it, in its cache."""
    return max((step.offset for step in dis.get_instructions(code) if step.offset <= offset), default=-1)


@functools.lru_cache(maxsize=1024)
def call_that_takes(code: types.CodeType, offset: int) -> int | None:
    """The offset of the call that takes the value that the instruction at ``offset`` has made.

    ``size=(y.shape[2], y.shape[3])`` goes from one instruction to the next: into a tuple, with an index, and into the
    call, and nothing else sees it. None where it may go elsewhere: into a variable, a branch, another attribute.
    """
    above = 0  # number of values on the stack above it
    steps = iter(dis.get_instructions(code))
    if sys.version_info < (3, 11) or all(step.offset != offset for step in steps):
        return None
    for step in steps:
        name, argument = step.opname, step.arg or 0
        if name in ("CACHE", "PRECALL", "KW_NAMES", "EXTENDED_ARG", "RESUME", "NOT_TAKEN"):
            continue
        if name.startswith(("LOAD_", "PUSH_NULL")):
            if name in ("LOAD_ATTR", "LOAD_METHOD") and not above:
                return None
            above += dis.stack_effect(step.opcode, step.arg)
        elif name in _TAKES:
            taken = _TAKES[name](argument)
            if taken > above and name.startswith("CALL"):
                return step.offset
            above = max(above - taken + 1, 0)  # taken itself, it is within what comes out
        else:
            return None
    return None


_TAKES = {  # values that are taken for the one that comes out
    "BINARY_SUBSCR": lambda _: 2,
    "BINARY_SLICE": lambda _: 3,
    "BINARY_OP": lambda _: 2,
    "BUILD_TUPLE": lambda count: count,
    "BUILD_LIST": lambda count: count,
    "BUILD_SLICE": lambda count: count,
    "UNARY_NEGATIVE": lambda _: 1,
    "CALL": lambda count: count + 2,
    "CALL_KW": lambda count: count + 3,
}
