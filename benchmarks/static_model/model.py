"""The time of a launch from what its machine code shows: see docs/performance/static-model.md.

T = start + max(issue + max(bytes, cache), latency) + tail

``issue``: all instructions of all warps, as fast as the schedulers start them. ``bytes``: what moves, as fast as a
copy moves it. ``latency``: the rounds of thread blocks that the device needs, each as long as one warp takes alone, or
as its scheduler takes to start the instructions of the warps that share it. ``cache``: what asynchronous copies, which
pass by the first cache, ask of the second. ``start``: what the shortest launch takes.
``tail``: what one thread block does after all others, such as joining their sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise

from .sass import Function, Instruction, Loop

LOAD = 700  # cycles of a load from global memory on a busy device
NEAR = 270  # cycles of a load that finds its bytes in a cache
SHARED = 30  # cycles of a load from shared memory
OTHER = 20  # cycles of other instructions that release a barrier


@dataclass(frozen=True)
class Machine:
    """A device. The bytes a second are those of a copy, measured; ``cache_bytes_per_second`` are the second cache's."""

    processors: int
    hertz: float
    bytes_per_second: float
    cache_bytes_per_second: float
    start: float  # seconds
    registers: int = 65536
    warps: int = 64
    blocks: int = 32
    shared: int = 227 << 10
    schedulers: int = 4


H200 = Machine(132, 1.98e9, 4.26e12, 5.5e12, 1.5e-6)


@dataclass(frozen=True)
class Part:
    """What a warp executes: instructions, cycles where loads took none, and how often it waits a whole load's time."""

    instructions: float = 0
    cycles: float = 0
    phases: float = 0

    def __add__(self, other: Part) -> Part:
        return Part(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values())))

    def __mul__(self, times: float) -> Part:
        return Part(*(a * times for a in asdict(self).values()))


@dataclass(frozen=True)
class Facts:
    """All that the model knows of a launch.

    Attributes:
        registers: of a thread; ``warps``, ``shared``: of a thread block, and bytes.
        grid: thread blocks.
        loop, iterations: the innermost loop that executes most, and how often a warp goes through it.
        rest: what else a warp executes.
        loads, loaded: instructions of an iteration that load from global memory, and the bytes that a thread asks for.
        copied: those of them that asynchronous copies ask for.
        read, written: bytes that move between memory and device.
        results: valid results of the launch.
        tail: what the last thread block executes after all others.
    """

    registers: int
    warps: int
    shared: int
    grid: int
    loop: Part
    iterations: float
    rest: Part
    loads: float
    loaded: float
    copied: float
    read: float
    written: float
    results: float
    tail: Part = Part()

    @classmethod
    def of(cls, values: dict) -> Facts:
        """From what ``dataclasses.asdict`` makes of facts."""
        parts = {name: Part(**values.get(name, {})) for name in ("loop", "rest", "tail")}
        return cls(**{**values, **parts})

    def resident(self, machine: Machine = H200) -> int:
        """Thread blocks that a processor holds at once."""
        registers = math.ceil(self.registers / 8) * 8 * 32 * self.warps
        limits = (
            machine.registers // registers, machine.warps // self.warps, machine.shared // (self.shared + 1024),
            machine.blocks,
        )  # fmt: skip
        return max(1, min(limits))

    def asked(self, bytes_of_a_thread: float) -> float:
        """Bytes of all threads and iterations."""
        return self.grid * self.warps * 32 * self.iterations * bytes_of_a_thread

    def times(self) -> tuple[float, float]:
        """Cycles of a warp that runs alone: of the rest, and of an iteration.

        An iteration waits for memory for as many loads as bring bytes that no load before them has brought, and at
        least one; the others find theirs in a cache.
        """
        asked = self.asked(self.loaded)
        far = max(1.0, self.loads * min(self.read / asked, 1.0)) if asked else 0.0
        far = min(self.loop.phases, far)
        waits = LOAD * far + NEAR * (self.loop.phases - far)
        return self.rest.cycles + LOAD * self.rest.phases, self.loop.cycles + waits

    def per_result(self, instructions: float) -> float:
        """So many instructions of a warp, as instructions of all threads for each valid result."""
        return self.grid * self.warps * 32 * instructions / max(self.results, 1)


@dataclass(frozen=True)
class Prediction:
    """Microseconds."""

    start: float
    issue: float
    bytes: float
    cache: float
    latency: float
    tail: float

    @property
    def time(self) -> float:
        return self.start + max(self.issue + max(self.bytes, self.cache), self.latency) + self.tail


