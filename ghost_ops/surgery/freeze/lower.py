"""From operations to the steps of a program: what is fused into one step, in which order, in which slots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import fx, nn

from ...activations import NONE, code_of
from ...backends.registry import CHEAP_KERNELS
from ...fused.behaviour import block_of
from ...fused.builder import Builder
from ...fused.errors import Unfusable
from ...fused.ghost_module import GhostModuleBlock
from ...fused.layers import LinearAct, activation_code
from . import values as v
from .values import Features, Map, Operation


class Refused(Exception):
    """A node that no step computes where it stands, and why."""

    def __init__(self, node: fx.Node | None, why: str) -> None:
        super().__init__(why)
        self.node, self.why = node, why


def lower(
    ops: Sequence[Operation], outputs: Sequence[Map | Features]
) -> tuple[Builder, list[Map | Features]]:  # fmt: skip
    """The steps of operations, and the outputs in the order in which the program returns them.

    Args:
        ops: in an order in which they can be computed, the first an ``Entry``.
        outputs: what the program is to return.

    Raises:
        Refused: one of them must be left to PyTorch.
    """
    live = _live(ops, outputs)
    _Fusion(live, outputs).fuse()
    lowering = _Lowering(live, outputs)
    return lowering.builder, lowering.write()


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
        self.outputs = {out.op for out in outputs}
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
            elif isinstance(op, v.Multiply) and _is_nearest(op.gate):
                self._forget(op.gate)
                op.gate = op.gate.op.source  # which the multiplication brings to the size of the map
                self.uses[op.gate.op] += 1
        for op in [op for op in self.ops if isinstance(op, v.Flatten)]:
            self._as_linear(op)
        for op in self.ops:
            if isinstance(op, v.Add):
                op.into = next((m.op for m in (op.source, op.other) if m.is_whole and self._takes_residual(m.op)), None)
        for op in self.ops:
            if isinstance(op, v.Module) and self._is_activation_of_sum(op):
                op.of_sum = op.source.op
        for at, op in enumerate(self.ops):
            if isinstance(op, v.Scale):
                op.is_step = not self._is_multiplied_by_readers(at)
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

    def _as_linear(self, op: v.Flatten) -> None:
        """Let a 1x1 convolution of a single pixel, of which only this is read, come after it as a linear layer, which
        reads its weights once for all images."""
        conv = op.source.op
        if not isinstance(conv, v.Layer) or not conv.layer.is_pointwise() or op.source != Map.of(conv):
            return
        if self.uses[conv] > 1 or op in self.outputs or op.channels != conv.channels:
            return
        layer = v.Dense(conv.node, conv.channels, op, LinearAct(*conv.layer[:4]))
        for reader in self.ops:
            if isinstance(reader, v.OfFeatures) and reader.features is op:
                reader.features = layer
        op.source, op.channels = conv.source, conv.source.channels
        self.ops.insert(self.ops.index(op) + 1, layer)
        self.ops.remove(conv)

    def _takes_residual(self, op: Operation) -> bool:
        """Whether a step makes this map only to be added to another, and can add it itself."""
        if self.uses[op] != 1:
            return False
        if isinstance(op, v.Layer):
            return op.layer.is_pointwise() or not op.is_depthwise()
        if isinstance(op, v.Concat):
            return op.ghost is not None
        return _is_ghost(op)

    def _is_activation_of_sum(self, op: v.Module) -> bool:
        """Whether a dense convolution's step computes the sum with its map and the activation of the sum."""
        total = op.source.op
        if code_of(op.module) is None or not isinstance(total, v.Add) or not op.source.is_whole:
            return False
        layer = total.into
        dense = isinstance(layer, v.Layer) and not layer.layer.is_pointwise() and layer.layer.code == NONE
        return dense and self.uses[total] == 1

    def _is_multiplied_by_readers(self, at: int) -> bool:
        """Whether all that read the scale at this place multiply by its excitation while that is there."""
        scale, whole = self.ops[at], Map.of(self.ops[at])
        readers = [i for i, op in enumerate(self.ops) if any(m.op is scale for m in _all_reads(op))]
        if scale in self.outputs or not all(_multiplies(self.ops[i], whole) for i in readers):
            return False
        between = self.ops[at + 1 : max(readers, default=at)]
        return not any(isinstance(op, v.Scale) or (isinstance(op, v.Fused) and not _is_ghost(op)) for op in between)


def _is_nearest(gate: Map) -> bool:
    return isinstance(gate.op, v.UpsampleLike) and gate.op.align_corners is None and gate.is_whole


