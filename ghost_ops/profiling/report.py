"""What a profile has found: dataclasses, a table, JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..bench.report import limits_line, machine_line

WAYS = ("plain", "fused", "frozen")
WIDTH = 160  # columns of ``str``


@dataclass(frozen=True)
class Way:
    """How one module, or the net, runs in one of three ways: plain, fused, frozen.

    Attributes:
        runs: what runs it, as ``explain`` says it.
        why: why nothing faster does, or why there is no time; may be empty.
        seconds, spread: median and interquartile range over the rounds; None where there is no time.
        bytes: what its operators read and write, views left out; None where it was not run.
        share: the least time that the work can take on this machine, over ``seconds``.
        error: largest difference from float64 over the largest element; None where that was not compared.
    """

    runs: str
    why: str = ""
    seconds: float | None = None
    spread: float | None = None
    bytes: int | None = None
    share: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class ModuleProfile:
    """A part of the net: a block, another module, or a run of layers; or what is between them, or the whole net.

    Attributes:
        name: its path; of a run of layers the first and the last.
        kind: the classes of its modules.
        calls: how often it is called in one call of the net.
        input: shape and dtype of its argument; empty where it has several, or several calls.
        multiply_adds: those of convolutions, linear layers and matrix products in all calls.
        least_bytes: its arguments, results and parameters, each once.
        roof: the least seconds for that work on this machine.
        plain, fused, frozen: how it runs in each way. Frozen, it is a program of its own on the input that it gets.
    """

    name: str
    kind: str
    calls: int
    input: str
    multiply_adds: int
    least_bytes: int
    roof: float
    plain: Way
    fused: Way
    frozen: Way

    @property
    def ways(self) -> dict[str, Way]:
        return {way: getattr(self, way) for way in WAYS}


@dataclass(frozen=True)
class Left:
    """A module that was not fused, or not frozen.

    Attributes:
        by: "fuse" or "freeze".
        name, kind: its path and its class.
        why: the reason in a sentence.
    """

    by: str
    name: str
    kind: str
    why: str


@dataclass(frozen=True)
class Profile:
    """What ``ghost_ops.profile`` returns; as text, and for rich, a table.

    Attributes:
        model, input, dtype: class of the net, its input, the dtype that it ran in.
        threads, rounds: PyTorch's threads, and the samples that medians are of.
        modules: the parts of the net, in the order of their calls.
        between: what forwards compute outside of these modules. It has no time frozen.
        net: the whole net.
        left: what was not fused and what was not frozen, and why.
        tally: how many of how many blocks run fused.
        machine, limits: what it was measured on, and what that machine can do.
    """

    model: str
    input: str
    dtype: str
    threads: int
    rounds: int
    modules: tuple[ModuleProfile, ...]
    between: ModuleProfile
    net: ModuleProfile
    left: tuple[Left, ...]
    tally: str
    machine: dict[str, object]
    limits: dict[str, object]

    def as_dict(self) -> dict[str, object]:
        """Everything as dictionaries and lists, ready for JSON."""
        return asdict(self)

    def slowest(self, count: int | None) -> tuple[ModuleProfile, ...]:
        """The modules that take most time as plain PyTorch, in the order of the net; all where count is None."""
        ranked = sorted(self.modules, key=lambda row: -(row.plain.seconds or 0.0))[:count]
        return tuple(row for row in self.modules if any(row is kept for kept in ranked))

    def render(self, top: int | None = None) -> RenderableType:
        """The table, with the ``top`` slowest modules only where that is given, and what stands around it."""
        found: list[RenderableType] = [Text(machine_line(self.machine)), limits_line(self.limits), self._table(top)]
        return Group(*found, *self._notes())

    def __rich__(self) -> RenderableType:
        return self.render()

    def __str__(self) -> str:
        console = Console(
            width=WIDTH, color_system=None, force_terminal=False, force_jupyter=False, legacy_windows=False
        )
        with console.capture() as capture:
            console.print(self)
        return capture.get().rstrip("\n")

    def _table(self, top: int | None) -> Table:
        plural = "s" if self.threads > 1 else ""
        table = Table(title=f"{self.model}, {self.input}, {self.threads} thread{plural}: ms, MB moved, share of roof")
        table.add_column("module", no_wrap=True)
        table.add_column("class", overflow="fold")
        for column in (
            "M mul-\nadds",
            "roof\nms",
            *(f"{way}\n{unit}" for way in WAYS for unit in ("ms", "MB", "roof")),
        ):
            table.add_column(column, justify="right", no_wrap=True)
        shown = self.slowest(top)
        for row in shown:
            table.add_row(row.name or "(the net)", row.kind, *_cells(row))
        table.add_section()
        hidden = [row for row in self.modules if not any(row is kept for kept in shown)]
        if hidden:
            table.add_row(f"{len(hidden)} more modules", "", *_cells(total(hidden)))
        table.add_row("between the modules", "", *_cells(self.between))
        if self.modules:
            table.add_row("sum of the modules", "", *_cells(total(self.modules)))
        table.add_row("the net", self.net.kind, *_cells(self.net))
        table.caption = (
            "roof: the least time for the work on this machine, and its share of the time taken; MB: what operators "
            "read and write. Frozen, the net is one program, and each module is timed as one of its own"
        )
        return table

    def _notes(self) -> Iterator[Text]:
        if self.tally:
            yield Text(f"{self.tally} run fused")
        for way, result in self.net.ways.items():
            if result.seconds is None:
                yield Text(f"no time {way}: {result.why}", style="yellow")
        for by, word in (("fuse", "fused"), ("freeze", "frozen")):
            reasons: dict[str, list[str]] = {}
            for left in self.left:
                if left.by == by:
                    reasons.setdefault(left.why, []).append(f"{left.name or 'the net'} ({left.kind})")
            for why, names in reasons.items():
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                yield Text(f"not {word}: {names[0]}{more}: {why}", style="yellow")
        for row in self.modules:
            if row.frozen.seconds is None:
                yield Text(f"no time frozen: {row.name}: {row.frozen.why}", style="yellow")


def total(rows: Sequence[ModuleProfile]) -> ModuleProfile:
    """The sums over some modules; a sum is None where one of its terms is."""
    roof = math.fsum(row.roof for row in rows)
    ways = {}
    for way in WAYS:
        each = [row.ways[way] for row in rows]
        seconds, size = (_sum([getattr(one, field) for one in each]) for field in ("seconds", "bytes"))
        ways[way] = Way("", seconds=seconds, bytes=size, share=roof / seconds if seconds else None)
    work, least = sum(row.multiply_adds for row in rows), sum(row.least_bytes for row in rows)
    return ModuleProfile("", "", sum(row.calls for row in rows), "", work, least, roof, **ways)


def _sum(values: list) -> float | None:
    return None if any(value is None for value in values) else sum(values)


def _cells(row: ModuleProfile) -> list[str]:
    cells = [f"{row.multiply_adds / 1e6:.2f}", f"{row.roof * 1e3:.3f}"]
    for way in row.ways.values():
        cells.append("" if way.seconds is None else f"{way.seconds * 1e3:.3f}")
        cells.append("" if way.bytes is None else f"{way.bytes / 1e6:.2f}")
        cells.append("" if way.share is None else f"{way.share:.0%}")
    return cells
