"""An inverted residual: 1x1 and depthwise convolutions, squeeze-and-excite, the input added: one program in eval.

MobileNetV2's (Sandler et al., arXiv:1801.04381), V3's and EfficientNet's, and separable convolutions, which have no
first convolution. In training, with gradients, under compilation and on a GPU the module's own forward runs, whose
convolution layers and squeeze-and-excite are fused on their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from ..dispatch import Decision
from .behaviour import block_of, plain_forward
from .block import Block, Reads, Route, _observers
from .builder import Builder
from .errors import Unfusable
from .examples import InvertedResidual
from .inverted_recognition import recognise
from .layers import ConvBNAct
from .registry import register_block
from .squeeze_excite import SqueezeExciteBlock
from .structure import Structure


@dataclass(frozen=True)
class InvertedResidualParts:
    """The pieces of an inverted residual.

    Attributes:
        convs, norms, acts: paths of the convolutions in the order of their calls, and of the BatchNorm and the
            activation after each, None where there is none. A BatchNorm may have the activation inside.
        se: path of the squeeze-and-excite layer, or None.
        excited: index of the convolution that it comes before.
        others: paths of the further modules that a forward calls, which do nothing: fused code skips them, so that they
            must carry no hooks.
        adds_input: whether the input is added to the result.
    """

    convs: tuple[str, ...]
    norms: tuple[str | None, ...]
    acts: tuple[str | None, ...]
    se: str | None = None
    excited: int = 0
    others: tuple[str, ...] = ()
    adds_input: bool = False


class InvertedResidualPlan(NamedTuple):
    structure: Structure
    layers: list[ConvBNAct]
    se: nn.Module | None
    excited: int
    adds_input: bool


@register_block
class InvertedResidualBlock(Block):
    """A chain of 1x1 and depthwise convolutions: a program in eval, and the module's own forward otherwise."""

    kind = "inverted residual"
    Parts = InvertedResidualParts
    holds_blocks = True
    is_open = True
    verifies_program = True
    autocast_dtypes = (torch.bfloat16,)  # under autocast a program takes inputs of autocast's dtype only

    @classmethod
    def examples(cls) -> dict[str, Callable[[], nn.Module]]:
        return {
            "MobileNetV2's": lambda: InvertedResidual(8, 24, 8, 3, 1, nn.ReLU6(), se=False),
            "MobileNetV3's": lambda: InvertedResidual(8, 20, 12, 5, 2, nn.Hardswish(), se=True),
        }

    @classmethod
    def match(cls, candidate: object) -> tuple[InvertedResidualParts, Reads] | None:
        return recognise(cls, candidate)

    @staticmethod
    def read(structure: Structure, parts: InvertedResidualParts) -> list[ConvBNAct]:
        """The convolutions with what follows them; raises ``Unfusable``."""
        for path in parts.others:
            structure.find(path)
        return [
            structure.conv_bn_act(*paths, derived=True)
            for paths in zip(parts.convs, parts.norms, parts.acts, strict=True)
        ]

    def describe(self, module: nn.Module, structure: Structure) -> InvertedResidualPlan:
        parts = self.parts_of(module)
        layers = self.read(structure, parts)
        se = None if parts.se is None else structure.find(parts.se)
        if se is not None and not isinstance(block_of(se), SqueezeExciteBlock):
            raise Unfusable(f"expected a fused squeeze-and-excite layer, found a {type(se).__name__}")
        return InvertedResidualPlan(structure.close(), layers, se, parts.excited, parts.adds_input)

    def forward(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling() or (not _observers and (module.training or self._wants_gradients(x))):
            return plain_forward(module, x)
        return super().forward(module, x)

    def _wants_gradients(self, x: torch.Tensor) -> bool:
        """Whether gradients are seen to be wanted; a cheap question, which may be left open."""
        if not torch.is_grad_enabled():
            return False
        layers = () if self._plan is None else self._plan[1]
        return getattr(x, "requires_grad", False) or any(layer.conv.weight.requires_grad for layer in layers)

    def route_without_program(self, module: nn.Module, x: torch.Tensor, why: str | None) -> Route:
        decision = Decision("its parts in turn", "reference", None, ("it is in training mode" if why is None else why,))
        return Route(decision, lambda: plain_forward(module, x))

    def channels(self, module: nn.Module) -> int:
        return self.current_plan(module).layers[0].conv.in_channels

    def lower_module(
        self, module: nn.Module, builder: Builder, source: int, *, keep_source: bool = False
    ) -> int:  # fmt: skip
        _, layers, se, excited, adds = self.current_plan(module)
        at, last = source, len(layers) - 1
        for i, layer in enumerate(layers):
            before, scaled = at, se is not None and i == excited
            if scaled:
                se._ghost_ops.lower_excitation(se, builder)
            options = {"squeeze": se is not None and i + 1 == excited}
            if layer.is_pointwise():
                options |= {"scaled": scaled, "residual": source if adds and i == last else -1}
                at = builder.ghost(layer, None, None, at, **options)
            else:
                scale = builder.scale(at) if scaled else at
                at = builder.conv(layer, scale, **options)
                builder.release(*{scale} - {before})
            builder.release(*{before} - {source})
        if adds and not layers[last].is_pointwise():
            before, at = at, builder.add(at, source)
            builder.release(before)
        builder.release(*[] if keep_source else [source])
        return at

    def plans(self, module: nn.Module) -> tuple:
        plan = self.current_plan(module)
        return (plan,) if plan.se is None else (plan, plan.se._ghost_ops.current_plan(plan.se))
