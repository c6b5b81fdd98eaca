"""A Ghost module with DFC attention, as of GhostNetV2: its output times a gate that is made at half the size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..activations import GATES, OF_GATES, apply_gate
from ..dispatch import Decision, plain, refuse_call, select
from ..nn.running_statistics import update_all
from ..ops import dfc_gate_train as gates
from ..ops.checks import autocast
from . import batch_norm
from .batch_norm import BATCH
from .behaviour import plain_forward
from .block import Reads, Route
from .builder import Builder
from .convolutions import decide_convolution, run_convolution, run_convolution_with
from .errors import NotNow, Unfusable
from .ghost_call import STATISTICS, GhostCall, GhostPlan, choose_ghost, gated
from .ghost_module import GhostModuleBlock, GhostParts
from .layers import ConvBNAct, gather, is_activation, take_layer
from .parameters import check_parameters
from .registry import register_block
from .structure import Structure

GATE = "dfc_gate_train"
_OF_GHOST = 14  # tensors that a Ghost module reads
_TENSORS = 7  # of one convolution


@dataclass(frozen=True)
class DFCAttentionParts(GhostParts):
    """The pieces of a Ghost module with DFC attention: those of the Ghost module, and of the gate.

    Attributes:
        attention: paths of the gate's convolutions and BatchNorms in order: a 1x1 convolution, a depthwise one along
            rows, and one along columns, each of them with the BatchNorm that may follow it.
        gate: ``sigmoid`` or another of ``GATES``: not in a state_dict, so the recogniser says.
        others: paths of further modules that a forward calls (pooling, gate): fused code skips them, so that they must
            carry no hooks.
    """

    attention: tuple[str, ...] = ()
    gate: str = "sigmoid"
    others: tuple[str, ...] = ()


class AttentionPlan(NamedTuple):
    structure: Structure
    ghost: GhostPlan
    layers: tuple[ConvBNAct, ...]  # of the gate: the product, along rows, along columns
    gate: int
    entries: tuple  # as of ``GhostPlan``, of the gate


class AttentionCall(NamedTuple):
    """What was decided for one call. It can be recomputed as a ``GhostCall`` can.

    Attributes:
        decision: what runs, of the Ghost module and of the gate.
        plan: what was read from the module.
        ghost: the call of the Ghost module.
        x: the input, as the module was given it.
        tensors: parameters and statistics, seven for each of the gate's convolutions.
        batch: for each of them whether its BatchNorm uses batch statistics.
        is_operator: whether one operator makes the gate; else its layers run in turn.
    """

    decision: Decision
    plan: AttentionPlan
    ghost: GhostCall
    x: torch.Tensor
    tensors: tuple
    batch: tuple[bool, ...]
    is_operator: bool

    def without_tensors(self) -> AttentionCall:
        return self._replace(ghost=self.ghost.without_tensors(), x=None, tensors=())

    def read(self) -> tuple:
        """As of ``GhostCall``: the Ghost module's first."""
        found = list(self.tensors)
        for i, uses_batch in enumerate(self.batch):
            if uses_batch:
                found[_TENSORS * i + 4 : _TENSORS * i + 6] = None, None
        return *self.ghost.read(), *found

    def run(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple]:
        """The output for x, and the batch statistics of the Ghost module and of the gate, None where none were
        taken."""
        gate, of_gate = self._gate(x)
        out, of_ghost = self.ghost.run(autocast(x)[0], gate)
        return out, (*of_ghost, *of_gate)

    def run_again(self, x: torch.Tensor, tensors: list, statistics: list, need_output: bool) -> torch.Tensor:
        """As of ``GhostCall``."""
        of_gate = tuple(tensors[_OF_GHOST:])
        if self.is_operator:
            gate = gates.recompute(self._arguments(autocast(x)[0], of_gate), tuple(statistics[STATISTICS:]))
        else:
            y = _pool(x)
            for i, (layer, uses_batch) in enumerate(zip(self.plan.layers, self.batch, strict=True)):
                found = of_gate[_TENSORS * i : _TENSORS * (i + 1)]
                y = run_convolution_with(decide_convolution(layer, y), y, found, uses_batch)
            gate = apply_gate(y, self.plan.gate)
        x, of_ghost = autocast(x)[0], tensors[:_OF_GHOST]
        return self.ghost.run_again(x, of_ghost, statistics[:STATISTICS], need_output, gate)

    def _gate(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple]:
        """The gate, and its batch statistics or as many None; updates the running ones."""
        if not self.is_operator:
            y = _pool(x)
            for layer in self.plan.layers:
                y = run_convolution(decide_convolution(layer, y), y)
            return apply_gate(y, self.plan.gate), (None,) * (2 * len(self.batch))
        gate, *statistics = gates.train(self._arguments(autocast(x)[0], self.tensors))
        norms = [layer.norm for layer in self.plan.layers]
        with torch.no_grad():
            count = gate.shape[0] * gate.shape[2] * gate.shape[3]
            update_all(list(zip(norms, statistics[::2], statistics[1::2], strict=True)), count)
        return gate, tuple(statistics)

    def _arguments(self, x: torch.Tensor, tensors: tuple) -> tuple:
        """The arguments of ``dfc_gate_train`` in the order of its schema."""
        layers = [tensors[i : i + _TENSORS] for i in range(0, len(tensors), _TENSORS)]
        parameters = [t for weight, _, gamma, beta, *_ in layers for t in (weight, gamma, beta)]
        return x, *parameters, self.plan.gate, *(layer.norm.eps for layer in self.plan.layers)


