"""A Ghost module whose convolutions are sums of branches, as RepGhost's and GhostNetV3's in training.

In training one operator computes it; with DFC attention another one makes the gate. In eval it is one program, whose
branches are merged on every call, as by its own reparameterisation; in a frozen net they are merged once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..activations import GATES, OF_GATES, PRELU, Function, activate, apply_gate
from ..dispatch import Decision, plain, refuse_call, select
from ..nn import GhostBottleneckV3, GhostModuleV3, RepGhostBottleneck, RepGhostModule
from ..nn.running_statistics import update_all
from ..ops import branched_module_train as training
from ..ops import dfc_gate_train as gates
from ..ops.checks import autocast
from . import batch_norm
from .batch_norm import BATCH
from .behaviour import plain_forward
from .block import Block, Reads, Route
from .branched_recognition import recognise
from .builder import Builder
from .dfc_recognition import is_along_columns, is_along_rows, pool
from .errors import NotNow, Unfusable
from .ghost_call import gated
from .in_place import source_class
from .layers import ConvBNAct, LinearAct, gather, is_norm
from .merged_branches import merge
from .parameters import check_parameters
from .registry import register_block
from .structure import Structure

GATE = "dfc_gate_train"
_TENSORS = 7  # of one layer


@dataclass(frozen=True)
class BranchedParts:
    """The pieces of a Ghost module with branches.

    Attributes:
        primary_convs, primary_norms: paths of the 1x1 convolutions that are added, and of the BatchNorms behind them.
        cheap_convs, cheap_norms: as these, of the depthwise convolutions.
        scale: paths of a depthwise 1x1 convolution and its BatchNorm, a branch of the cheap sum, or none.
        identity: path of the BatchNorm of y1 itself, such a branch too, or None.
        primary_act, cheap_act: paths of the activations behind the sums, or None.
        primary_function, cheap_function: as of ``GhostParts``.
        out_channels: number of output channels. It is that of the cheap sum, or what is kept of the concatenation.
        attention, gate: as of ``DFCAttentionParts``; no path where there is no DFC attention.
        others: as of ``GhostParts``.
    """

    primary_convs: tuple[str, ...]
    primary_norms: tuple[str, ...]
    cheap_convs: tuple[str, ...]
    cheap_norms: tuple[str, ...]
    scale: tuple[str, ...] = ()
    identity: str | None = None
    primary_act: str | None = None
    cheap_act: str | None = None
    primary_function: Function | None = None
    cheap_function: Function | None = None
    out_channels: int = 0
    attention: tuple[str, ...] = ()
    gate: str = "identity"
    others: tuple[str, ...] = ()


class BranchedLayers(NamedTuple):
    """What was read of a module.

    Attributes:
        primary: the branches of the primary sum; the activation behind it is the first one's.
        cheap: likewise of the cheap sum: the depthwise ones, one that scales, and the identity, which has no
            convolution.
        scales, identity: whether the last two are there.
        attention: the layers that make the gate, or none.
        gate: its code.
        out_channels: of the output.
    """

    primary: tuple[ConvBNAct, ...]
    cheap: tuple[ConvBNAct | LinearAct, ...]
    scales: bool
    identity: bool
    attention: tuple[ConvBNAct, ...]
    gate: int
    out_channels: int

    def channels(self) -> int:
        """Of each branch."""
        return self.primary[0].conv.out_channels

    def layers(self) -> tuple[ConvBNAct | LinearAct, ...]:
        return *self.primary, *self.cheap, *self.attention

    def compose(self, x: torch.Tensor) -> torch.Tensor:
        """What the module computes, by functions of its modules' tensors, with no running statistics updated."""
        y = _sum(self.primary, x)
        out = _sum(self.cheap, y)
        if self.out_channels > self.channels():
            out = torch.cat([y, out], 1)[:, : self.out_channels]
        if not self.attention:
            return out
        y = pool(x)
        for layer in self.attention:
            y = _branch(layer, y)
        return gated(out, apply_gate(y, self.gate))


