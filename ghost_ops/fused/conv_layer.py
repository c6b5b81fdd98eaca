"""A convolution with the BatchNorm and the activation after it, in a module of their own: fused in training.

``torch.nn.Sequential`` of the three, torchvision's ``Conv2dNormActivation``, timm's ``ConvBnAct``, YOLO's ``Conv``: the
stems and last layers of nets, where no larger block has them. Where no backend runs whole programs in training, as on
a CPU, BatchNorm and activation of a large map are one operator there. In eval such a module runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import nn

from ..activations import code_of
from ..dispatch import PLAIN_TENSORS, Decision, plain, refuse_call, select
from ..ops.checks import autocast
from ..ops.program_train import TrainCall
from . import batch_norm, convolutions
from .batch_norm import BATCH
from .behaviour import plain_forward
from .block import Reads, Route, _observers
from .builder import MOST_RUNS, Builder
from .convolutions import ConvCall, decide_convolution, run_convolution, run_convolution_with
from .errors import NotNow, Unfusable
from .examples import conv_bn
from .layer_block import LayerBlock
from .layers import ConvBNAct, does_nothing, is_conv, is_norm
from .registry import register_block
from .structure import Structure

LEAST_RESULTS = 2**23
MOST_WEIGHTS = 8192  # of a 1x1 convolution, both sides powers of two, so that one pass makes both gradients
FEW_INPUTS = 64  # of a value of a dense convolution


@dataclass(frozen=True)
class ConvLayerParts:
    """The pieces of a convolution layer.

    Attributes:
        conv: path of the ``Conv2d``.
        norm: path of the ``BatchNorm2d``, or of a class derived from it.
        act: path of the activation, which such a class may apply itself, or None.
    """

    conv: str
    norm: str
    act: str | None = None


class ConvLayers(NamedTuple):
    layer: ConvBNAct


@register_block
class ConvLayerBlock(LayerBlock):
    """A convolution, BatchNorm, activation: fused in training, PyTorch's modules otherwise."""

    kind = "convolution layer"
    Parts = ConvLayerParts
    is_layer = True
    trains_as_program = True
    infers_as_program = False

    @classmethod
    def examples(cls) -> dict[str, Callable[[], nn.Module]]:
        return {
            "1x1": lambda: conv_bn(8, 20, act=nn.ReLU()),
            "3x3, stride 2": lambda: conv_bn(4, 12, 3, 2, act=nn.SiLU()),
        }

    @classmethod
    def find(cls, module: nn.Module) -> ConvLayerParts | None:
        pieces = list(_pieces(module))
        convs = [(path, m) for path, m in pieces if is_conv(m)]
        norms = [(path, m) for path, m in pieces if isinstance(m, nn.BatchNorm2d) or is_norm(m)]
        acts = [path for path, m in pieces if code_of(m) is not None]
        if (len(convs), len(norms)) != (1, 1) or len(acts) > 1 or len(pieces) != 2 + len(acts):
            return None
        (conv_path, conv), (norm_path, norm) = *convs, *norms
        applied = list(_pieces(norm, f"{norm_path}."))  # by the BatchNorm itself, as of timm's BatchNormAct2d
        acts += [path for path, m in applied if code_of(m) is not None]
        if len(acts) > 1 or len(applied) > len(acts) or conv.padding_mode != "zeros":
            return None
        return ConvLayerParts(conv_path, norm_path, *acts)

    @classmethod
    def match(cls, candidate: object) -> tuple[ConvLayerParts, Reads] | None:
        parts = cls.find(candidate.module)
        if parts is None or not is_sequence(candidate.module):
            return None if parts is None else super().match(candidate)
        cls(parts).read(Structure(candidate.module), parts).layer.tensors()  # what a sequence computes is known
        return parts, ()

    def read(self, structure: Structure, parts: ConvLayerParts) -> ConvLayers:
        if isinstance(structure.root, nn.Sequential):
            called = [path for path in (parts.conv, parts.norm, parts.act) if path is not None]
            if [path for path, _ in _pieces(structure.root)] != [p for p in called if not _is_within(p, parts.norm)]:
                raise Unfusable("it calls other modules, or in another order")
        return ConvLayers(structure.conv_bn_act(parts.conv, parts.norm, parts.act, derived=True))

    def compute(self, layers: ConvLayers, x: torch.Tensor) -> torch.Tensor:
        """By functions of the three modules' tensors: what the program computes, against which modules are held."""
        layer = layers.layer
        call = ConvCall(layer, None, None, (layer.slope(), layer.norm.eps))
        return run_convolution_with(call, x, layer.tensors(), batch_norm.statistics(layer.norm) is BATCH)

    def lower(self, layers: ConvLayers, builder: Builder, source: int) -> int:
        layer = layers.layer
        return builder.conv(layer, source) if layer.is_pointwise() else builder.first_conv(layer, source)

    def forward(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if _observers or may_run(module, x):
            return super().forward(module, x)
        return plain_forward(module, x)

    def _training_call(self, module: nn.Module, x: torch.Tensor, decision: Decision) -> TrainCall:
        why = slower(self.current_plan(module).layers.layer, x)
        if why is not None:
            raise NotNow(why)
        return super()._training_call(module, x, decision)

    def _training_route(self, module: nn.Module, x: torch.Tensor) -> Route:
        if torch.compiler.is_compiling():
            return Route(plain(), lambda: plain_forward(module, x))
        if not module.training:
            return self.route_without_program(
                module, x, "in eval it is a program only where ghost_ops.freeze makes one"
            )
        try:
            return self.trained_layer(module, x)
        except Unfusable as reason:
            return self.route_without_program(module, x, str(reason))

    def trained_layer(self, module: nn.Module, x: torch.Tensor) -> Route:
        """A call in training: one program, or PyTorch's convolution and an operator; raises ``Unfusable``."""
        (cast,) = autocast(x)  # images are float32, which the convolution casts
        if not select("program_train", x).is_reference:
            return self._trained_route(module, cast)
        why = refuse_call(x)
        if why is not None:
            raise NotNow(why)
        layer, decision = self.current_plan(module).layers.layer, select("batch_norm_act_train", cast)
        if decision.is_reference:
            raise NotNow(decision.why)
        if batch_norm.statistics(layer.norm) is not BATCH:
            raise NotNow("its BatchNorm uses running statistics in training")
        if values_of(layer, x) < convolutions.LEAST_NORMALISED:
            raise NotNow(f"PyTorch is as fast on maps of less than {convolutions.LEAST_NORMALISED} values")
        call = decide_convolution(layer, x)
        first = "PyTorch's convolution" if call.decision is None else call.decision.runs
        return Route(replace(decision, runs=f"{first}, {decision.runs}"), lambda: run_convolution(call, x))

    def route_without_program(self, module: nn.Module, x: torch.Tensor, why: str | None) -> Route:
        return Route(plain(*[] if why is None else [why]), lambda: plain_forward(module, x))


def may_run(module: nn.Module, x: torch.Tensor) -> bool:
    """Whether a program or an operator may run a call; a cheap question."""
    return module.training and type(x) in PLAIN_TENSORS and not torch.compiler.is_compiling()


def slower(layer: ConvBNAct, x: torch.Tensor) -> str | None:
    """Why PyTorch's modules are at least as fast in training as a program, as predicted for an H200
    (docs/performance/gpu.md); None where the program is faster."""
    if not has_kernels(layer.conv):
        return "PyTorch is as fast for such a convolution"
    if x.dtype is torch.float32:
        return "in float32 its program is not known to be faster"
    if values_of(layer, x) < LEAST_RESULTS:
        return f"PyTorch is as fast on maps of less than {LEAST_RESULTS} values"
    return None


def values_of(layer: ConvBNAct, x: torch.Tensor) -> int:
    """How many values the convolution makes of x."""
    height, width = layer.output_size(*x.shape[2:])
    return x.shape[0] * layer.conv.out_channels * height * width


def _pieces(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Paths and modules inside, a ``Sequential`` opened, in order, without those that do nothing."""
    for name, child in module._modules.items():
        if does_nothing(child):
            continue
        if type(child) is nn.Sequential:
            yield from _pieces(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def is_sequence(module: nn.Module) -> bool:
    """Whether it is a ``Sequential``, or runs as one, of PyTorch's own modules."""
    own = type(module)
    as_sequence = all(
        getattr(own, name) is getattr(nn.Sequential, name) for name in ("forward", "__iter__", "__call__")
    )
    known = lambda m: is_conv(m) or is_norm(m) or code_of(m) is not None
    return as_sequence and "forward" not in vars(module) and all(known(m) for _, m in _pieces(module))


def _is_within(path: str, outer: str) -> bool:
    return path.startswith(f"{outer}.")


def has_kernels(conv: nn.Conv2d) -> bool:
    """Whether a program in training may be faster than PyTorch: of 1x1 convolutions whose both gradients are one pass,
    and of dense ones of few inputs a value, as of a net's images."""
    (height, width), (stride, other), padding = conv.kernel_size, conv.stride, conv.padding
    if height != width or stride != other or conv.dilation != (1, 1) or conv.padding_mode != "zeros" or conv.groups > 1:
        return False
    if height == 1 and stride == 1:
        one_pass = _side(conv.in_channels) * _side(conv.out_channels) <= MOST_WEIGHTS
        return padding in ((0, 0), "valid", "same") and one_pass
    few = height * conv.in_channels <= MOST_RUNS and height**2 * conv.in_channels <= FEW_INPUTS
    return few and not isinstance(padding, str) and padding[0] == padding[1]


def _side(channels: int) -> int:
    return max(1 << (channels - 1).bit_length(), 16)
