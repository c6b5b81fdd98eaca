"""From operations to the steps of a program: what is fused into one step, in which order, in which slots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import fx

from ...backends.registry import CHEAP_KERNELS
from ...fused.behaviour import block_of
from ...fused.builder import Builder
from ...fused.errors import Unfusable
from ...fused.ghost_module import GhostModuleBlock
from ...program import Excite
from . import values as v
from .values import Features, Map, Operation

_NO_SCALE = "no step multiplies by an excitation but 1x1 convolutions and Ghost modules"


class Refused(Exception):
    """A node that no step computes where it stands, and why."""

    def __init__(self, node: fx.Node | None, why: str) -> None:
        super().__init__(why)
        self.node, self.why = node, why


def lower(ops: Sequence[Operation], outputs: Sequence[Map | Features]) -> Builder:
    """The steps of operations.

    Args:
        ops: in an order in which they can be computed, the first an ``Entry``.
        outputs: what the program returns.

    Raises:
        Refused: one of them must be left to PyTorch.
    """
    features = [out for out in outputs if isinstance(out, Features)]
    if features and len(outputs) > 1:
        raise Refused(_pool_of(features[0].op).node, "a program returns either maps or features")
    live = _live(ops, outputs)
    _Fusion(live, outputs).fuse()
    return _Lowering(live, outputs).write()


def _pool_of(op: Operation) -> Operation:
    while isinstance(op, v.Dense):
        op = op.features
    return op


def _live(ops: Sequence[Operation], outputs: Sequence[Map | Features]) -> list[Operation]:
    """The operations that the outputs need, in order."""
    found: set[Operation] = set()
    rest = [out.op for out in outputs]
    while rest:
        op = rest.pop()
        if op not in found:
            found.add(op)
            rest += v.needs(op)
    return [op for op in ops if op in found]


class _Fusion:
    """Finds the operations that are part of the step of another: ``Concat.ghost``, ``Add.into``, gates of any size."""

    def __init__(self, ops: list[Operation], outputs: Sequence[Map | Features]) -> None:
        self.ops = ops
        self.uses = Counter(m.op for op in ops for m in _all_reads(op))
        self.uses.update(out.op for out in outputs)
        self.parts: dict[Operation, set[tuple[int, int]]] = {}
        for m in [m for op in ops for m in _all_reads(op)] + [out for out in outputs if isinstance(out, Map)]:
            self.parts.setdefault(m.op, set()).add((m.begin, m.end))

    def fuse(self) -> None:
        for op in self.ops:
            if isinstance(op, v.Concat):
                self._flatten(op)
                self._ghost(op)
            elif isinstance(op, v.Multiply) and isinstance(op.gate.op, v.UpsampleLike) and op.gate.is_whole:
                self._forget(op.gate)
                op.gate = op.gate.op.source  # which the multiplication brings to the size of the map
                self.uses[op.gate.op] += 1
        for op in self.ops:
            if isinstance(op, v.Add):
                op.into = next((m.op for m in (op.source, op.other) if m.is_whole and self._takes_residual(m.op)), None)
        absorbed = {inner for op in self.ops for inner in _absorbed(op)}
        unread = {op for op in self.ops if isinstance(op, (v.UpsampleLike, v.Concat)) and not self.uses[op]}
        self.ops[:] = [op for op in self.ops if op not in absorbed and op not in unread]

    def _forget(self, read: Map) -> None:
        """One that read this does so no longer."""
        self.uses[read.op] -= 1
        for m in read.op.reads() if not self.uses[read.op] else ():
            self.uses[m.op] -= 1

    def _flatten(self, op: v.Concat) -> None:
        """Take the maps of a concatenation that only this one reads."""
        sources: list[Map] = []
        for m in op.sources:
            inner = m.op
            if isinstance(inner, v.Concat) and m.is_whole and inner.ghost is None and self.uses[inner] == 1:
                sources += inner.sources
                self.uses[inner] = 0
            else:
                sources.append(m)
        op.sources = tuple(sources)

    def _ghost(self, op: v.Concat) -> None:
        """Whether it is a Ghost module, some of whose last channels may be dropped."""
        if len(op.sources) != 2 or not all(m.is_whole and isinstance(m.op, v.Layer) for m in op.sources):
            return
        primary, cheap = (m.op for m in op.sources)
        kept = {end for begin, end in self.parts.get(op, ()) if begin == 0} if self.parts.get(op) else set()
        if len(kept) != 1 or len(self.parts[op]) != 1:
            return
        (count,) = kept
        if (
            cheap.source != Map.of(primary)
            or (self.uses[primary], self.uses[cheap]) != (2, 1)
            or not primary.layer.is_pointwise()
            or not cheap.layer.is_cheap(primary.channels)
            or cheap.layer.kernel()[0] not in CHEAP_KERNELS
            or not primary.channels < count <= op.channels
        ):
            return
        op.ghost, op.channels = (primary, cheap), count

    def _takes_residual(self, op: Operation) -> bool:
        """Whether a step makes this map only to be added to another, and can add it itself."""
        if self.uses[op] != 1:
            return False
        if isinstance(op, v.Layer):
            return op.layer.is_pointwise()
        if isinstance(op, v.Concat):
            return op.ghost is not None
        return isinstance(op, v.Fused) and isinstance(block_of(op.module), GhostModuleBlock)


def _all_reads(op: Operation) -> list[Map]:
    """The maps that it reads, that of a scale and those whose means it takes included."""
    if isinstance(op, v.Scale):
        return [op.source, op.pooled]
    return [op.pooled] if isinstance(op, v.Pool) else op.reads()


def _absorbed(op: Operation) -> tuple[Operation, ...]:
    if isinstance(op, v.Concat):
        return op.ghost or ()
    return (op.into,) if isinstance(op, v.Add) and op.into is not None else ()


class _Lowering:
    """Writes the steps, one operation after the other."""

    def __init__(self, ops: Sequence[Operation], outputs: Sequence[Map | Features]) -> None:
        self.ops, self.outputs = ops, outputs
        self.builder = Builder()
        self.slots: dict[Map, int] = {}  # of maps and of their parts
        self.left = Counter(self._behind(m) for op in ops for m in op.reads())
        self.left.update(out for out in outputs if isinstance(out, Map))
        self.squeezed = {op.pooled.op: op.node for op in ops if isinstance(op, (v.Scale, v.Pool))}
        self.squeeze: Operation | None = None  # the operation whose map's means are the squeeze
        self.excitation: Operation | None = None

    def write(self) -> Builder:
        for op in self.ops:
            if not isinstance(op, v.Entry):
                self._guarded(op)
        for out in self.outputs:
            if isinstance(out, Map) and isinstance(out.op, v.Scale):
                raise Refused(out.op.node, _NO_SCALE)
        slots = [self._slot(out) for out in self.outputs if isinstance(out, Map)]
        for slot in dict.fromkeys(slots):
            self.builder.store(slot)
        return self.builder

    def _guarded(self, op: Operation) -> None:
        before = len(self.builder.steps)
        try:
            self._write(op)
        except Unfusable as error:
            raise Refused(op.node, str(error)) from None
        steps = self.builder.steps
        if op in self.squeezed:
            made, slot = steps[-1] if steps else None, self.slots.get(Map.of(op))
            if getattr(made, "out", -1) != slot or not hasattr(made, "squeeze"):
                kind = type(made).__name__
                raise Refused(self.squeezed[op], f"the step of what it takes the means of, a {kind}, makes none")
            steps[-1] = replace(made, squeeze=True)
        for step in steps[before:]:
            if isinstance(step, Excite):
                self.excitation = op
            if getattr(step, "squeeze", False):
                self.squeeze = op

    # Slots

    def _behind(self, m: Map) -> Map:
        """The map that is read where this is: of a scale its source."""
        while isinstance(m.op, v.Scale) and m.is_whole:
            m = m.op.source
        return m

    def _slot(self, m: Map) -> int:
        """The slot of a map; a part of one has its own."""
        if isinstance(m.op, v.Scale):
            raise Refused(m.op.node, _NO_SCALE)
        if m not in self.slots:
            if isinstance(m.op, v.Entry) and m.is_whole:
                self.slots[m] = self.builder.load(m.channels)
            else:
                self.slots[m] = self.builder.slice(self._slot(Map.of(m.op)), m.begin, m.end)
        return self.slots[m]

    def _is_last(self, m: Map) -> bool:
        """Whether no later step reads a map or a part of it."""
        return sum(count for other, count in self.left.items() if other.op is m.op) == 1

    def _done(self, *maps: Map) -> None:
        """Say that a step has read these, each as often as it stands here."""
        for m in maps:
            m = self._behind(m)
            self.left[m] -= 1
            if self.left[m] <= 0 and not m.is_whole and m in self.slots:
                self.builder.release(self.slots[m])
            if not any(count > 0 for other, count in self.left.items() if other.op is m.op):
                whole = Map.of(m.op)
                if whole in self.slots:
                    self.builder.release(self.slots[whole])

    # Operations

    def _write(self, op: Operation) -> None:
        if isinstance(op, v.Scale):
            if self.squeeze is not op.pooled.op or not op.pooled.is_whole:
                raise Unfusable("other means are computed before it reads those of its map")
            op.excite(self.builder)
        elif isinstance(op, v.Pool):
            if self.squeeze is not op.pooled.op or not op.pooled.is_whole:
                raise Unfusable("other means are computed before it reads those of its map")
            self.builder.pool(op.channels)
        elif isinstance(op, v.Dense):
            self.builder.linear(op.layer)
        else:
            reads = op.reads()
            self.slots[Map.of(op)] = self._steps[type(op)](self, op)
            self._done(*reads)

    def _layer(self, op: v.Layer, residual: Map | None = None) -> int:
        if self._is_entry(op.source) and not op.layer.is_pointwise() and residual is None:
            try:
                return self.builder.dense_conv(op.layer)
            except Unfusable:
                pass  # of a loaded input, then
        if op.layer.is_pointwise():
            return self.builder.ghost(op.layer, None, None, *self._read(op, op.source, residual)[0], **self._options)
        (source,), _ = self._read(op, op.source, residual)
        if self._options.pop("scaled"):
            raise Refused(op.source.op.node, _NO_SCALE)
        return self.builder.conv(op.layer, source, **self._options)

    def _is_entry(self, m: Map) -> bool:
        """Whether it is the input, and nothing else reads it."""
        return isinstance(m.op, v.Entry) and m.is_whole and self._is_last(m) and not self.builder.steps

    def _read(self, op: Operation, source: Map, residual: Map | None) -> tuple[tuple[int], dict]:
        """Slot of the source, and the options of a step that may multiply by the excitation and add a residual."""
        scaled = isinstance(source.op, v.Scale) and source.is_whole
        if scaled and self.excitation is not source.op:
            raise Refused(source.op.node, "another excitation is computed before a step multiplies by it")
        slot = self._slot(self._behind(source))
        self._options = {"residual": -1 if residual is None else self._slot(residual), "scaled": scaled}
        return (slot,), self._options

    def _fused(self, op: v.Fused, residual: Map | None = None) -> int:
        block, slots = block_of(op.module), self._read(op, op.source, residual)[0]
        takes = isinstance(block, GhostModuleBlock)
        if not takes and self._options["scaled"]:
            raise Refused(op.source.op.node, _NO_SCALE)
        options = self._options if takes else {}
        kept = not self._is_last(self._behind(op.source))
        return block.lower_module(op.module, self.builder, *slots, keep_source=kept, **options)

    def _concat(self, op: v.Concat, residual: Map | None = None) -> int:
        if op.ghost is None:
            return self.builder.concat([self._slot(m) for m in op.sources])
        primary, cheap = op.ghost
        slots = self._read(op, primary.source, residual)[0]
        return self.builder.ghost(primary.layer, cheap.layer, op.channels, *slots, **self._options)

    def _add(self, op: v.Add) -> int:
        if op.into is None:
            return self.builder.add(self._slot(op.source), self._slot(op.other))
        try:
            return self._steps[type(op.into)](self, op.into, op.added())
        except Unfusable as error:
            raise Refused(op.into.node, str(error)) from None

    def _module(self, op: v.Module) -> int:
        return self.builder.add_module(op.module, self._slot(op.source))

    def _multiply(self, op: v.Multiply) -> int:
        return self.builder.multiply(self._slot(op.source), self._slot(op.gate))

    def _shuffle(self, op: v.Shuffle) -> int:
        return self.builder.shuffle(self._slot(op.source), op.groups)

    def _upsample(self, op: v.UpsampleLike) -> int:
        return self.builder.upsample_like(self._slot(op.source), self._slot(op.like))

    _steps: dict[type[Operation], Callable[..., int]] = {
        v.Layer: _layer, v.Fused: _fused, v.Concat: _concat, v.Add: _add, v.Module: _module, v.Multiply: _multiply,
        v.Shuffle: _shuffle, v.UpsampleLike: _upsample,
    }  # fmt: skip
