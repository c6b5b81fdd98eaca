"""``Programmed``: fused modules that are one call of ``program_eval`` where nothing needs a gradient."""

from __future__ import annotations

import torch

from ..backends import choose
from ..ops.program import program_eval
from ._program import Builder, Built
from ._structure import Unfusable, refuse_autocast, refuse_input, refuse_now
from ._wrapper import Wrapper


def need_grad(tensors: tuple) -> bool:
    if not torch.is_grad_enabled():
        return False
    for t in tensors:
        if t is not None and t.requires_grad:
            return True
    return False


class Programmed(Wrapper):
    """A fused module that writes the steps of a program, keeps them, and hands over its parameters as they are now."""

    _program: tuple | None = None

    def channels(self) -> int:
        """Of the input; raises ``Unfusable``."""
        raise NotImplementedError

    def build(self, builder: Builder, source: int) -> int:
        """Write its steps; returns the slot of its output.

        Raises:
            Unfusable: no program computes the module as it is now.
        """
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training or torch.compiler.is_compiling():
            return self._in_parts(x)
        try:
            built, parameters = self._program_for(x)
        except Unfusable:
            return self._in_parts(x)
        return program_eval(x, parameters, built.code)

    def _in_parts(self, x: torch.Tensor) -> torch.Tensor:
        """The forward where no program serves."""
        raise NotImplementedError

    def _plans(self) -> tuple:
        """What its steps were read from, each made anew where something has changed; raises ``Unfusable``."""
        return (self._current_plan(),)

    def _built(self) -> Built:
        """The module as a program, made anew where something inside has changed."""
        plans = self._plans()
        if self._program is None or any(a is not b for a, b in zip(self._program[0], plans, strict=True)):
            builder = Builder()
            try:
                builder.store(self.build(builder, builder.load(self.channels())))
                built = builder.finish()
            except Unfusable as reason:
                built = str(reason)
            self.__dict__["_program"] = plans, built
        built = self._program[1]
        if isinstance(built, str):
            raise Unfusable(built)
        return built

    def _program_for(self, x: torch.Tensor) -> tuple[Built, list[torch.Tensor]]:
        """The module as a program, and its parameters now; raises ``Unfusable``."""
        why = refuse_now() or refuse_input(x) or refuse_autocast(x)
        if why is not None:
            raise Unfusable(why)
        choice = choose("program_eval", x)
        if choice.backend == "reference":
            raise Unfusable(str(choice))
        built = self._built()
        found = built.parameters(x)
        if found is None:
            self.__dict__["_program"] = None
            built = self._built()
            found = built.parameters(x)
        if found[0].shape[1] != x.shape[1]:
            raise Unfusable(f"its input has {x.shape[1]} channels, its weights do not")
        if need_grad((x, *found)):
            raise Unfusable("gradients are wanted")
        return built, found
