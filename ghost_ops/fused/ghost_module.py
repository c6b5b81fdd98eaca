"""``FusedGhostModule``: a Ghost module whose convolutions, BatchNorms, activations and concatenation run fused."""

from __future__ import annotations

import functools
from abc import ABCMeta
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..activations import Function
from ..dispatch import plain, refuse_call
from ..nn import GhostConv2d, GhostModule, GhostModuleV3
from .behaviour import BuiltFused, plain_forward
from .block import Block, Reads, Route, any_requires_grad
from .builder import Builder
from .errors import NotNow, Unfusable
from .examples import YoloGhostConv, merged
from .ghost_call import OF_INFERENCE, OVER_BATCH, GhostCall, GhostPlan, choose_ghost, evaluate, execute, folded
from .ghost_recognition import recognise
from .in_place import STATE
from .registry import register_block
from .structure import Structure

_NO_TENSORS = (None,) * 7


@dataclass(frozen=True)
class GhostParts:
    """The pieces of a Ghost module.

    Attributes:
        primary_conv: path of the primary ``Conv2d``.
        primary_norm: path of the ``BatchNorm2d`` after it, or None.
        primary_act: path of its activation, or None; an empty ``Sequential`` or an ``Identity`` counts as none.
        cheap_conv: path of the depthwise ``Conv2d``, or None: ratio 1, a plain convolution.
        cheap_norm, cheap_act: as for the primary layer.
        out_channels: channels kept of the concatenation; None keeps all.
        primary_function, cheap_function: the activation where no module that is known computes it: a function that the
            forward calls, or somebody's own class.
        others: paths of the further modules that the forward calls, such as that class: fused code skips them, so that
            they must carry no hooks.
    """

    primary_conv: str
    primary_norm: str | None = None
    primary_act: str | None = None
    cheap_conv: str | None = None
    cheap_norm: str | None = None
    cheap_act: str | None = None
    out_channels: int | None = None
    primary_function: Function | None = None
    cheap_function: Function | None = None
    others: tuple[str, ...] = ()