def predict(facts: Facts, machine: Machine = H200) -> Prediction:
    resident = facts.resident(machine)
    whole = facts.rest + facts.loop * facts.iterations
    issue = facts.grid * facts.warps * whole.instructions / (machine.processors * machine.schedulers)
    rounds = max(facts.grid / (machine.processors * resident), 1)
    sharing = resident * facts.warps / machine.schedulers
    rest, iteration = facts.times()
    latency = max(sharing * facts.rest.instructions, rest)
    latency += facts.iterations * max(sharing * facts.loop.instructions, iteration)
    seconds = (
        machine.start, issue / machine.hertz, (facts.read + facts.written) / machine.bytes_per_second,
        facts.asked(facts.copied) / machine.cache_bytes_per_second, rounds * latency / machine.hertz,
        (facts.tail.cycles + LOAD * facts.tail.phases) / machine.hertz,
    )  # fmt: skip
    return Prediction(*(1e6 * t for t in seconds))


def _of_nests(function: Function, trips: tuple) -> list[tuple[int, ...]]:
    """The trips of each nest of the code's loops."""
    count = len(function.main_loops)
    if not (trips and isinstance(trips[0], tuple)):
        return [trips] * count
    nests = list(trips)
    for nest in trips:
        if len(nests) > count and set(nest) == {1}:
            nests.remove(nest)
    if len(nests) != count:
        raise ValueError(f"static model: the source has nests of loops of {trips} trips, the code {count} nests")
    return nests


def trips_of(function: Function, trips: tuple) -> dict[int, float]:
    """How often each loop is gone through each time that it is reached, by its header's block.

    ``trips``: see ``work.Kernel``. Of a nest they are the trips of the loops as the kernel's source has them, the
    outermost first, or of several nests one tuple each, in the source's order. The compiler removes loops of one
    trip, so of these only as many are dropped as the code lacks; the rest is matched from the innermost. It unrolls
    others: a loop that accesses memory a whole number of times as often as the one after it does so many trips at once,
    and the other what is left.
    """
    found: dict[int, float] = {}
    for top, of_nest in zip(function.main_loops, _of_nests(function, trips)):
        deepest = max(depth for _, depth in top.walk())
        left = list(of_nest)
        while len(left) > deepest and 1 in left:
            left.remove(1)
        left = [1] * (deepest - len(left)) + left[len(left) - deepest :] if len(left) != deepest else left
        for loop, depth in top.walk():
            found[loop.header] = left[depth - 1]
    for one, other in pairwise(function.main_loops):
        times, more = divmod(_accesses(function, one), max(_accesses(function, other), 1))
        if times > 1 and not more and not one.inner and not other.inner:
            found[one.header], found[other.header] = divmod(found[one.header], times)
    return found


def _accesses(function: Function, loop: Loop) -> int:
    return sum(one.kind in ("load", "store", "copy") for one in function.own(loop))


@dataclass
class _Warp:
    """One warp that runs alone: the cycle, and when what it waits for is there."""

    load: float
    now: float = 0.0
    instructions: float = 0.0
    barriers: list[float] = field(default_factory=lambda: [0.0] * 6)
    copies: list[float] = field(default_factory=list)  # asynchronous ones, not yet in a group
    groups: list[float] = field(default_factory=list)

    def step(self, one: Instruction) -> None:
        self.now = max([self.now, *(self.barriers[i] for i in one.waits)])
        self.instructions += 1
        took = {"load": self.load, "atomic": self.load, "local": self.load, "copy": self.load, "shared": SHARED}.get(
            one.kind, OTHER
        )
        if one.writes is not None:
            self.barriers[one.writes] = max(self.barriers[one.writes], self.now + took)
        if one.reads is not None:
            self.barriers[one.reads] = max(self.barriers[one.reads], self.now + OTHER)
        if one.base == "LDGSTS":
            self.copies.append(self.now + self.load)
        elif one.base == "LDGDEPBAR":
            self.groups.append(max(self.copies, default=self.now))
            self.copies.clear()
        elif one.base == "DEPBAR" and (left := _groups_left(one)) is not None and self.groups:
            done = self.groups[: max(len(self.groups) - left, 0)]
            self.now = max([self.now, *done])
            del self.groups[: len(done)]
        self.now += max(one.stall, 1)

    def skip(self, cycles: float, instructions: float) -> None:
        """Goes on by iterations that are like the last one."""
        self.now += cycles
        self.instructions += instructions
        self.barriers = [t + cycles for t in self.barriers]
        self.copies = [t + cycles for t in self.copies]
        self.groups = [t + cycles for t in self.groups]


