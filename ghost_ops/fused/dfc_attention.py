"""A Ghost module with DFC attention, as of GhostNetV2: its output times a gate that is made at half the size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import nn

from ..activations import GATES, OF_GATES, apply_gate
from ..dispatch import Decision, plain, refuse_call, select
from ..nn import GhostModuleV2
from ..nn.running_statistics import update_all
from ..ops import dfc_gate_train as gates
from ..ops.checks import autocast
from . import batch_norm
from .batch_norm import BATCH
from .behaviour import plain_forward
from .block import Reads, Route
from .builder import Builder
from .convolutions import decide_convolution, run_convolution, run_convolution_with
from .dfc_recognition import is_along_columns, is_along_rows, pool, recognise
from .errors import NotNow, Unfusable
from .ghost_call import STATISTICS, GhostCall, GhostPlan, choose_ghost
from .ghost_module import GhostModuleBlock, GhostParts
from .layers import ConvBNAct, gather
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
        others: as for the Ghost module; the gate and the pooling are among them where they are modules.
    """

    attention: tuple[str, ...] = ()
    gate: str = "sigmoid"


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

    def output_size(self) -> tuple[int, int]:
        """As of ``GhostCall``."""
        return self.ghost.output_size()

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
            y = pool(x)
            for i, (layer, uses_batch) in enumerate(zip(self.plan.layers, self.batch, strict=True)):
                found = of_gate[_TENSORS * i : _TENSORS * (i + 1)]
                y = run_convolution_with(decide_convolution(layer, y), y, found, uses_batch)
            gate = apply_gate(y, self.plan.gate)
        x, of_ghost = autocast(x)[0], tensors[:_OF_GHOST]
        return self.ghost.run_again(x, of_ghost, statistics[:STATISTICS], need_output, gate)

    def _gate(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple]:
        """The gate, and its batch statistics or as many None; updates the running ones."""
        if not self.is_operator:
            y = pool(x)
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
    def examples(cls) -> dict[str, Callable[[], nn.Module]]:
        return {
            "V2": lambda: GhostModuleV2(8, 20),
        }

    @classmethod
    def match(cls, candidate: object) -> tuple[DFCAttentionParts, Reads] | None:
        return recognise(cls, candidate)

    def describe(self, module: nn.Module, structure: Structure) -> AttentionPlan:
        parts = self.parts_of(module)
        layers = tuple(structure.conv_bn_acts(parts.attention))
        if len(layers) != 3 or any(layer.act is not None for layer in layers):
            raise Unfusable("its gate is not made by three convolutions with nothing but BatchNorms between them")
        product, rows, columns = layers
        if not (product.is_pointwise() and is_along_rows(rows.conv) and is_along_columns(columns.conv)):
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