def _is_ghost(op: Operation) -> bool:
    return isinstance(op, v.Fused) and isinstance(block_of(op.module), GhostModuleBlock)


def _multiplies(op: Operation, scaled: Map) -> bool:
    """Whether the step of an operation multiplies a map that it reads by an excitation, and reads it nowhere else."""
    if isinstance(op, v.Add):
        return op.into is not None and op.added() != scaled and _multiplies(op.into, scaled)
    if isinstance(op, v.Layer):
        return op.source == scaled and op.layer.is_pointwise()
    if isinstance(op, v.Concat):
        return op.ghost is not None and op.ghost[0].source == scaled
    return _is_ghost(op) and op.source == scaled


def _all_reads(op: Operation) -> list[Map]:
    """The maps that it reads, that of a scale and those whose means it takes included."""
    if isinstance(op, v.Scale):
        return [op.source, op.pooled]
    return [op.pooled] if isinstance(op, v.Pool) else op.reads()


def _absorbed(op: Operation) -> tuple[Operation, ...]:
    if isinstance(op, v.Concat):
        return op.ghost or ()
    if isinstance(op, v.Module):
        return () if op.of_sum is None else (op.of_sum,)
    return (op.into,) if isinstance(op, v.Add) and op.into is not None else ()


class _Lowering:
    """Writes the steps, one operation after the other."""

    def __init__(self, ops: Sequence[Operation], outputs: Sequence[Map | Features]) -> None:
        self.ops, self.outputs = ops, outputs
        self.builder = Builder()
        self.slots: dict[Map, int] = {}  # of maps and of their parts
        pooled = [op.pooled for op in ops if isinstance(op, (v.Scale, v.Pool))]
        self.left = Counter(self._behind(m) for m in [*(m for op in ops for m in op.reads()), *pooled])
        self.left.update(out for out in outputs if isinstance(out, Map))
        self.squeezed = {m.op for m in pooled if m.is_whole}
        self.squeeze: Operation | None = None  # the operation whose map's means are the squeeze
        self.features = {out.op: out for out in outputs if isinstance(out, Features)}
        self.returned: list[Map | Features] = []

    def write(self) -> list[Map | Features]:
        """The outputs in the order in which they are returned: features as they are made, then maps."""
        for op in self.ops:
            if isinstance(op, (v.Pool, v.Flatten)):
                self._write_features(op)
            elif not isinstance(op, (v.Entry, v.OfFeatures)):
                self._guarded(op)
        returned = self.returned
        maps = [out for out in self.outputs if isinstance(out, Map)]
        for slot in [self._slot(out) for out in maps]:  # slices come before the first result
            self.builder.store(slot)
        return returned + maps

    def _write_features(self, begin: Operation) -> None:
        """The features of a map, and after them the layers that read them: one row of layers after another, each of
        which begins with the same features anew."""
        readers = [op for op in self.ops if isinstance(op, v.OfFeatures) and op.features is begin]
        for first in readers or [None]:
            self._guarded(begin)
            self._store_features(begin)
            op = first
            while op is not None:
                self._guarded(op)
                self._store_features(op)
                op, *others = [*(o for o in self.ops if isinstance(o, v.OfFeatures) and o.features is op), None]
                if op is not None and others[0] is not None:
                    raise Refused(others[0].node, "another layer has taken the features that it reads")
        self._done(begin.pooled if isinstance(begin, v.Pool) else begin.source)

    def _store_features(self, op: Operation) -> None:
        """Return the features as they are now, where they are a result."""
        if op in self.features and self.features[op] not in self.returned:
            if len(self.outputs) > 1:
                self.builder.store_features(op.channels)
            self.returned.append(self.features[op])

    def _guarded(self, op: Operation) -> None:
        before = len(self.builder.steps)
        try:
            self._write(op)
        except Unfusable as error:
            raise Refused(op.node, str(error)) from None
        steps = self.builder.steps
        makes = len(steps) > before and getattr(steps[-1], "out", -1) == self.slots.get(Map.of(op), -2)
        if op in self.squeezed and makes and hasattr(steps[-1], "squeeze"):
            steps[-1] = replace(steps[-1], squeeze=True)
        for step in steps[before:]:
            if getattr(step, "squeeze", False):
                self.squeeze = op if makes and step is steps[-1] else None

    # Slots

    def _behind(self, m: Map) -> Map:
        """The map that is read where this is: its source, of a scale that has no step."""
        while isinstance(m.op, v.Scale) and not m.op.is_step:
            m = m.op.source
        return m

    def _slot(self, m: Map) -> int:
        """The slot of a map; a part of one has its own."""
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
            self._squeeze(op.pooled)
            self._done(op.pooled)
            op.excite(self.builder)
            if op.is_step:
                self.slots[Map.of(op)] = self.builder.scale(self._slot(op.source))
                self._done(op.source)
        elif isinstance(op, v.Pool):
            self._squeeze(op.pooled)
            self.builder.pool(op.channels)
        elif isinstance(op, v.Flatten):
            self.builder.flatten(self._slot(op.source), op.channels)
        elif isinstance(op, v.Dense):
            self.builder.linear(op.layer)
        elif isinstance(op, v.ScaleFeatures):
            self.builder.scale_features(op.layer)
        else:
            reads = op.reads()
            self.slots[Map.of(op)] = self._steps[type(op)](self, op)
            self._done(*reads)

    def _squeeze(self, m: Map) -> None:
        """Let the means of a map be the squeeze, by a step of its own where they are not yet."""
        if self.squeeze is not m.op or not m.is_whole:
            self.builder.squeeze(self._slot(m))
            self.squeeze = m.op if m.is_whole else None

    def _layer(self, op: v.Layer, residual: Map | None = None, act: nn.Module | None = None) -> int:
        """A convolution; ``act`` is the activation of the sum with the residual."""
        if op.is_depthwise() and not op.layer.is_pointwise():
            return self.builder.conv(op.layer, self._slot(op.source))
        if not op.layer.is_pointwise() and self._is_entry(op.source):
            return self.builder.dense_conv(op.layer)
        slot = self._read(op.source, residual)
        if op.layer.is_pointwise():
            return self.builder.ghost(op.layer, None, None, slot, **self._options)
        self._options.pop("scaled")
        layer = op.layer if act is None else op.layer._replace(act=act, code=activation_code(act))
        return self.builder.dense_conv(layer, slot, **self._options, residual_first=act is not None)

    def _is_entry(self, m: Map) -> bool:
        """Whether it is the input, and nothing else reads it."""
        return isinstance(m.op, v.Entry) and m.is_whole and self._is_last(m) and not self.builder.steps

    def _read(self, source: Map, residual: Map | None) -> int:
        """The slot of a source; ``_options`` of its step, which may multiply by the excitation and add a residual."""
        scaled = isinstance(source.op, v.Scale) and not source.op.is_step
        slot = self._slot(self._behind(source))
        self._options = {"residual": -1 if residual is None else self._slot(residual), "scaled": scaled}
        return slot

    def _fused(self, op: v.Fused, residual: Map | None = None) -> int:
        block, slot = block_of(op.module), self._read(op.source, residual)
        options = self._options if _is_ghost(op) else {}
        kept = not self._is_last(self._behind(op.source))
        return block.lower_module(op.module, self.builder, slot, keep_source=kept, **options)

    def _concat(self, op: v.Concat, residual: Map | None = None) -> int:
        if op.ghost is None:
            return self.builder.concat([self._slot(m) for m in op.sources])
        primary, cheap = op.ghost
        slot = self._read(primary.source, residual)
        return self.builder.ghost(primary.layer, cheap.layer, op.channels, slot, **self._options)

    def _add(self, op: v.Add, *act: nn.Module) -> int:
        if op.into is None:
            return self.builder.add(self._slot(op.source), self._slot(op.other))
        try:
            return self._steps[type(op.into)](self, op.into, op.added(), *act)
        except Unfusable as error:
            raise Refused(op.into.node, str(error)) from None

    def _module(self, op: v.Module) -> int:
        if op.of_sum is not None:
            return self._add(op.of_sum, op.module)
        return self.builder.add_module(op.module, self._slot(op.source))

    def _multiply(self, op: v.Multiply) -> int:
        return self.builder.multiply(self._slot(op.source), self._slot(op.gate))

    def _shuffle(self, op: v.Shuffle) -> int:
        return self.builder.shuffle(self._slot(op.source), op.groups)

    def _upsample(self, op: v.UpsampleLike) -> int:
        return self.builder.upsample_like(self._slot(op.source), self._slot(op.like), op.align_corners)

    _steps: dict[type[Operation], Callable[..., int]] = {
        v.Layer: _layer, v.Fused: _fused, v.Concat: _concat, v.Add: _add, v.Module: _module, v.Multiply: _multiply,
        v.Shuffle: _shuffle, v.UpsampleLike: _upsample,
    }  # fmt: skip