def _groups_left(one: Instruction) -> int | None:
    parts = one.operands.split(",")
    if not one.opcode.startswith("DEPBAR.LE") or len(parts) < 2:
        return None
    return int(parts[1].strip(), 16)


WARM = 3  # iterations that are simulated; those after them are like the last


def _run(function: Function, loop: Loop | None, warp: _Warp, trips: dict[int, float], first: bool) -> None:
    """Goes through the blocks of a loop's iteration, or of the whole kernel, once, in the order of the code."""
    inner = {one.header: one for one in (function.main_loops if loop is None else loop.inner)}
    within = {block for one in inner.values() for block in one.blocks}
    for block in sorted(function.reachable - function.tail if loop is None else loop.blocks):
        if block in inner:
            _repeat(function, inner[block], warp, trips, first)
        elif block not in within and (first or loop is None or block not in loop.once):
            for i in function.blocks[block]:
                warp.step(function.code[i])


def _repeat(function: Function, loop: Loop, warp: _Warp, trips: dict[int, float], first: bool) -> None:
    left = trips.get(loop.header, 1)
    before = warp.now, warp.instructions
    for i in range(min(WARM, math.ceil(left))):
        before = warp.now, warp.instructions
        _run(function, loop, warp, trips, first and i == 0)
    if left > WARM:
        times = left - WARM
        warp.skip((warp.now - before[0]) * times, (warp.instructions - before[1]) * times)


def _whole(function: Function, trips: dict[int, float], load: float) -> _Warp:
    warp = _Warp(load)
    _run(function, None, warp, trips, True)
    return warp


def _part(fast: tuple[float, float], slow: tuple[float, float]) -> Part:
    return Part(fast[1], fast[0], (slow[0] - fast[0]) / LOAD)


def hottest(function: Function, trips: dict[int, float]) -> tuple[Loop | None, float]:
    """The innermost loop in which a warp executes most instructions, and how often a warp goes through it."""

    def all_of(loops: list[Loop], reached: float) -> Iterator[tuple[Loop, float]]:
        for loop in loops:
            times = reached * trips.get(loop.header, 1)
            if not loop.inner:
                yield loop, times
            yield from all_of(loop.inner, times)

    found = list(all_of(function.main_loops, 1))
    return max(found, key=lambda one: one[1] * len(function.own(one[0])), default=(None, 1))


def parts_of(function: Function, trips: tuple[int, ...]) -> tuple[Part, float, Part]:
    """The loop that is ``hottest``, how often a warp goes through it, and the rest."""
    each = trips_of(function, trips)
    loop, iterations = hottest(function, each)
    runs = [_whole(function, each, load) for load in (0, LOAD)]
    whole = _part(*((run.now, run.instructions) for run in runs))
    if loop is None:
        return Part(), 1, whole
    more = [_alone(function, loop, each, load) for load in (0, LOAD)]
    part = _part(*more)
    rest = whole + part * -iterations
    return part, iterations, Part(*(max(v, 0) for v in asdict(rest).values()))


def tail_of(function: Function) -> Part:
    """What the last thread block executes after all others; each of its loops once."""
    runs = []
    for load in (0, LOAD):
        warp = _Warp(load)
        for block in sorted(function.tail):
            for i in function.blocks[block]:
                warp.step(function.code[i])
        runs.append((warp.now, warp.instructions))
    return _part(*runs)


def _alone(function: Function, loop: Loop, trips: dict[int, float], load: float) -> tuple[float, float]:
    """Cycles and instructions of an iteration of a loop, after some."""
    warp = _Warp(load)
    for _ in range(WARM):
        before = warp.now, warp.instructions
        _run(function, loop, warp, trips, False)
    return warp.now - before[0], warp.instructions - before[1]


def lead(function: Function, loop: Loop) -> float:
    """The shortest way from a load of the loop to the instruction that waits for it, as a share of an iteration.

    It is 1 where a load is waited for an iteration later, or there are no loads, and 0 where at once.
    """
    code = function.own(loop)
    cycles = [max(one.stall, 1) for one in code]
    found = 1.0
    for i, one in enumerate(code):
        if one.kind == "load" and one.writes is not None:
            far = 0
            for j in range(i + 1, i + 1 + len(code)):
                far += cycles[(j - 1) % len(code)]
                if one.writes in code[j % len(code)].waits:
                    break
            found = min(found, far / sum(cycles))
    return found