@register_block
class GhostModuleBlock(Block):
    """A Ghost module: one of six operators, or a program of one step."""

    kind = "Ghost module"
    trains_as_program = True
    Parts = GhostParts

    @classmethod
    def examples(cls) -> dict[str, Callable[[], nn.Module]]:
        return {
            "v1": lambda: GhostModule(8, 20),
            "3x3, stride 2, ratio 3": lambda: GhostModule(6, 16, 3, ratio=3, stride=2),
            "without activations": lambda: GhostModule(12, 10, dw_size=5, relu=False),
            "YOLO's": lambda: YoloGhostConv(8, 12),
            "V3, re-parameterised": lambda: merged(GhostModuleV3(8, 16)),
            "without BatchNorms": lambda: GhostConv2d(8, 12),
        }

    @classmethod
    def match(cls, candidate: object) -> tuple[GhostParts, Reads] | None:
        return recognise(cls, candidate)

    def describe(self, module: nn.Module, structure: Structure) -> GhostPlan:
        return self.describe_ghost(self.parts_of(module), structure)

    @staticmethod
    def describe_ghost(parts: GhostParts, structure: Structure) -> GhostPlan:
        """What a call needs to know of the two convolutions; closes the structure."""
        for path in parts.others:
            structure.find(path)
        layer = structure.conv_bn_act
        primary = layer(parts.primary_conv, parts.primary_norm, parts.primary_act, parts.primary_function)
        cheap = None
        if parts.cheap_conv is not None:
            cheap = layer(parts.cheap_conv, parts.cheap_norm, parts.cheap_act, parts.cheap_function)
            if not cheap.is_cheap(primary.conv.out_channels):
                raise Unfusable(cheap.why_not_cheap(primary.conv.out_channels))
        entries = (*primary.entries(), *(_NO_TENSORS if cheap is None else cheap.entries()))
        norms = tuple(layer.norm for layer in (primary, cheap) if layer is not None and layer.norm is not None)
        pointwise = primary.is_pointwise()
        return GhostPlan(structure.close(), primary, cheap, parts.out_channels, pointwise, entries, norms, [])

    def route_without_program(self, module: nn.Module, x: torch.Tensor, why: str | None) -> Route:
        try:
            call = self.choose(module, x)
        except Unfusable as reason:
            why = str(reason)
            return Route(plain(why), lambda: plain_forward(module, x))
        return Route(call.decision, lambda: execute(call))

    def channels(self, module: nn.Module) -> int:
        return self.current_plan(module).primary.conv.in_channels

    def lower_module(
        self, module: nn.Module, builder: Builder, source: int, *, keep_source: bool = False, **options: object
    ) -> int:
        plan = self.current_plan(module)
        out = builder.ghost(plan.primary, plan.cheap, plan.out_channels, source, **options)
        builder.release(*[] if keep_source else [source])
        return out

    def choose(self, module: nn.Module, x: torch.Tensor) -> GhostCall:
        """The operator for x now.

        At batch 1 a check of everything costs as much as the arithmetic of a small module. What was decided for the
        same tensors is used again after a look at what may have changed since.

        Raises:
            Unfusable: no operator can.
        """
        why = refuse_call(x)
        if why is not None:
            raise NotNow(why)
        return choose_ghost(self.current_plan(module), x)

    def with_epilogues(
        self,
        module: nn.Module,
        x: torch.Tensor,
        input_scale: torch.Tensor | None,
        residual: torch.Tensor | None,
        return_squeeze: bool,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None:
        """As the function of that name; None where no operator takes these."""
        try:
            call = self.choose(module, x)
        except Unfusable:
            return None
        if call.decision.operator in OF_INFERENCE and not any_requires_grad((input_scale, residual)):
            return evaluate(call, input_scale, residual, return_squeeze)
        return None if call.decision.operator in OVER_BATCH else folded(call, input_scale, residual, return_squeeze)


def with_epilogues(
    module: nn.Module,
    x: torch.Tensor,
    *,
    input_scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    return_squeeze: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The output, with what a bottleneck wants done in the same pass.

    Args:
        module: a fused Ghost module.
        input_scale: N x C, the excitation of the input.
        residual: added to the output, in its shape.
        return_squeeze: also return the mean of the output over H and W.
    """
    block = module._ghost_ops
    found = block.with_epilogues(module, x, input_scale, residual, return_squeeze)
    if found is not None:
        return found
    x = x if input_scale is None else x * input_scale[:, :, None, None]
    out = block.forward(module, x)
    out = out if residual is None else out + residual
    return (out, out.mean((2, 3))) if return_squeeze else out


class FusedGhostModule(BuiltFused, GhostModuleBlock.behaviour, GhostModule, metaclass=ABCMeta):
    """Ghost module over the fused operators: constructor, parameters and state_dict of :class:`GhostModule`.

    With batch statistics (training) it runs ``functional.ghost_module_train``, or, where the primary convolution is not
    1x1 of stride 1, PyTorch's convolution and ``functional.cheap_concat_train``; it updates the running ones. With
    running statistics it runs ``program_eval``, or PyTorch's convolution and ``functional.cheap_concat_eval``; where
    gradients are wanted, ``functional.ghost_module`` or ``cheap_concat``. The BatchNorms are folded on every call, so
    that a result is never stale. Where no operator serves (another device or dtype, hooks or parametrisations inside,
    an unknown activation, ...) it runs as plain PyTorch: :meth:`why` says so.

    A Ghost module of another class that ``ghost_ops.fuse`` has fused counts as an instance too.

    Shape, dtype: as :class:`GhostModule`; the output has the input's memory format.
    """

    behaviour = GhostModuleBlock.behaviour
    plain_type = GhostModule

    @functools.wraps(GhostModule.__init__)
    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__[STATE] = GhostModuleBlock()

    def parts(self) -> GhostParts:
        """Return the paths of its pieces."""
        layers = ["primary_conv"] if self.ratio == 1 else ["primary_conv", "cheap_operation"]
        paths = [f"{layer}.{i}" for layer in layers for i in range(3)]
        return GhostParts(*paths, out_channels=self.oup)