def _branch(layer: ConvBNAct | LinearAct, x: torch.Tensor) -> torch.Tensor:
    weight, bias, gamma, beta, mean, var, _ = layer.tensors()
    if layer.conv is not None:
        stride, padding, dilation, groups, _ = layer.geometry
        x = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    is_batch = batch_norm.statistics(layer.norm) is BATCH
    running = (None, None) if is_batch else (mean, var)
    return F.batch_norm(x, *running, gamma, beta, is_batch, 0.0, layer.norm.eps)


def _sum(layers: tuple, x: torch.Tensor) -> torch.Tensor:
    total = _branch(layers[0], x)
    for layer in layers[1:]:
        total = total + _branch(layer, x)
    return activate(total, layers[0].code, layers[0].slope(), layers[0].tensors()[6])


class BranchedPlan(NamedTuple):
    structure: Structure
    layers: BranchedLayers
    entries: tuple  # of all layers, seven each


class BranchedCall(NamedTuple):
    """What was decided for one call: what runs, the plan, the input as autocast wants it, and the tensors of each
    layer."""

    decision: Decision
    plan: BranchedPlan
    x: torch.Tensor
    tensors: list[tuple]

    def run(self) -> torch.Tensor:
        """The output; updates the running statistics."""
        layers, x = self.plan.layers, self.x
        count = len(layers.primary), len(layers.cheap)
        primary, cheap, attention = _cut(self.tensors, count)
        gate = self._gate(attention) if layers.attention else None
        depthwise = cheap[: len(cheap) - layers.scales - layers.identity]
        first, second = layers.primary[0], layers.cheap[0]
        result = training.train((
            x, gate, _joined(primary, 0), _joined(primary, 2), _joined(primary, 3), _joined(depthwise, 0),
            cheap[len(depthwise)][0] if layers.scales else None, _joined(cheap, 2), _joined(cheap, 3), len(primary),
            layers.identity, layers.out_channels, first.code, second.code, first.slope(), second.slope(),
            first.norm.eps, second.norm.eps,
        ))  # fmt: skip
        m, batches = layers.channels(), []
        for of, means, variances in (
            (layers.primary, result.primary_mean, result.primary_var),
            (layers.cheap, result.cheap_mean, result.cheap_var),
        ):
            batches += zip((layer.norm for layer in of), means.split(m), variances.split(m), strict=True)
        with torch.no_grad():
            update_all(batches, x.shape[0] * x.shape[2] * x.shape[3])
        return result.out

    def _gate(self, tensors: list[tuple]) -> torch.Tensor:
        layers = self.plan.layers
        parameters = [t for weight, _, gamma, beta, *_ in tensors for t in (weight, gamma, beta)]
        epsilons = (layer.norm.eps for layer in layers.attention)
        gate, *statistics = gates.train((self.x, *parameters, layers.gate, *epsilons))
        norms = [layer.norm for layer in layers.attention]
        with torch.no_grad():
            count = gate.shape[0] * gate.shape[2] * gate.shape[3]
            update_all(list(zip(norms, statistics[::2], statistics[1::2], strict=True)), count)
        return gate


def _cut(tensors: list[tuple], count: tuple[int, int]) -> tuple[list, list, list]:
    first, second = count[0], sum(count)
    return tensors[:first], tensors[first:second], tensors[second:]


def _joined(tensors: list[tuple], which: int) -> torch.Tensor | None:
    """One tensor of each branch, one behind the other."""
    found = [of_branch[which] for of_branch in tensors]
    return found[0] if len(found) == 1 or found[0] is None else torch.cat(found)


