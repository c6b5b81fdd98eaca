"""How a fused module runs: a runner reads its structure, decides for each call, and runs it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import is_
from typing import ClassVar, NamedTuple

import torch
from torch import nn

from ..dispatch import Decision, refuse_autocast, refuse_call, select
from ..ops.program import call_program_eval
from ._program import Builder, Built
from ._structure import NotNow, Structure, Unfusable
from ._watch import Watch

Recogniser = Callable[[nn.Module], tuple[object, tuple[tuple[str, str], ...]]]
_observers: list[Callable[[nn.Module, object, Callable], object]] = []


class Route(NamedTuple):
    """What was decided for one call, and the call."""

    decision: Decision
    run: Callable[[], torch.Tensor]


def need_grad(tensors: tuple) -> bool:
    """Whether autograd must record an operation on these tensors."""
    if not torch.is_grad_enabled():
        return False
    for t in tensors:
        if t is not None and t.requires_grad:
            return True
    return False


class Runner:
    """How one module runs fused. It belongs to one module, which hands itself over on every call.

    Attributes:
        parts: where the module's pieces are; None where the module says so itself (``module.parts()``).
        input_name: name of the only argument of the module's forward.
    """

    part_type: ClassVar[type]
    recogniser: ClassVar[Recogniser | None] = None  # set by ``ghost_ops.surgery``, which knows how to look at a module

    def __init__(self, parts: object = None, input_name: str = "x") -> None:
        self.parts = parts
        self.input_name = input_name
        self._watch: Watch | None = None
        self._refusal: str | None = None
        self._forget()

    def _forget(self) -> None:
        self._plan: tuple | None = None
        self._program: tuple | None = None

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name not in _TRANSIENT}

    def __setstate__(self, state: dict) -> None:
        self._forget()
        self.__dict__.update(state)

    def fresh(self) -> Runner:
        """A runner of another module of the same structure."""
        return copy.deepcopy(self)

    def watch(self, module: nn.Module, reads: tuple[tuple[str, str], ...]) -> None:
        """Notice from now on when one of these attributes changes."""
        self._watch = Watch(module, reads) if reads else None

    # What the kinds of modules define

    def describe(self, module: nn.Module, structure: Structure) -> tuple:
        """What a call needs to know of the module: a named tuple whose first field is the closed structure.

        Raises:
            Unfusable: no operator computes the module.
        """
        raise NotImplementedError

    def route(self, module: nn.Module, x: torch.Tensor) -> Route:
        """What runs a call with x, and why nothing faster does."""
        raise NotImplementedError

    @classmethod
    def paths(cls, parts: object, owner: str) -> list[str]:
        """The paths in ``parts`` that must exist; checks what else ``parts`` says."""
        raise NotImplementedError

    # What they share

    def forward(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if _observers and not torch.compiler.is_compiling():
            return observed(module, x, lambda: self.route(module, x))
        return self.route(module, x).run()

    def decide(self, module: nn.Module, x: torch.Tensor) -> Decision:
        """What would run a call with an input such as x, and why nothing faster does."""
        return self.route(module, x).decision

    def parts_of(self, module: nn.Module) -> object:
        """Where the module's pieces are."""
        return module.parts() if self.parts is None else self.parts

    def current_plan(self, module: nn.Module) -> tuple:
        """The plan, made anew where something inside has changed; raises ``Unfusable``."""
        if torch.compiler.is_compiling():  # the compiler guards what it read
            return self._described(module)
        plan = self._plan
        if plan is None or plan[0].has_changed(module):
            self._plan = None
            plan = self._plan = self._described(module)
        return plan

    def _described(self, module: nn.Module) -> tuple:
        if self._watch is not None and (change := self._watch.changed(module)) is not None:
            self._look_again(module, change)
        if self._refusal is not None:
            raise Unfusable(self._refusal)
        structure = Structure(module)
        plan = self.describe(module, structure)
        if self._watch is not None:
            structure.watched = self._watch.bound(module)
        return plan

    def _look_again(self, module: nn.Module, change: str) -> None:
        """Recognise the module once more, since an attribute that its forward reads has changed."""
        if torch.compiler.is_compiling() or self.recogniser is None:
            raise NotNow(change)
        reads = self._watch.reads
        try:
            self.parts, found = type(self).recogniser(module)
            reads, self._refusal = (*reads, *found), None
        except Unfusable as reason:
            self._refusal = f"{change}, and {reason}"
        self.watch(module, reads)


