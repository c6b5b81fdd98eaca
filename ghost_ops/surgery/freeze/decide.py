"""How each module of a net is frozen: as a whole where that is right, else its children, else not at all."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from ...fused.behaviour import Fused
from . import compare
from .build import EXPORTED, INSIDE, OURS, WHOLE, Built, Way, freeze_in_place, holds_ours, holds_programs
from .compare import Arguments
from .trace import Untraceable

_MOST_SHAPES = 2  # calls on which the shapes of a graph are looked at


@dataclass
class FreezePlan:
    """How a net is frozen.

    Attributes:
        ways: by path, of ``build``.
        left: paths of modules that go back to PyTorch, each with the reason in a sentence.
        calls: inputs of the net that both were compared on.
    """

    ways: dict[str, Way] = field(default_factory=dict)
    left: list[tuple[str, str]] = field(default_factory=list)
    calls: list[Arguments] = field(default_factory=list)


def decide(source: nn.Module, fused: nn.Module, calls: list[Arguments]) -> FreezePlan:
    """What of a net may be frozen, by comparing it with its source piece by piece, from the whole to the children.

    Args:
        source: ``compare.private``; copies of it are run.
        fused: the same net fused, with the same paths; copies of it are frozen.
        calls: what the source is known to accept; inputs are drawn if there are none.
    """
    plan = FreezePlan(calls=calls or compare.draw(source))
    _Piece("", source, fused, plan).decide(plan.calls)
    return plan


@dataclass
class _Piece:
    """A module of the net in both forms.

    Attributes:
        has_graph: whether its forward has a graph, as far as that was tried.
    """

    path: str
    source: nn.Module
    fused: nn.Module
    plan: FreezePlan
    has_graph: bool = field(default=True, init=False)

    def decide(self, calls: list[Arguments]) -> bool:
        """Decide about the module; returns whether anything of it is frozen."""
        if not holds_ours(self.fused) or type(self.fused).__module__.startswith("torch.nn.modules.conv"):
            return False
        reasons: list[str] = []
        for mode in (WHOLE, OURS) if calls else ():
            way = Way(mode, tuple(calls[:_MOST_SHAPES]))
            built = self._try({"": way}, calls, reasons)
            if built is not None:
                more = self._exported(calls, []) if self._is_worth(built.opaque) else None
                if more is not None:
                    return more
                self.plan.ways[self.path] = way
                if reasons:
                    self._leave(f"what holds no convolution is called as it is: {reasons[0]}")
                found = holds_programs(built.module)
                return self._opaque(built.opaque, calls) or found
        found = None if self.has_graph or not calls else self._exported(calls, reasons)
        if found is not None:
            return found
        tried = ", and ".join(dict.fromkeys((reasons[0], reasons[-1]))) if reasons else ""
        self._leave(tried or f"{compare.why_none(self.source)}; give freeze an example")
        return not isinstance(self.fused, Fused) and self._inside(calls)

    def _is_worth(self, opaque: dict[str, str]) -> bool:
        """Whether something worth a program is in modules whose forwards could not be traced."""
        return any(holds_ours(self._piece(at).fused) for at in opaque)

    def _exported(self, calls: list[Arguments], reasons: list[str]) -> bool | None:
        """Freeze what ``torch.export`` makes of it; None where that cannot be, with one more reason."""
        way = Way(EXPORTED, tuple(calls[:_MOST_SHAPES]))
        others = [call.channels_last() for call in calls[:1]]  # of strides the graph's guard says nothing
        built = self._try({"": way}, [*calls, *others], reasons)
        if built is None or not holds_programs(built.module):
            return None
        self.plan.ways[self.path] = way
        return True

    def _opaque(self, opaque: dict[str, str], calls: list[Arguments]) -> bool:
        """Decide about what is inside of modules whose forwards could not be traced."""
        found = False
        for at, why in opaque.items():
            piece = self._piece(at)
            piece._leave(why)
            if holds_ours(piece.fused) and not isinstance(piece.fused, Fused):
                (seen,) = compare.observe(self.source, calls, {at}).values() or ([],)
                found |= piece._inside(seen)
        if found and self._try(self._ways(), calls, []) is None:
            for at in opaque:
                self._piece(at)._forget()
            return False
        return found

    def _inside(self, calls: list[Arguments]) -> bool:
        """Decide about the children one by one; those that are called, on what they are called with."""
        ours = {path for path, module in self.fused.named_modules() if holds_ours(module)}
        seen = compare.observe(self.source, calls, ours)
        self.plan.ways[self.path] = Way(INSIDE)
        found = self._children("", seen, bool(calls))
        if found and calls:
            reasons: list[str] = []
            built = self._try(self._ways(), calls, reasons)
            found = built is not None and holds_programs(built.module)
            if built is None:
                self._leave(reasons[-1])
        if not found:
            self._forget()
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
                self.plan.ways[piece.path] = Way(INSIDE)  # its children are called, if anything is
                found |= not isinstance(child, Fused) and self._children(at, seen, observed)
            else:
                found |= piece.decide(seen[at] if observed else compare.draw(piece.source))
        return found

    def _piece(self, at: str) -> _Piece:
        path = f"{self.path}.{at}" if self.path else at
        return _Piece(path, self.source.get_submodule(at), self.fused.get_submodule(at), self.plan)

    def _ways(self) -> dict[str, Way]:
        """The ways of this module and of those inside, by paths in this one."""
        inside = f"{self.path}." if self.path else ""
        found = {path.removeprefix(inside): way for path, way in self.plan.ways.items() if path.startswith(inside)}
        return found | {"": self.plan.ways[self.path]}

    def _forget(self) -> None:
        """Leave the module and what is inside as it is."""
        inside = f"{self.path}." if self.path else ""
        for path in [path for path in self.plan.ways if path == self.path or path.startswith(inside)]:
            del self.plan.ways[path]

    def _leave(self, reason: str) -> None:
        self.plan.left.append((self.path, reason))

    def _try(self, ways: dict[str, Way], calls: list[Arguments], reasons: list[str]) -> Built | None:
        """What is frozen so; None, with one more reason, where it would not be right."""
        try:
            built = freeze_in_place(compare.private(self.fused), ways)
        except Untraceable as error:
            self.has_graph = False
            reasons.append(str(error))
            return None
        if not holds_programs(built.module):
            return built
        why = compare.difference(compare.private(self.source), built.module, calls)
        if why is not None:
            reasons.append(why)
            return None
        return built
