"""How each module of a net is frozen: as a whole where that is right, else its children, else not at all."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from ...fused.behaviour import Fused
from . import compare
from .build import INSIDE, OURS, PLAIN, WHOLE, freeze_in_place, holds_ours, holds_programs
from .compare import Arguments
from .trace import Untraceable


@dataclass
class FreezePlan:
    """How a net is frozen.

    Attributes:
        modes: by path, of ``build``.
        left: paths of modules that go back to PyTorch, each with the reason in a sentence.
        calls: inputs of the net that both were compared on.
    """

    modes: dict[str, str] = field(default_factory=dict)
    left: list[tuple[str, str]] = field(default_factory=list)
    calls: list[Arguments] = field(default_factory=list)


def decide(source: nn.Module, fused: nn.Module, whole: frozenset[str], calls: list[Arguments]) -> FreezePlan:
    """What of a net may be frozen, by comparing it with its source piece by piece, from the whole to the children.

    Args:
        source: ``compare.private``; copies of it are run.
        fused: the same net fused, with the same paths; copies of it are frozen.
        whole: paths of modules that are not to be looked into.
        calls: what the source is known to accept; inputs are drawn if there are none.
    """
    plan = FreezePlan(calls=calls or compare.draw(source))
    _Piece("", source, fused, whole, plan).decide(plan.calls)
    return plan


@dataclass
class _Piece:
    """A module of the net in both forms, ``whole`` relative to it."""

    path: str
    source: nn.Module
    fused: nn.Module
    whole: frozenset[str]
    plan: FreezePlan

    def decide(self, calls: list[Arguments]) -> bool:
        """Decide about the module; returns whether anything of it is frozen."""
        if not holds_ours(self.fused):
            return False
        reasons: list[str] = []
        for mode in (WHOLE, OURS) if calls else ():
            found = self._try({"": mode}, calls, reasons)
            if found:
                self.plan.modes[self.path] = mode
                if reasons:
                    self._leave(f"what holds no Ghost module is called as it is: {reasons[0]}")
            if found is not None:
                return found
        self._leave(reasons[0] if calls else "no input that it accepts could be drawn: give freeze an example")
        return not isinstance(self.fused, Fused) and self._inside(calls)

    def _inside(self, calls: list[Arguments]) -> bool:
        """Decide about the children one by one; those that are called, on what they are called with."""
        ours = {path for path, module in self.fused.named_modules() if holds_ours(module)}
        seen = compare.observe(self.source, calls, ours)
        self.plan.modes[self.path] = INSIDE
        found = self._children("", seen, bool(calls))
        if found and calls:
            reasons: list[str] = []
            found = bool(self._try(self._modes(), calls, reasons))
            if not found:
                self._leave(reasons[-1])
        if not found:
            self.plan.modes[self.path] = PLAIN
        return found

    def _children(self, inner: str, seen: dict[str, list[Arguments]], observed: bool) -> bool:
        """Decide about the children of the module at ``inner``, a path in this one."""
        found = False
        for name, child in self.fused.get_submodule(inner).named_children():
            at = f"{inner}.{name}" if inner else name
            if not holds_ours(child):
                continue
            piece = self._piece(at)
            if isinstance(child, (nn.ModuleList, nn.ModuleDict)) or (observed and not seen.get(at)):
                self.plan.modes[piece.path] = INSIDE  # its children are called, if anything is
                found |= not isinstance(child, Fused) and self._children(at, seen, observed)
            else:
                found |= piece.decide(seen[at] if observed else compare.draw(piece.source))
        return found

    def _piece(self, at: str) -> _Piece:
        whole = frozenset(path.removeprefix(f"{at}.") for path in self.whole if path.startswith(f"{at}."))
        path = f"{self.path}.{at}" if self.path else at
        return _Piece(path, self.source.get_submodule(at), self.fused.get_submodule(at), whole, self.plan)

    def _modes(self) -> dict[str, str]:
        """The modes of this module and of those inside, by paths in this one."""
        inside = f"{self.path}." if self.path else ""
        modes = {path: mode for path, mode in self.plan.modes.items() if path.startswith(inside)}
        return {path.removeprefix(inside): mode for path, mode in modes.items()} | {"": INSIDE}

    def _leave(self, reason: str) -> None:
        self.plan.left.append((self.path, reason))

    def _try(self, modes: dict[str, str], calls: list[Arguments], reasons: list[str]) -> bool | None:
        """Whether something is frozen so; None, with one more reason, where it would not be right."""
        try:
            frozen = freeze_in_place(compare.private(self.fused), modes, self.whole)
        except Untraceable as error:
            reasons.append(str(error))
            return None
        if not holds_programs(frozen):
            return False
        why = compare.difference(compare.private(self.source), frozen, calls)
        if why is not None:
            reasons.append(why)
            return None
        return True