@register_block
class BranchedModuleBlock(Block):
    """A Ghost module whose convolutions are sums of branches: one operator in training, or two with DFC attention."""

    kind = "Ghost module with branches"
    Parts = BranchedParts
    priority = 2
    verifies_program = True

    @classmethod
    def paths(cls, parts: BranchedParts, owner: str) -> list[str]:
        if parts.gate not in GATES:
            raise ValueError(f"{owner}: parts.gate: expected one of {', '.join(GATES)}, got {parts.gate!r}")
        return [path for path in super().paths(parts, owner) if path is not parts.gate]

    @classmethod
    def examples(cls) -> dict[str, Callable[[], nn.Module]]:
        return {
            "V3": lambda: GhostModuleV3(8, 16),
            "V3, DFC attention": lambda: GhostModuleV3(8, 16, attention=True),
            "V3's bottleneck": lambda: GhostBottleneckV3(12, 24, 12),
            "RepGhost": lambda: RepGhostModule(8, 16),
            "RepGhost's bottleneck": lambda: RepGhostBottleneck(12, 24, 12, se_ratio=0.25),
        }

    @classmethod
    def match(cls, candidate: object) -> tuple[BranchedParts, Reads] | None:
        return recognise(cls, candidate)

    @classmethod
    def read(cls, structure: Structure, parts: BranchedParts) -> BranchedLayers:
        """The layers, whether an operator computes them or not."""

        def layers(convs: tuple, norms: tuple, act: str | None = None, function: Function | None = None) -> list:
            behind = [(act, function)] + [(None, None)] * len(convs)
            return [
                structure.conv_bn_act(conv, norm, *after, derived=True)
                for conv, norm, after in zip(convs, norms, behind, strict=False)
            ]

        for path in parts.others:
            structure.find(path)
        primary = layers(parts.primary_convs, parts.primary_norms, parts.primary_act, parts.primary_function)
        cheap = layers(parts.cheap_convs, parts.cheap_norms, parts.cheap_act, parts.cheap_function)
        cheap += layers(parts.scale[:1], parts.scale[1:])
        if parts.identity is not None:
            norm = structure.find(parts.identity)
            if not is_norm(norm, source_class(norm)):
                raise Unfusable(f"one of its normalisations is a {type(norm).__name__}, not a BatchNorm2d")
            cheap.append(LinearAct(None, norm, None, 0))
        attention = layers(parts.attention[::2], parts.attention[1::2])
        return BranchedLayers(
            tuple(primary),
            tuple(cheap),
            bool(parts.scale),
            parts.identity is not None,
            tuple(attention),
            GATES.index(parts.gate),
            parts.out_channels,
        )

    def describe(self, module: nn.Module, structure: Structure) -> BranchedPlan:
        layers = self.read(structure, self.parts_of(module))
        _refuse(layers)
        entries = tuple(entry for layer in layers.layers() for entry in layer.entries())
        return BranchedPlan(structure.close(), layers, entries)

    def channels(self, module: nn.Module) -> int:
        return self.current_plan(module).layers.primary[0].conv.in_channels

    def lower_module(
        self, module: nn.Module, builder: Builder, source: int, *, keep_source: bool = False
    ) -> int:  # fmt: skip
        layers = self.current_plan(module).layers
        primary, cheap, made = merge(layers.primary), merge(layers.cheap), []
        if layers.attention:
            gate = builder.add_module(nn.AvgPool2d(2), source)
            product, rows, columns = layers.attention
            for layer in (product, rows, columns._replace(code=OF_GATES[layers.gate])):
                before, gate = gate, builder.conv(layer, gate)
                builder.release(before)
        m, kept = layers.channels(), layers.out_channels
        if kept == m:
            out = builder.chain([primary, cheap], source)
        else:
            out = builder.ghost(primary, cheap, None if kept == 2 * m else kept, source)
        if layers.attention:
            made = [gate, out]
            out = builder.multiply(out, gate)
        builder.release(*made, *[] if keep_source else [source])
        return out

    def _training_route(self, module: nn.Module, x: torch.Tensor) -> Route:
        if torch.compiler.is_compiling():  # the compiler fuses what is between the convolutions
            return Route(plain(), lambda: plain_forward(module, x))
        return self.route_without_program(module, x, None)

    def route_without_program(self, module: nn.Module, x: torch.Tensor, why: str | None) -> Route:
        try:
            if why is not None:
                raise NotNow(why)
            call = self.choose(module, x)
        except Unfusable as reason:
            why = str(reason)
            return Route(plain(why), lambda: plain_forward(module, x))
        return Route(call.decision, call.run)

    def choose(self, module: nn.Module, x: torch.Tensor) -> BranchedCall:
        """The operators for x now; raises ``Unfusable``."""
        why = refuse_call(x)
        if why is not None:
            raise NotNow(why)
        plan = self.current_plan(module)
        layers, (seen,) = plan.layers, autocast(x)
        for layer in layers.layers():
            if batch_norm.statistics(layer.norm) is not BATCH:
                raise NotNow("one of its BatchNorms uses running statistics in training")
        found = gather(plan.entries)
        tensors = [found[i : i + _TENSORS] for i in range(0, len(found), _TENSORS)]
        _check(layers, tensors, seen)
        decision = select(training.NAME, seen, layers.cheap[0].kernel()[0])
        if decision.is_reference:
            raise NotNow(decision.why)
        if layers.attention:
            decision = replace(decision, runs=f"{decision.runs}, {select(GATE, seen).runs}")
        return BranchedCall(decision, plan, seen, tensors)


