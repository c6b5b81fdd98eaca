"""Blocks as the steps of a program (``backends/steps.py``), read from the children that fused modules have found.

A program reads parameters in the order of its steps. ``Source`` is a layer that has some; the tensors of all sources,
one after the other, are the program's parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import is_
from typing import NamedTuple

import torch
from torch import nn

from ..activations import PRELU, slope_of
from ..backends import steps as s
from ..dispatch import PLAIN_TENSORS
from . import _batch_norm
from ._batch_norm import BATCH
from ._structure import Half, NotNow, Unfusable

KERNELS = (1, 3, 5, 7)  # of depthwise steps
MOST_RUNS = 64  # channels times kernel rows of a first convolution; csrc/cpu/kernels/kernels.h has the same
_PARTS = (s.BIAS, s.GAMMA, s.BETA, s.NORM, 0, s.SLOPES)  # of the tensors after the weight


class Dense(NamedTuple):
    """A linear layer, or a 1x1 convolution of a single pixel, with what follows it; as ``Half`` is a convolution."""

    conv: nn.Module
    norm: nn.Module | None
    act: nn.Module | None
    code: int

    def slope(self) -> float:
        return slope_of(self.act, self.code)

    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        return Half.tensors(self)


Source = Half | Dense


def layer(source: Source, tensors: Sequence[torch.Tensor | None]) -> s.Layer:
    """What a program must know of a source whose tensors are these."""
    if _batch_norm.statistics(source.norm) is BATCH:
        raise NotNow("one of its BatchNorms uses batch statistics")
    parts = sum(part for part, t in zip(_PARTS, tensors[1:], strict=True) if t is not None)
    eps = 0.0 if source.norm is None else source.norm.eps
    return s.Layer(parts, eps, source.code, source.slope())


class Built:
    """A program, and the sources of its parameters.

    Attributes:
        code: the list of its steps.
        sources: in the order of the parameters.
    """

    def __init__(self, code: list[int], sources: list[Source]) -> None:
        self.code = code
        self.sources = sources
        self._key = [_key(source) for source in sources]
        self._entries = [entry for source in sources for entry in _entries(source)]
        self._norms = [source.norm for source in sources if source.norm is not None]
        self._numbers = [_constants(source) for source in sources]
        self._seen: tuple | None = None

    def parameters(self, x: torch.Tensor) -> list[torch.Tensor] | None:
        """The parameters as they are now; None where the program must be built anew.

        At batch 1 a check of everything costs as much as the arithmetic of a small block, so that what was checked for
        the same tensors is only looked through for what may have changed since.

        Raises:
            Unfusable: a kernel must not read one of them, or PyTorch would refuse it beside x.
        """
        try:
            now = [entries[name] for entries, name in self._entries]
        except KeyError as name:
            raise NotNow(f"{name} of one of its children is not a parameter or buffer of its own") from None
        if self._seen is not None and not torch._C._is_any_autocast_enabled():
            then, dtype, found, dtypes, shapes = self._seen
            same = dtype is x.dtype and x.is_cpu and all(map(is_, now, then))
            if same and [t.dtype for t in found] == dtypes and [t.shape for t in found] == shapes:
                for norm in self._norms:
                    if norm.training:
                        raise NotNow("one of its BatchNorms uses batch statistics")
                same = [_constants(source) for source in self.sources] == self._numbers
                return found if same else None
        found = self._checked(x)
        if found is not None:
            self._seen = now, x.dtype, found, [t.dtype for t in found], [t.shape for t in found]
        return found

    def _checked(self, x: torch.Tensor) -> list[torch.Tensor] | None:
        found: list[torch.Tensor] = []
        dtype, device = x.dtype, x.device
        widened = torch.is_autocast_enabled(device.type)
        for source, key in zip(self.sources, self._key, strict=True):
            tensors = source.tensors()
            if _key(source) != key:
                return None
            if _batch_norm.statistics(source.norm) is BATCH:
                raise NotNow("one of its BatchNorms uses batch statistics")
            if tensors[0].dtype is not dtype and not widened:
                raise NotNow(f"its input is {dtype}, the weight of a convolution {tensors[0].dtype}")
            for t in tensors:
                if t is None:
                    continue
                if type(t) not in PLAIN_TENSORS:
                    raise NotNow(f"one of its parameters is a {type(t).__name__}, not a plain tensor")
                if not t.is_cpu or (t.dtype is not dtype and t.dtype is not torch.float32):
                    raise NotNow(f"its input is {dtype} on {device}, one of its parameters {t.dtype} on {t.device}")
                found.append(t)
        return found


def _entries(source: Source) -> list[tuple[dict, str]]:
    """Where the tensors of a source stand."""
    found = [(source.conv._parameters, "weight"), (source.conv._parameters, "bias")]
    if source.norm is not None:
        found += [(source.norm._parameters, name) for name in ("weight", "bias")]
        found += [(source.norm._buffers, name) for name in ("running_mean", "running_var")]
    return found + ([(source.act._parameters, "weight")] if source.code == PRELU else [])


def _key(source: Source) -> tuple:
    """What a program's steps depend on."""
    tensors = source.tensors()
    return (tensors[0].shape, *(t is None for t in tensors), *_constants(source))


def _constants(source: Source) -> tuple[float | None, float]:
    """The numbers that its steps hold."""
    return source.norm and source.norm.eps, source.slope()


