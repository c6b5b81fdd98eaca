"""Reads the machine code of a compiled kernel: instructions with their scheduling, basic blocks and loops.

The text is that of ``cuobjdump -sass``, which comes with Triton's wheel. Each instruction has its encoding there, and
the encoding says how the hardware schedules it: cycles until the next instruction may start, and the barriers by which
an instruction waits for loads. The layout of these bits is that of Volta and every architecture since.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import networkx

_LINE = re.compile(r"^\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+(?P<text>.*?);\s*/\* 0x(?P<low>[0-9a-f]{16}) \*/")
_HIGH = re.compile(r"^\s*/\* 0x(?P<high>[0-9a-f]{16}) \*/\s*$")
_OPCODE = re.compile(r"^(?:@(?P<predicate>!?U?P[0-9T]+)\s+)?(?P<opcode>[A-Z][\w.]*)\s*(?P<operands>.*)$")
_ADDRESS = re.compile(r"\b0x([0-9a-f]+)\s*$")
CLASSES = {
    "load": {"LDG", "LD"}, "store": {"STG", "ST"}, "copy": {"LDGSTS"}, "local": {"LDL", "STL"},
    "atomic": {"ATOM", "ATOMG", "RED"},
    "shared": {"LDS", "STS", "LDSM", "STSM", "ATOMS"}, "matrix": {"HMMA", "HGMMA", "IMMA", "QGMMA"},
    "float": {"FFMA", "FADD", "FMUL", "FFMA2", "FADD2", "FMUL2", "HFMA2", "HADD2", "HMUL2", "DADD", "DMUL", "DFMA"},
    "select": {"FSEL", "FSETP", "FMNMX", "FSET", "HMNMX2", "HSETP2", "HSET2", "FCHK"},
    "convert": {"F2F", "F2FP", "I2F", "F2I", "FRND", "I2FP"}, "special": {"MUFU"},
    "move": {"MOV", "CS2R", "S2R", "S2UR", "UMOV", "R2P", "P2R", "PLOP3", "UPLOP3", "R2UR", "LDC", "LDCU", "ULDC"},
    "exchange": {"SHFL", "VOTE", "VOTEU", "REDUX", "MATCH"},
    "control": {
        "BRA", "EXIT", "RET", "CALL", "BRX", "BREAK", "JMP", "BSSY", "BSYNC", "BAR", "WARPSYNC", "DEPBAR", "LDGDEPBAR",
        "MEMBAR", "WARPGROUP", "NOP", "YIELD", "SYNCS", "ERRBAR", "FENCE",
    },
}  # fmt: skip
"""What an instruction is for, by the first part of its name; what is in no class is arithmetic of integers."""
_CLASS_OF = {name: kind for kind, names in CLASSES.items() for name in names}
_BITS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128}


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        predicate: the predicate that guards it, or None.
        stall: cycles until the warp's next instruction may start.
        writes, reads: the barriers, 0 to 5, that it releases with its result, and when its operands are read, or None.
        waits: the barriers that it waits for.
    """

    address: int
    opcode: str
    operands: str
    predicate: str | None = None
    stall: int = 1
    writes: int | None = None
    reads: int | None = None
    waits: frozenset[int] = frozenset()

    @property
    def base(self) -> str:
        return self.opcode.split(".")[0]

    @property
    def kind(self) -> str:
        return "move" if self.opcode.startswith("IMAD.MOV") else _CLASS_OF.get(self.base, "integer")

    @property
    def bits(self) -> int:
        """Bits a lane that a load or store moves."""
        return next((_BITS[part] for part in self.opcode.split(".")[1:] if part in _BITS), 32)

    @property
    def divides(self) -> bool:
        """Whether it is a reciprocal, or the product by one that divides integers."""
        return self.opcode == "MUFU.RCP" or self.opcode.startswith(("IMAD.HI", "UIMAD.HI"))

    @property
    def target(self) -> int | None:
        """The address that a branch goes to."""
        found = _ADDRESS.search(self.operands) if self.base in ("BRA", "JMP") else None
        return int(found[1], 16) if found else None

    @property
    def conditional(self) -> bool:
        """Whether what follows it may run, though it is a branch or an exit."""
        return self.predicate not in (None, "PT", "UPT") or bool(re.match(r"!?U?P\d", self.operands))

    def registers(self) -> frozenset[int]:
        """The registers that its operands name; of a group only the first is named."""
        return frozenset(int(n) for n in re.findall(r"\bR(\d+)\b", self.operands))


