"""``Builder``: writes the steps of a program from the layers that blocks have read.

A program reads parameters in the order of its steps: the tensors of all sources, one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from .. import program as s
from ..backends.registry import CHEAP_KERNELS
from . import batch_norm
from .batch_norm import BATCH
from .compiled_program import CompiledProgram
from .errors import NotNow, Unfusable
from .layers import ConvBNAct, LinearAct, ParameterSource

MOST_RUNS = 64  # runs of columns that a kernel of taps is; csrc/cpu/kernels/kernels.h has the same
MOST_SIZE = 64  # a stride, padding or dilation; csrc/cpu/program/parse.h has the same
_PARTS = (s.BIAS, s.GAMMA, s.BETA, s.NORM, 0, s.SLOPES)  # of the tensors after the weight


def layer(source: ParameterSource, tensors: Sequence[torch.Tensor | None]) -> s.Layer:
    """What a program must know of a source whose tensors are these."""
    if batch_norm.statistics(source.norm) is BATCH:
        raise NotNow("one of its BatchNorms uses batch statistics")
    parts = sum(part for part, t in zip(_PARTS, tensors[1:], strict=True) if t is not None)
    eps = 0.0 if source.norm is None else source.norm.eps
    return s.Layer(parts, eps, source.code, source.slope())


def padding_of(layer: ConvBNAct) -> tuple[int, int]:
    """Rows and columns of zeros on either side of a convolution's input.

    Raises:
        Unfusable: there are more on one side than on the other.
    """
    padding, dilation = layer.geometry[1:3]
    if padding == "valid":
        return 0, 0
    if padding != "same":
        return padding
    whole = tuple(d * (k - 1) for d, k in zip(dilation, layer.kernel()))
    if any(n % 2 for n in whole):
        raise Unfusable('one of its convolutions is of even size with padding "same", which pads the ends differently')
    return whole[0] // 2, whole[1] // 2


class Builder:
    """Collects steps. Every method that makes a map returns its slot; ``release`` says that no later step reads it."""

    def __init__(self) -> None:
        self.steps: list[s.Step] = []
        self.sources: list[ParameterSource] = []
        self._free: list[int] = []
        self._slots = 0

    def finish(self) -> CompiledProgram:
        return CompiledProgram(s.encode(self.steps, max(self._slots, 1)), self.sources)

    def mark(self) -> tuple:
        """The state now, for ``reset``."""
        return list(self.steps), list(self.sources), list(self._free), self._slots

    def reset(self, mark: tuple) -> None:
        """Forget what came since."""
        self.steps, self.sources, self._free, self._slots = mark

    # Slots

    def take(self) -> int:
        """A free slot."""
        if self._free:
            return self._free.pop()
        self._slots += 1
        return self._slots - 1

    def release(self, *slots: int) -> None:
        """Say that no later step reads these slots."""
        self._free += {slot for slot in slots if slot >= 0} - set(self._free)

    # Steps

    def load(self, channels: int) -> int:
        """The input as a map: the first step."""
        out = self.take()
        self.steps.append(s.Load(out, channels, False))
        return out

    def dense_conv(
        self, layer: ConvBNAct, source: int = -1, *, residual: int = -1, residual_first: bool = False,
        squeeze: bool = False,
    ) -> int:  # fmt: skip
        """A convolution of any size, stride, padding, dilation and number of groups.

        Args:
            source: slot; -1: the net's input, where it is the first step.
            residual: slot that is added to the output; -1 for none.
            residual_first: it is added before the activation, after the BatchNorm.
            squeeze: the channel means of the output are the next squeeze.

        Raises:
            Unfusable: it pads the ends of a side differently, or is larger than programs take.
        """
        conv, kernel = layer.conv, layer.kernel()
        stride, _, dilation, groups, _ = layer.geometry
        padding = padding_of(layer)
        runs = kernel[0] * (1 if kernel[1] == 1 or dilation[1] == 1 else kernel[1])
        if max(*kernel, runs) > MOST_RUNS:
            raise Unfusable(f"one of its convolutions is {kernel[0]}x{kernel[1]}, dilation {dilation}: too many taps")
        if max(*stride, *padding, *dilation) > MOST_SIZE:
            raise Unfusable(f"one of its convolutions has a stride, padding or dilation above {MOST_SIZE}")
        params, out = self._layer(layer), self.take()
        self.steps.append(
            s.Conv(
                source, out, residual, residual_first and residual >= 0, squeeze, conv.in_channels, conv.out_channels,
                kernel, stride, padding, dilation, groups, params,
            )
        )  # fmt: skip
        return out

    def first_conv(self, layer: ConvBNAct, source: int) -> int:
        """A dense convolution of the program's input, which was loaded into ``source`` and is read by nothing else.

        Raises:
            Unfusable: another convolution, or the source is not the input.
        """
        loads = len(self.steps) == 1 and isinstance(self.steps[0], s.Load) and self.steps[0].out == source
        if not loads:
            raise Unfusable("a dense convolution has a program only where it is the first step")
        self.steps.clear()
        return self.dense_conv(layer)

    def chain(self, layers: Iterable[ConvBNAct], source: int, squeeze: bool = False) -> int:
        """Depthwise and 1x1 convolutions in turn; the slots between them are released, ``source`` is not.

        Args:
            squeeze: the channel means of the output are the next squeeze.
        """
        layers, at = list(layers), source
        for i, layer in enumerate(layers):
            out = self.conv(layer, at, squeeze=squeeze and i == len(layers) - 1)
            self.release(*([] if at == source else [at]))
            at = out
        return at

    def conv(self, layer: ConvBNAct, source: int, *, residual: int = -1, squeeze: bool = False) -> int:
        """A 1x1 convolution of stride 1, or a depthwise one.

        Args:
            residual: slot that is added to the output of a 1x1 convolution; -1 for none.
            squeeze: the channel means of the output are the next squeeze.

        Raises:
            Unfusable: another convolution, or a residual of a depthwise one.
        """
        if layer.is_pointwise():
            return self.ghost(layer, None, None, source, residual=residual, squeeze=squeeze)
        conv, kernel = layer.conv, layer.kernel()
        stride, _, dilation, groups, _ = layer.geometry
        if not groups == conv.in_channels == conv.out_channels:
            raise Unfusable("one of its convolutions is neither 1x1 nor depthwise")
        if residual >= 0:
            raise Unfusable("a program adds a residual to 1x1 convolutions and Ghost modules only")
        out = self.take()
        self._whole_vectors(source)
        sizes = kernel, stride, padding_of(layer), dilation
        self.steps.append(s.Depthwise(source, out, squeeze, conv.in_channels, *sizes, self._layer(layer)))
        return out

    def ghost(
        self, primary: ConvBNAct, cheap: ConvBNAct | None, out_channels: int | None, source: int, *,
        residual: int = -1, scaled: bool = False, squeeze: bool = False,
    ) -> int:  # fmt: skip
        """A Ghost module, or with no cheap operation a 1x1 convolution.

        Args:
            out_channels: channels that are kept of the concatenation; None keeps all.
            residual: slot that is added to the output; -1 for none.
            scaled: the input is multiplied by the excitation.
            squeeze: the channel means of the output are the next squeeze.

        Raises:
            Unfusable: a primary convolution that is not 1x1 of stride 1, or another cheap operation.
        """
        if not primary.is_pointwise():
            raise Unfusable("its primary convolution is not 1x1 of stride 1")
        channels, primary_channels = primary.conv.in_channels, primary.conv.out_channels
        cheap_channels, kernel, second = 0, 1, None
        first = self._layer(primary)
        if cheap is not None:
            cheap_channels, kernel = cheap.conv.out_channels, cheap.kernel()[0]
            if kernel not in CHEAP_KERNELS:
                raise Unfusable(f"its cheap operation is of size {kernel}, not 1, 3, 5 or 7")
            second = self._layer(cheap)
        computed = primary_channels + cheap_channels
        kept = computed if out_channels is None else out_channels
        if not (primary_channels < kept <= computed if cheap_channels else kept == primary_channels):
            raise Unfusable(f"no operator keeps {kept} channels of what it computes")
        out = self.take()
        self.steps.append(
            s.Ghost(
                source, out, residual, scaled, squeeze, channels, primary_channels, cheap_channels, kept, kernel, first,
                second,
            )
        )  # fmt: skip
        return out

    def concat(self, sources: Sequence[int], squeeze: bool = False) -> int:
        """Maps side by side. Raises ``Unfusable`` where their channels lie in more pieces than a product reads."""
        channels = s.slot_channels(self.steps)
        if sum(len(channels[slot].pieces) for slot in sources) > MOST_RUNS:
            raise Unfusable(f"a program concatenates maps whose channels lie in at most {MOST_RUNS} pieces")
        out = self.take()
        self._whole_vectors(*sources)
        self.steps.append(s.Concat(out, squeeze, tuple(sources)))
        return out

    def slice(self, source: int, begin: int, end: int) -> int:
        """Channels [begin, end) of a map."""
        self._whole_vectors(source)
        out = self.take()
        self.steps.append(s.Slice(source, out, begin, end))
        return out

    def add(self, source: int, other: int, squeeze: bool = False) -> int:
        """The sum of two maps."""
        out = self.take()
        self._whole_vectors(source, other)
        self.steps.append(s.Add(source, other, out, squeeze, self._channels(source)))
        return out

    def multiply(self, source: int, gate: int, squeeze: bool = False) -> int:
        """A map times a gate, which is brought to its size by nearest upsampling."""
        out = self.take()
        self._whole_vectors(source, gate)
        self.steps.append(s.Multiply(source, gate, out, squeeze, self._channels(source)))
        return out

    def scale(self, source: int) -> int:
        """A map times the excitation."""
        out = self.take()
        self._whole_vectors(source)
        self.steps.append(s.Scale(source, out, False, self._channels(source)))
        return out

    def squeeze(self, source: int) -> None:
        """The channel means of a map whose own step makes none."""
        self._whole_vectors(source)
        self.steps.append(s.Squeeze(source, self._channels(source)))

    def upsample_like(self, source: int, like: int, align_corners: bool | None = None) -> int:
        """Upsampling to the size of the map in slot ``like``: nearest, or with ``align_corners`` bilinear."""
        out = self.take()
        self._whole_vectors(source)
        numbers = source, out, self._channels(source), like, (0, 0), 0.0, 0.0
        nearest = align_corners is None
        self.steps.append(s.Upsample(*numbers) if nearest else s.BilinearUpsample(*numbers, align_corners))
        return out

    def shuffle(self, source: int, groups: int) -> int:
        """Channel shuffle."""
        out = self.take()
        self._whole_vectors(source)
        self.steps.append(s.Shuffle(source, out, self._channels(source), groups))
        return out

    def add_module(self, module: nn.Module, source: int) -> int:
        """One of PyTorch's modules that is a step of its own: an activation, a max pooling.

        Raises:
            Unfusable: no step computes it.
        """
        out = self.take()
        step = s.step_of_module(module, source, out, self._channels(source))
        if step is None:
            raise Unfusable(f"no step computes a {type(module).__name__} as it is")
        self._whole_vectors(source)
        self.steps.append(step)
        if module._parameters:
            self.sources.append(LinearAct(None, None, module, step.layer.act))
        return out

    def _channels(self, slot: int) -> int:
        """Number of channels of the map in a slot."""
        return s.slot_channels(self.steps)[slot].count

    def excite(self, channels: int, reduce: LinearAct, expand: LinearAct, gate: int) -> None:
        """The excitation of the squeeze."""
        hidden = reduce.tensors()[0].shape[0]
        self.steps.append(s.Excite(channels, hidden, gate, self._layer(reduce), self._layer(expand)))

    def pool(self, channels: int) -> None:
        """The squeeze as features."""
        self.steps.append(s.Pool(channels))

    def flatten(self, source: int, features: int) -> None:
        """All numbers of a map as features."""
        self.steps.append(s.Flatten(source, self._channels(source), features))

    def scale_features(self, source: LinearAct) -> None:
        """A BatchNorm of the features."""
        self.steps.append(s.ScaleFeatures(source.tensors()[0].shape[0], self._layer(source)))

    def linear(self, source: LinearAct) -> None:
        """A linear layer of the features."""
        features, channels = source.tensors()[0].shape[:2]
        self.steps.append(s.Linear(channels, features, self._layer(source)))

    def store(self, slot: int) -> None:
        """The slot that the program returns: the last step."""
        self.steps.append(s.Store(slot))

    def store_features(self, channels: int) -> None:
        """The features as they are now are one of several results."""
        self.steps.append(s.StoreFeatures(channels))

    def _layer(self, source: ParameterSource) -> s.Layer:
        self.sources.append(source)
        return layer(source, source.tensors())

    def _whole_vectors(self, *slots: int) -> None:
        first = self.steps[0]
        if isinstance(first, s.Load) and first.out in slots and len(self._writers(first.out)) == 1:
            self.steps[0] = s.Load(first.out, first.channels, True)

    def _writers(self, slot: int) -> list[s.Step]:
        return [step for step in self.steps if getattr(step, "out", -1) == slot]