class Builder:
    """Collects steps. Every method returns the slot that it filled; a slot is free again once nobody reads it."""

    def __init__(self) -> None:
        self.steps: list[s.Step] = []
        self.sources: list[Source] = []
        self._free: list[int] = []
        self._slots = 0

    def finish(self) -> Built:
        return Built(s.encode(self.steps, max(self._slots, 1)), self.sources)

    def mark(self) -> tuple:
        """The state now, for ``reset``."""
        return list(self.steps), list(self.sources), list(self._free), self._slots

    def reset(self, mark: tuple) -> None:
        """Forget what came since."""
        self.steps, self.sources, self._free, self._slots = mark

    # Slots

    def take(self) -> int:
        if self._free:
            return self._free.pop()
        self._slots += 1
        return self._slots - 1

    def release(self, *slots: int) -> None:
        self._free += {slot for slot in slots if slot >= 0} - set(self._free)

    # Steps

    def load(self, channels: int) -> int:
        out = self.take()
        self.steps.append(s.Load(out, channels, False))
        return out

    def convolution(self, half: Half) -> int:
        """A dense convolution, the first step."""
        (kernel, other), (stride, padding, dilation, groups, _) = half.kernel(), half.geometry
        if (
            isinstance(padding, str)
            or (kernel, stride[0], padding[0]) != (other, stride[1], padding[1])
            or (dilation != (1, 1) or groups != 1 or kernel * half.conv.in_channels > MOST_RUNS)
        ):
            raise Unfusable("its convolution is not a square dense one of few channels, such as an image's")
        out, conv = self.take(), half.conv
        self.steps.append(
            s.Conv(out, conv.in_channels, conv.out_channels, kernel, stride[0], padding[0], self._layer(half))
        )
        return out

    def chain(self, halves: Iterable[Half], source: int, squeeze: bool = False) -> int:
        """Depthwise and 1x1 convolutions in turn; the slots between them are released, ``source`` is not."""
        halves, at = list(halves), source
        for i, half in enumerate(halves):
            wanted = squeeze and i == len(halves) - 1
            if half.is_pointwise():
                out = self.pointwise(half, at, wanted)
            else:
                out = self._depthwise(half, at, wanted)
            self.release(*([] if at == source else [at]))
            at = out
        return at

    def pointwise(self, half: Half, source: int, squeeze: bool = False) -> int:
        out, conv = self.take(), half.conv
        c, m = conv.in_channels, conv.out_channels
        self.steps.append(s.Ghost(source, out, -1, False, squeeze, c, m, 0, m, 1, self._layer(half), None))
        return out

    def _depthwise(self, half: Half, source: int, squeeze: bool) -> int:
        conv, (kernel, other) = half.conv, half.kernel()
        stride, padding, dilation, groups, _ = half.geometry
        same = padding == (kernel // 2,) * 2 or (padding == "same" and stride == (1, 1))
        depthwise = groups == conv.in_channels == conv.out_channels and dilation == (1, 1)
        if not (kernel == other and kernel in KERNELS and same and depthwise and stride[0] == stride[1]):
            raise Unfusable("one of its convolutions is neither 1x1 nor depthwise of size 1, 3, 5 or 7")
        out = self.take()
        self._whole_vectors(source)
        self.steps.append(s.Depthwise(source, out, squeeze, conv.in_channels, kernel, stride[0], self._layer(half)))
        return out

    def ghost(
        self, primary: Half, cheap: Half | None, kept: int | None, source: int, *, residual: int = -1,
        scaled: bool = False, squeeze: bool = False,
    ) -> int:  # fmt: skip
        """A Ghost module."""
        if not primary.is_pointwise():
            raise Unfusable("its primary convolution is not 1x1 of stride 1")
        m, made, kernel, second = primary.conv.out_channels, 0, 1, None
        first = self._layer(primary)
        if cheap is not None:
            made, kernel = cheap.conv.out_channels, cheap.kernel()[0]
            if kernel not in KERNELS:
                raise Unfusable(f"its cheap operation is of size {kernel}, not 1, 3, 5 or 7")
            second = self._layer(cheap)
        kept = m + made if kept is None else kept
        if not (m < kept <= m + made if made else kept == m):
            raise Unfusable(f"no operator keeps {kept} channels of what it computes")
        out = self.take()
        channels = primary.conv.in_channels
        self.steps.append(
            s.Ghost(source, out, residual, scaled, squeeze, channels, m, made, kept, kernel, first, second)
        )
        return out

    def excite(self, channels: int, reduce: Dense, expand: Dense, gate: int) -> None:
        hidden = reduce.tensors()[0].shape[0]
        self.steps.append(s.Excite(channels, hidden, gate, self._layer(reduce), self._layer(expand)))

    def pool(self, channels: int) -> None:
        self.steps.append(s.Pool(channels))

    def dense(self, source: Dense) -> None:
        features, channels = source.tensors()[0].shape[:2]
        self.steps.append(s.Dense(channels, features, self._layer(source)))

    def store(self, slot: int) -> None:
        self.steps.append(s.Store(slot))

    def _layer(self, source: Source) -> s.Layer:
        self.sources.append(source)
        return layer(source, source.tensors())

    def _whole_vectors(self, slot: int) -> None:
        first = self.steps[0]
        if isinstance(first, s.Load) and first.out == slot and len(self._writers(slot)) == 1:
            self.steps[0] = s.Load(first.out, first.channels, True)

    def _writers(self, slot: int) -> list[s.Step]:
        return [step for step in self.steps if getattr(step, "out", -1) == slot]