@dataclass
class Loop:
    """A natural loop.

    Attributes:
        header: the index of its first block.
        blocks: the indices of all blocks of it, those of inner loops too.
        once: blocks that are taken once: where threads exchange values behind a comparison for equality. Kernels find
            the origin of their sums so, in the first iteration.
        inner: the loops directly within.
    """

    header: int
    blocks: frozenset[int]
    once: frozenset[int] = frozenset()
    inner: list[Loop] = field(default_factory=list)

    def walk(self, depth: int = 1) -> Iterator[tuple[Loop, int]]:
        yield self, depth
        for loop in self.inner:
            yield from loop.walk(depth + 1)


@dataclass(frozen=True)
class Function:
    """The code of a kernel, and the resources that it needs."""

    name: str
    code: tuple[Instruction, ...]
    registers: int = 0
    stack: int = 0

    @cached_property
    def blocks(self) -> list[range]:
        """Basic blocks, as ranges of indices into ``code``."""
        starts = {0, *self._after_branches(), *(self._index[t] for t in self._targets())}
        edges = sorted(s for s in starts if s < len(self.code)) + [len(self.code)]
        return [range(a, b) for a, b in pairwise(edges)]

    @cached_property
    def _index(self) -> dict[int, int]:
        return {one.address: i for i, one in enumerate(self.code)}

    def _targets(self) -> Iterable[int]:
        return (one.target for one in self.code if one.target in self._index)

    def _after_branches(self) -> Iterable[int]:
        return (i + 1 for i, one in enumerate(self.code) if one.base in ("BRA", "JMP", "EXIT", "RET", "BRX"))

    @cached_property
    def successors(self) -> list[list[int]]:
        first = {block[0]: i for i, block in enumerate(self.blocks)}
        found = []
        for i, block in enumerate(self.blocks):
            last, to = self.code[block[-1]], []
            if last.target in self._index:
                to.append(first[self._index[last.target]])
            ends = last.base in ("BRA", "JMP", "EXIT", "RET", "BRX") and not last.conditional
            if not ends and i + 1 < len(self.blocks):
                to.append(i + 1)
            found.append(to)
        self._add_tables(found)
        return found

    @cached_property
    def tail(self) -> frozenset[int]:
        """Blocks after an atomic operation that is in no loop: the last of the programs that count themselves there
        goes through them."""
        within = {block for loop in self.loops for block in loop.blocks}
        for i in sorted(self.reachable - within):
            if any(self.code[j].kind == "atomic" for j in self.blocks[i]):
                while len(self.successors[i]) == 1:  # one thread counts, and all go on
                    (i,) = self.successors[i]
                return frozenset(b for b in self.reachable if b != i and i in self.dominators[b])
        return frozenset()

    def _add_tables(self, successors: list[list[int]]) -> None:
        """Adds where branches to computed addresses lead: blocks after them that nothing else does, nor calls."""
        called = {
            int(found[1], 16) for one in self.code if one.base == "CALL" and (found := _ADDRESS.search(one.operands))
        }
        known = {0, *(j for to in successors for j in to)}
        last = None
        for i, block in enumerate(self.blocks):
            first, end = self.code[block[0]], self.code[block[-1]]
            if (
                last is not None
                and i not in known
                and first.address not in called | {end.target}
                and first.base != "NOP"
            ):
                successors[last].append(i)
            if end.base == "BRX":
                last = i

    @cached_property
    def reachable(self) -> frozenset[int]:
        """Blocks that the kernel's entry leads to; subroutines, which calls lead to, are not among them."""
        seen, todo = {0}, [0]
        while todo:
            for to in self.successors[todo.pop()]:
                if to not in seen:
                    seen.add(to)
                    todo.append(to)
        return frozenset(seen)

    @cached_property
    def _predecessors(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {i: [] for i in self.reachable}
        for i in sorted(self.reachable):
            for to in self.successors[i]:
                found[to].append(i)
        return found

    @cached_property
    def dominators(self) -> dict[int, frozenset[int]]:
        """Of each block those that every way to it goes through, itself among them."""
        graph = networkx.DiGraph([(i, to) for i in self.reachable for to in self.successors[i]])
        graph.add_node(0)
        found, above = {}, networkx.immediate_dominators(graph, 0)
        for i in sorted(self.reachable):
            way = [i]
            while way[-1] != 0 and way[-1] not in found:
                way.append(above[way[-1]])
            for block in reversed(way):
                found.setdefault(block, frozenset((block,)) | (found[above[block]] if block else frozenset()))
        return found

    @property
    def main_loops(self) -> list[Loop]:
        """The outermost loops that every thread block goes through."""
        return [loop for loop in self.loops if loop.header not in self.tail]

    @cached_property
    def loops(self) -> list[Loop]:
        """The outermost loops, in the order of their code, each with the loops within."""
        bodies: dict[int, set[int]] = {}
        latches: dict[int, set[int]] = {}
        for i in sorted(self.reachable):
            for to in self.successors[i]:
                if to in self.dominators[i] and len(self.blocks[to]) + len(self.blocks[i]) > 2:  # not "BRA here"
                    body, todo = bodies.setdefault(to, {to}), [i]
                    latches.setdefault(to, set()).add(i)
                    while todo:
                        block = todo.pop()
                        if block not in body:
                            body.add(block)
                            todo += self._predecessors[block]
        found = sorted((Loop(h, frozenset(b)) for h, b in bodies.items()), key=lambda loop: len(loop.blocks))
        top = []
        for i, loop in enumerate(found):
            always = frozenset.intersection(*(self.dominators[latch] for latch in latches[loop.header]))
            inner = {block for other in found[:i] if other.blocks < loop.blocks for block in other.blocks}
            loop.once = frozenset().union(*(self._taken_once(loop, b) for b in loop.blocks - always - inner)) - inner
            outer = next((other for other in found[i + 1 :] if loop.blocks < other.blocks), None)
            (top if outer is None else outer.inner).append(loop)
        for loop in found:
            loop.inner.sort(key=lambda one: one.header)
        return sorted(top, key=lambda loop: loop.header)

    def _taken_once(self, loop: Loop, first: int) -> frozenset[int]:
        """The blocks that are reached through ``first`` only, if they are those of ``Loop.once``, or none."""
        found = frozenset(b for b in loop.blocks if first in self.dominators[b])
        exchanges = any(self.code[i].base == "SHFL" for b in found for i in self.blocks[b])
        once = exchanges and any(self._compares_for_equality(p) for p in self._predecessors[first])
        return found if once else frozenset()

    def _compares_for_equality(self, block: int) -> bool:
        """Whether the branch at the end of a block depends on whether two integers are equal."""
        last = self.blocks[block][-1]
        wanted = (self.code[last].predicate or "").lstrip("!")
        for one in reversed(self.code[:last]):
            to, *of = re.findall(r"U?P(?:\d|T)", one.operands) or [None]
            if wanted and to == wanted:
                if "SETP" in one.base:
                    return one.base in ("ISETP", "UISETP") and one.opcode.split(".")[1] in ("EQ", "NE")
                wanted = next((name for name in of if not name.endswith("T")), "")  # PLOP3, of another predicate
        return False

    def own(self, loop: Loop | None) -> list[Instruction]:
        """The instructions of each iteration of a loop, or of the code outside of loops: not those of loops within."""
        within = self.loops if loop is None else loop.inner
        blocks = self.reachable - self.tail if loop is None else loop.blocks - loop.once
        left = blocks.difference(*(inner.blocks for inner in within))
        return [self.code[i] for block in sorted(left) for i in self.blocks[block]]

    def taken_once(self, loop: Loop) -> list[Instruction]:
        return [self.code[i] for block in sorted(loop.once) for i in self.blocks[block]]

    def counts(self, loop: Loop | None) -> Counter[str]:
        return Counter(one.kind for one in self.own(loop))


def parse(text: str) -> dict[str, Function]:
    """The functions of the output of ``cuobjdump -sass``, by name."""
    found: dict[str, list[Instruction]] = {}
    code: list[Instruction] = []
    waiting: re.Match | None = None
    for line in text.splitlines():
        if name := re.search(r"Function : (\S+)", line):
            code = found.setdefault(name[1], [])
        elif here := _LINE.match(line):
            waiting = here
        elif waiting is not None and (more := _HIGH.match(line)):
            code.append(_instruction(int(waiting["address"], 16), waiting["text"].strip(), int(more["high"], 16)))
            waiting = None
    return {name: Function(name, tuple(code)) for name, code in found.items()}


def _instruction(address: int, text: str, high: int) -> Instruction:
    parts = _OPCODE.match(text)
    if parts is None:
        raise ValueError(f"no instruction: {text}")
    control = high >> 41
    barrier = lambda at: None if (control >> at) & 7 == 7 else (control >> at) & 7
    waits = frozenset(i for i in range(6) if control >> (11 + i) & 1)
    return Instruction(
        address, parts["opcode"], parts["operands"].strip(), parts["predicate"], control & 15, barrier(5), barrier(8),
        waits,
    )  # fmt: skip


def _tool(name: str) -> str:
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def disassemble(cubin: bytes) -> dict[str, Function]:
    """The functions of a cubin, with their registers, by name. Needs Triton's wheel, and no device."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = {}
        for option in ("-sass", "-res-usage"):
            done = subprocess.run([_tool("cuobjdump"), option, file.name], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"cuobjdump {option} failed: {done.stderr.strip()}")
            said[option] = done.stdout
    usage = {
        name: (int(registers), int(stack))
        for name, registers, stack in re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+)", said["-res-usage"])
    }
    return {
        name: replace(function, registers=usage[name][0], stack=usage[name][1])
        for name, function in parse(said["-sass"]).items()
    }
