"""``Block``: how a kind of module is recognised, how it runs fused, and how it becomes part of a program.

A class of blocks says this of one kind of module; an object of it belongs to one module and holds what is remembered
between calls. ``register_block`` (:mod:`.registry`) makes a class known to ``fuse`` and ``freeze``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from operator import is_
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import nn

from ..dispatch import PLAIN_TENSORS, Decision, refuse_autocast, refuse_call, refuse_modes, select
from ..ops.program import call_program_eval
from ..ops.program_train import TrainCall, run_program_train
from .builder import Builder
from .compiled_program import CompiledProgram
from .errors import NotNow, Unfusable
from .structure import Structure
from .training import TrainedProgram, TrainingBuilder
from .watch import Watch

if TYPE_CHECKING:
    from .graphed_block import BlockGraphs

Reads = tuple[tuple[str, str], ...]
_observers: list[Callable[[nn.Module, object, Callable], object]] = []
_TRANSIENT = ("_plan", "_program", "_training")  # what belongs to one module is neither copied nor pickled


class Route(NamedTuple):
    """What was decided for one call, and the call."""

    decision: Decision
    run: Callable[[], torch.Tensor]


def any_requires_grad(tensors: tuple) -> bool:
    """Whether autograd must record an operation on these tensors."""
    if not torch.is_grad_enabled():
        return False
    for t in tensors:
        if t is not None and t.requires_grad:
            return True
    return False


class Block:
    """One kind of module that runs fused. An object belongs to one module, which every method is given.

    Attributes:
        kind: what ``explain`` calls such a module: ``"Ghost module"``.
        Parts: a frozen dataclass of the paths of its pieces, each as of ``torch.nn.Module.get_submodule``.
        holds_blocks: whether its pieces are blocks themselves, which are recognised first.
        priority: of two blocks that could match, the one of the higher priority is asked first.
        autocast_dtypes: dtypes of the inputs on which a module is compared under autocast before it is fused.
        verifies_program: whether the program is held against the module, too, before a module is fused.
        behaviour: the class that comes before a module's own; ``register_block`` makes it.
        has_program: whether a module in eval may be one operator call.
        infers_as_program: whether its steps are to be run in eval, where ``lower_module`` is defined.
        trains_as_program: whether its steps are what it computes in training too, over batch statistics.
        is_layer: whether it is only looked for outside of other blocks, as it is not worth a program in inference or a
            CUDA graph of its own.
        is_open: whether it is a block in eval only: otherwise its own forward runs, and what is inside is fused on its
            own too. ``freeze`` reads what is inside.
        memory: what is kept for the backward: ``"balanced"``, ``"low"`` or ``"fast"`` (``ops/program_train.py``).
        parts: where the pieces of the module are; None where the module says so itself (``module.parts()``).
        input_name: name of the only argument of the module's forward.
        graphs: CUDA graphs of the module's calls; None where they are not wanted.
        recomputes: whether a call with gradients recomputes in the backward what is inside.
    """

    kind: ClassVar[str]
    Parts: ClassVar[type]
    holds_blocks: ClassVar[bool] = False
    priority: ClassVar[int] = 0
    autocast_dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32,)
    verifies_program: ClassVar[bool] = False
    behaviour: ClassVar[type]
    has_program: ClassVar[bool] = False
    infers_as_program: ClassVar[bool] = True
    is_layer: ClassVar[bool] = False
    is_open: ClassVar[bool] = False
    trains_as_program: ClassVar[bool] = False
    memory: str = "balanced"
    graphs: BlockGraphs | None = None
    recomputes = False
    recogniser: ClassVar[Callable[[type[Block], nn.Module], tuple[object, Reads]] | None] = None  # set by surgery

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        cls.has_program = cls.infers_as_program and cls.lower_module is not Block.lower_module

    def __init__(self, parts: object = None, input_name: str = "x") -> None:
        self.parts = parts
        self.input_name = input_name
        self._watch: Watch | None = None
        self._refusal: str | None = None
        self._forget()

    def _forget(self) -> None:
        self._plan: tuple | None = None
        self._program: tuple | None = None
        self._training: tuple | None = None

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name not in _TRANSIENT}

    def __setstate__(self, state: dict) -> None:
        self._forget()
        self.__dict__.update(state)

    def fresh(self) -> Block:
        """A block of another module of the same structure."""
        return copy.deepcopy(self)

    # What each kind of block defines

    @classmethod
    def examples(cls) -> dict[str, Callable[[], nn.Module]]:
        """Small modules that are such a block, by how they are written: ``ghost-ops verify`` compares them.

        Each is made in training mode, takes N x C x H x W, and has a convolution or linear layer of those C channels
        before all others.
        """
        return {}

    @classmethod
    def match(cls, candidate: object) -> tuple[object, Reads] | None:
        """The parts of a module that is this block, and the plain attributes that its forward reads; None of another.

        Args:
            candidate: a ``ghost_ops.surgery.recognise.Candidate``, which runs copies of the module.

        Raises:
            Unfusable: it looks like this block but is not one, or no operator computes it.
        """
        raise NotImplementedError

    def describe(self, module: nn.Module, structure: Structure) -> tuple:
        """What a call needs to know of the module: a named tuple whose first field is the closed structure.

        Raises:
            Unfusable: no operator computes the module.
        """
        raise NotImplementedError

    def route_without_program(self, module: nn.Module, x: torch.Tensor, why: str | None) -> Route:
        """What runs a call with x where no program does, and why nothing faster does.

        Args:
            why: why no program runs; None in training and compilation, where none is looked for.
        """
        raise NotImplementedError

    def channels(self, module: nn.Module) -> int:
        """Number of input channels. Raises ``Unfusable`` where the module cannot be fused."""
        raise NotImplementedError

    def lower_module(
        self, module: nn.Module, builder: Builder, source: int, *, keep_source: bool = False
    ) -> int:  # fmt: skip
        """Write the steps that compute the module in eval; returns the slot of its output.

        Args:
            source: slot of the input, which is released.
            keep_source: whether it is not released, since a later step reads it too.

        Raises:
            Unfusable: no program computes the module as it is now.
        """
        raise Unfusable(f"a {self.kind} is not a program of its own")

    def plans(self, module: nn.Module) -> tuple:
        """What the steps are read from, each made anew where something has changed; raises ``Unfusable``."""
        return (self.current_plan(module),)

    def decision_of_program(self, decision: Decision) -> Decision:
        """The decision for the operator, as one for the module."""
        return decision

    @classmethod
    def paths(cls, parts: object, owner: str) -> list[str]:
        """The paths in ``parts``, which must exist: every string, and every string in a tuple.

        Raises:
            ValueError: another value in ``parts`` is wrong.
        """
        values = [getattr(parts, field.name) for field in fields(parts)]
        return [path for v in values for path in (v if isinstance(v, tuple) else (v,)) if isinstance(path, str)]

    # What all blocks share

    def forward(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if _observers and not torch.compiler.is_compiling():
            return observed(module, x, lambda: self.route(module, x))
        if self.graphs is not None and not torch.compiler.is_compiling():
            return self.graphs.call(self, module, x)
        return self.run(module, x)

    def run(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """A call, launched one kernel after the other."""
        if module.training or not self.has_program or torch.compiler.is_compiling():
            return self._training_route(module, x).run()
        try:
            _, program, found = self._program_call(module, x)
        except Unfusable as reason:
            why = str(reason)
        else:
            return call_program_eval(x, found, program.code)
        return self.route_without_program(module, x, why).run()

    def route(self, module: nn.Module, x: torch.Tensor) -> Route:
        """What runs a call with x, and why nothing faster does."""
        if module.training or not self.has_program or torch.compiler.is_compiling():
            return self._training_route(module, x)
        try:
            decision, program, found = self._program_call(module, x)
        except Unfusable as reason:
            why = str(reason)
        else:
            return Route(self.decision_of_program(decision), lambda: call_program_eval(x, found, program.code))
        return self.route_without_program(module, x, why)

    def _training_route(self, module: nn.Module, x: torch.Tensor) -> Route:
        """A call in training: one program where a backend runs whole ones."""
        if self.trains_as_program and module.training and not torch.compiler.is_compiling():
            try:
                return self._trained_route(module, x)
            except Unfusable:
                pass
        return self.route_without_program(module, x, None)

    def _trained_route(self, module: nn.Module, x: torch.Tensor) -> Route:
        """A call in training as one program; raises ``Unfusable`` where none runs."""
        if type(x) not in PLAIN_TENSORS:
            raise NotNow(f"its input is a {type(x).__name__}, not a plain tensor")
        decision = select("program_train", x)
        if decision.backend == "reference":
            raise NotNow(decision.why)
        call = self._training_call(module, x, decision)
        return Route(self.decision_of_program(decision), lambda: run_program_train(call, x))

    def _training_call(self, module: nn.Module, x: torch.Tensor, decision: Decision) -> TrainCall:
        """What a program in training is called with; raises ``Unfusable`` where none runs."""
        why = refuse_call(x) or refuse_autocast(x) or refuse_modes()
        if why is not None:
            raise NotNow(why)
        call = self._trained(module).call(decision, x, self.memory)
        if call is None:
            self._training = None
            call = self._trained(module).call(decision, x, self.memory)
        return call

    def decide(self, module: nn.Module, x: torch.Tensor) -> Decision:
        """What would run a call with an input such as x, and why nothing faster does."""
        return self.route(module, x).decision

    def watch(self, module: nn.Module, reads: Reads) -> None:
        """Notice from now on when one of these attributes changes."""
        self._watch = Watch(module, reads) if reads else None

    def parts_of(self, module: nn.Module) -> object:
        """Return the paths of the module's pieces."""
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
            structure.watched = self._watch.bound(module, [watched.child for watched in structure.children])
        return plan

    def _look_again(self, module: nn.Module, change: str) -> None:
        """Recognise the module again, since an attribute that its forward reads has changed."""
        if torch.compiler.is_compiling() or self.recogniser is None:
            raise NotNow(change)
        reads = self._watch.reads
        try:
            self.parts, found = type(self).recogniser(type(self), module)
            reads, self._refusal = (*reads, *found), None
        except Unfusable as reason:
            self._refusal = f"{change}, and {reason}"
        self.watch(module, reads)

    def _program_call(self, module: nn.Module, x: torch.Tensor) -> tuple[Decision, CompiledProgram, list[torch.Tensor]]:
        """The decision for one operator call, the program and its parameters; raises ``Unfusable``."""
        why = refuse_call(x) or refuse_autocast(x)
        if why is not None:
            raise NotNow(why)
        decision = select("program_eval", x)
        if decision.is_reference:
            raise NotNow(decision.why)
        program = self._compiled(module)
        found = program.parameters(x)
        if found is None:
            self._program = None
            program = self._compiled(module)
            found = program.parameters(x)
        if program.channels != x.shape[1]:
            raise NotNow(f"its input has {x.shape[1]} channels, its weights do not")
        if any_requires_grad((x, *found)):
            raise NotNow("gradients are wanted")
        return decision, program, found

    def _compiled(self, module: nn.Module) -> CompiledProgram:
        """The module as a program."""
        return self._built(module, "_program", Builder)

    def _trained(self, module: nn.Module) -> TrainedProgram:
        """The module as a program in training."""
        return self._built(module, "_training", TrainingBuilder)

    def _built(self, module: nn.Module, kind: str, builder_class: type[Builder]) -> object:
        """What a builder makes of the module, made anew where something inside has changed.

        Args:
            kind: the attribute that holds it, or why there is none, together with the plans.
        """
        plans, known = self.plans(module), self.__dict__[kind]  # read once: other threads may call the module too
        if known is None or not all(map(is_, known[0], plans)):
            self.__dict__[kind] = None
            builder = builder_class()
            try:
                builder.store(self.lower_module(module, builder, builder.load(self.channels(module))))
                known = plans, builder.finish()
            except NotNow:
                raise  # the cause may end before anything that the plans hold changes
            except Unfusable as reason:
                known = plans, str(reason)
            self.__dict__[kind] = known
        if isinstance(known[1], str):
            raise Unfusable(known[1])
        return known[1]


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