def _pool(x: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(x, 2, 2)


@register_block
class DFCAttentionBlock(GhostModuleBlock):
    """A Ghost module with DFC attention: a program, or in training two operators, one that makes the gate and one for
    the rest."""

    kind = "Ghost module with DFC attention"
    trains_as_program = False
    verifies_program = True
    Parts = DFCAttentionParts
    priority = 1

    @classmethod
    def paths(cls, parts: DFCAttentionParts, owner: str) -> list[str]:
        if parts.gate not in GATES:
            raise ValueError(f"{owner}: parts.gate: expected one of {', '.join(GATES)}, got {parts.gate!r}")
        return [path for path in super().paths(parts, owner) if path is not parts.gate]

    @classmethod
    def match(cls, candidate: object) -> tuple[DFCAttentionParts, Reads] | None:
        convs = [m for m in candidate.module.modules() if type(m) is nn.Conv2d]
        if len(convs) != 5 or sum(map(_is_along_rows, convs)) != 1 or sum(map(_is_along_columns, convs)) != 1:
            return None
        channels = next((conv.in_channels for conv in convs if conv.groups == 1), 1)
        probe = candidate.probe(channels)
        theirs, calls = probe.observe()
        probe.refuse()
        kept = theirs[0].shape[1]
        found = [
            (split, gate)
            for split in _splits(calls)
            for gate in GATES
            if probe.computes(_compose(*split[:2], kept, gate))
        ]
        wrong = f"it does not compute a Ghost module times a gate, one of {', '.join(GATES)}, of half its size"
        if len({gate for _, gate in found}) != 1:
            raise Unfusable(probe.explain(wrong))
        ((ghost, gate_layers, others), gate) = found[0]
        probe.confirm(_compose(ghost, gate_layers, kept, gate), wrong, cls)
        paths = [None if call is None else call.path for layer in ghost for call in layer]
        computed = sum(layer[0].module.out_channels for layer in ghost)
        parts = DFCAttentionParts(
            *paths,
            out_channels=None if kept == computed else kept,
            attention=tuple(call.path for layer in gate_layers for call in layer if call is not None),
            gate=gate,
            others=tuple(dict.fromkeys(call.path for call in others)),
        )
        return parts, candidate.reads(probe)

    def describe(self, module: nn.Module, structure: Structure) -> AttentionPlan:
        parts = self.parts_of(module)
        layers = tuple(structure.conv_bn_acts(parts.attention))
        for path in parts.others:
            structure.find(path)
        if len(layers) != 3 or any(layer.act is not None for layer in layers):
            raise Unfusable("its gate is not made by three convolutions with nothing but BatchNorms between them")
        product, rows, columns = layers
        if not (product.is_pointwise() and _is_along_rows(rows.conv) and _is_along_columns(columns.conv)):
            raise Unfusable("its gate is not made by a 1x1 convolution, one along rows and one along columns")
        ghost = self.describe_ghost(parts, structure)
        entries = tuple(entry for layer in layers for entry in layer.entries())
        return AttentionPlan(ghost.structure, ghost, layers, GATES.index(parts.gate), entries)

    def route_without_program(self, module: nn.Module, x: torch.Tensor, why: str | None) -> Route:
        try:
            call = self.choose(module, x)
        except Unfusable as reason:
            why = str(reason)
            return Route(plain(why), lambda: plain_forward(module, x))
        return Route(call.decision, lambda: call.run(x)[0])

    def channels(self, module: nn.Module) -> int:
        return self.current_plan(module).ghost.primary.conv.in_channels

    def lower_module(
        self,
        module: nn.Module,
        builder: Builder,
        source: int,
        *,
        keep_source: bool = False,
        residual: int = -1,
        scaled: bool = False,
        squeeze: bool = False,
    ) -> int:
        plan = self.current_plan(module)
        if scaled:
            raise Unfusable("no program scales the input of DFC attention")
        product, rows, columns = plan.layers
        gate = builder.add_module(nn.AvgPool2d(2), source)
        for layer in (product, rows, columns._replace(code=OF_GATES[plan.gate])):
            before, gate = gate, builder.conv(layer, gate)
            builder.release(before)
        out = builder.ghost(plan.ghost.primary, plan.ghost.cheap, plan.ghost.out_channels, source)
        made = [gate, out]
        out = builder.multiply(out, gate, squeeze=squeeze and residual < 0)
        if residual >= 0:
            made.append(out)
            out = builder.add(out, residual, squeeze=squeeze)
        builder.release(*made, *[] if keep_source else [source])
        return out

    def choose(self, module: nn.Module, x: torch.Tensor) -> AttentionCall:
        """The operators for x now; raises ``Unfusable``."""
        why = refuse_call(x)
        if why is not None:
            raise NotNow(why)
        plan = self.current_plan(module)
        (seen,) = autocast(x)
        batch = tuple([batch_norm.statistics(layer.norm) is BATCH for layer in plan.layers])
        tensors = gather(plan.entries)
        values = x.shape[0] * (x.shape[2] // 2) * (x.shape[3] // 2)
        if x.shape[2] < 2 or x.shape[3] < 2 or (values <= 1 and any(batch)):
            raise NotNow("its input has too few pixels for the gate")
        ghost = choose_ghost(plan.ghost, x)
        _check(plan, tensors, seen, ghost)
        decision = select(GATE, seen)
        biases = any(t is not None for t in tensors[1::_TENSORS])
        is_operator = all(batch) and not biases and not decision.is_reference
        how = f"{GATE} on {decision.backend}" if is_operator else "a gate of its layers in turn"
        decision = replace(ghost.decision, runs=f"{ghost.decision.runs}, {how}")
        return AttentionCall(decision, plan, ghost, x, tensors, batch, is_operator)

    def with_epilogues(self, module: nn.Module, x: torch.Tensor, *_: object) -> None:
        return None


def _check(plan: AttentionPlan, tensors: tuple, seen: torch.Tensor, ghost: GhostCall) -> None:
    """Refuse what PyTorch would refuse, so that it does, and parameters that are not plain tensors."""
    weights = tensors[::_TENSORS]
    check_parameters(seen, (*weights, *tensors[1::_TENSORS]), [t for i, t in enumerate(tensors) if i % _TENSORS > 1])
    of_ghost, kept = ghost.tensors, plan.ghost.out_channels
    made = of_ghost[0].shape[0] + of_ghost[7].shape[0] if kept is None else kept
    for i, (layer, weight) in enumerate(zip(plan.layers, weights, strict=True)):
        inputs = seen.shape[1] if i == 0 else 1
        if weight.shape != (made, inputs, *layer.kernel()):
            raise NotNow("the weight of one of its gate's convolutions does not have its shape")
    for i, t in enumerate(tensors):
        if i % _TENSORS and t is not None and t.shape != (made,):
            raise NotNow("one of its gate's biases or statistics does not have a value a channel")


def _is_along_rows(conv: nn.Conv2d) -> bool:
    return _is_along(conv, 1)


def _is_along_columns(conv: nn.Conv2d) -> bool:
    return _is_along(conv, 0)


def _is_along(conv: nn.Conv2d, axis: int) -> bool:
    """Whether it is a depthwise convolution along one axis, of an odd size, that keeps the size of the map."""
    taps, one = conv.kernel_size[axis], conv.kernel_size[1 - axis]
    padding = tuple(taps // 2 if i == axis else 0 for i in (0, 1))
    same = conv.padding in (padding, "same") and conv.stride == conv.dilation == (1, 1)
    depthwise = conv.groups == conv.in_channels == conv.out_channels
    return taps > 1 and taps % 2 == 1 and one == 1 and same and depthwise


def _splits(calls: list) -> list[tuple[list, list, list]]:
    """What the calls may be: the layers of the Ghost module, those of the gate, each as convolution, BatchNorm and
    activation, and further calls. An activation at the end may be the gate, or belong to the layer before it."""
    splits = []
    for last in (1, 0):
        if last and not is_activation(calls[-1].module):
            continue
        items, others, layers = list(calls[: len(calls) - last]), list(calls[len(calls) - last :]), []
        try:
            while items:
                if type(items[0].module) is nn.Conv2d:
                    layers.append(take_layer(items, lambda call: call.module).slots())
                elif isinstance(items[0].module, (nn.AvgPool2d, nn.Upsample)) or is_activation(items[0].module):
                    others.append(items.pop(0))
                else:
                    raise Unfusable(f"it also calls {items[0].path!r}, a {type(items[0].module).__name__}")
        except Unfusable:
            if last == 0 and not splits:
                raise
            continue
        at = next((i for i, (conv, *_) in enumerate(layers) if _is_along_rows(conv.module)), 0)
        if len(layers) == 5 and at > 0 and _is_along_columns(layers[min(at + 1, 4)][0].module):
            splits.append((layers[: at - 1] + layers[at + 2 :], layers[at - 1 : at + 2], others))
    return splits


def _compose(ghost: list, gate_layers: list, kept: int, gate: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The computation put together from the calls of the children."""

    def run(layer: tuple, x: torch.Tensor) -> torch.Tensor:
        for call in layer:
            x = x if call is None else call.module(x)
        return x

    def compute(x: torch.Tensor) -> torch.Tensor:
        y = _pool(x)
        for layer in gate_layers:
            y = run(layer, y)
        primary = run(ghost[0], x)
        out = torch.cat([primary, run(ghost[1], primary)], 1)[:, :kept]
        return gated(out, apply_gate(y, GATES.index(gate)))

    return compute