_TRANSIENT = ("_plan", "_program")  # what belongs to one module is neither copied nor pickled


class ProgramRunner(Runner):
    """A runner of modules that are one call of ``program_eval`` where nothing needs a gradient."""

    def channels(self, module: nn.Module) -> int:
        """Number of input channels. Raises ``Unfusable`` where the module cannot be fused."""
        raise NotImplementedError

    def build(self, module: nn.Module, builder: Builder, source: int) -> int:
        """Write the module's steps; returns the slot of its output.

        Raises:
            Unfusable: no program computes the module as it is now.
        """
        raise NotImplementedError

    def plans(self, module: nn.Module) -> tuple:
        """What the steps are read from, each made anew where something has changed; raises ``Unfusable``."""
        return (self.current_plan(module),)

    def without_program(self, module: nn.Module, x: torch.Tensor, why: str | None) -> Route:
        """What runs where no program does.

        Args:
            why: why none does; None in training and compilation, where none is looked for.
        """
        raise NotImplementedError

    def as_program(self, decision: Decision) -> Decision:
        """The decision for the operator, as one for the module."""
        return decision

    def forward(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if module.training or _observers or torch.compiler.is_compiling():
            return super().forward(module, x)
        try:
            _, built, found = self._program_call(module, x)
        except Unfusable as reason:
            why = str(reason)
        else:
            return call_program_eval(x, found, built.code)
        return self.without_program(module, x, why).run()

    def route(self, module: nn.Module, x: torch.Tensor) -> Route:
        if module.training or torch.compiler.is_compiling():
            return self.without_program(module, x, None)
        try:
            decision, built, found = self._program_call(module, x)
        except Unfusable as reason:
            why = str(reason)
        else:
            return Route(self.as_program(decision), lambda: call_program_eval(x, found, built.code))
        return self.without_program(module, x, why)

    def _program_call(self, module: nn.Module, x: torch.Tensor) -> tuple[Decision, Built, list[torch.Tensor]]:
        """The decision for one operator call, the program and its parameters; raises ``Unfusable``."""
        why = refuse_call(x) or refuse_autocast(x)
        if why is not None:
            raise NotNow(why)
        decision = select("program_eval", x)
        if decision.backend == "reference":
            raise NotNow(decision.why)
        built = self._built(module)
        found = built.parameters(x)
        if found is None:
            self._program = None
            built = self._built(module)
            found = built.parameters(x)
        if found[0].shape[1] != x.shape[1]:
            raise NotNow(f"its input has {x.shape[1]} channels, its weights do not")
        if need_grad((x, *found)):
            raise NotNow("gradients are wanted")
        return decision, built, found

    def _built(self, module: nn.Module) -> Built:
        """The module as a program, made anew where something inside has changed."""
        plans, program = self.plans(module), self._program  # read once, since other threads may call the module too
        if program is not None and all(map(is_, program[0], plans)):
            built = program[1]
            if isinstance(built, str):
                raise Unfusable(built)
            return built
        self._program = None
        builder = Builder()
        try:
            builder.store(self.build(module, builder, builder.load(self.channels(module))))
            built = builder.finish()
        except NotNow:
            raise  # the cause may end before anything that the plans hold changes
        except Unfusable as reason:
            self._program = plans, str(reason)
            raise
        self._program = plans, built
        return built


def observed(module: nn.Module, x: object, route: Callable[[], Route]) -> torch.Tensor:
    """The result of a call, which an observer sees where there is one."""
    return _observers[-1](module, x, route) if _observers else route().run()


@contextmanager
def observing(observer: Callable[[nn.Module, object, Callable[[], Route]], object]) -> Iterator[None]:
    """Within the block ``observer(module, x, route)`` gets every call of a fused module and returns its result."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.pop()