def _refuse(layers: BranchedLayers) -> None:
    """Raise ``Unfusable`` where no operator computes these layers."""
    m = layers.channels()
    for layer in layers.layers():
        if layer.conv is not None and layer.conv.bias is not None:
            raise Unfusable("one of its convolutions has a bias beside its BatchNorm, which the operator does not take")
    for layer in layers.primary:
        if not layer.is_pointwise():
            raise Unfusable("one of its primary convolutions is not a 1x1 convolution of stride 1")
    for layer in layers.cheap:
        if isinstance(layer, ConvBNAct) and not layer.is_cheap(m):
            raise Unfusable(layer.why_not_cheap(m))
    for of in (layers.primary, layers.cheap):
        if len({layer.norm.eps for layer in of}) > 1:
            raise Unfusable("the BatchNorms of its branches add different eps")
        if len({layer.norm.affine for layer in of}) > 1:
            raise Unfusable("some BatchNorms of its branches have weights and others have none")
        if of[0].code == PRELU:
            raise Unfusable("a PReLU stands behind the sum of its branches, which the operator does not take")
    if layers.attention:
        product, rows, columns = layers.attention
        if not (product.is_pointwise() and is_along_rows(rows.conv) and is_along_columns(columns.conv)):
            raise Unfusable("its gate is not made by a 1x1 convolution, one along rows and one along columns")


def _check(layers: BranchedLayers, tensors: list[tuple], x: torch.Tensor) -> None:
    """Refuse what PyTorch would refuse, so that it does, and parameters that are not plain tensors."""
    m, channels = layers.channels(), x.shape[1]
    check_parameters(x, [t[0] for t in tensors], [v for t in tensors for v in t[2:]])
    if x.shape[0] * x.shape[2] * x.shape[3] <= 1:
        raise NotNow("batch statistics need more than one value a channel")
    if layers.attention and (min(x.shape[2:]) < 2 or x.shape[0] * (x.shape[2] // 2) * (x.shape[3] // 2) <= 1):
        raise NotNow("its input has too few pixels for the gate")
    count = len(layers.primary), len(layers.cheap)
    for of in _cut(tensors, count)[:2]:
        if any(len({t[which] is None for t in of}) > 1 for which in (2, 3)):
            raise NotNow("some BatchNorms of its branches have weights and others have none")
    for i, (layer, (weight, _, *vectors, _)) in enumerate(zip(layers.layers(), tensors, strict=True)):
        of_gate = i >= sum(count)
        made = layers.out_channels if of_gate else m
        inputs = channels if i < count[0] or i == sum(count) else 1
        if weight is not None and tuple(weight.shape) != (made, inputs, *layer.kernel()):
            raise NotNow("the weight of one of its branches does not have its shape")
        for t in vectors:
            if t is not None and tuple(t.shape) != (made,):
                raise NotNow("a BatchNorm of one of its branches does not have a value a channel")
