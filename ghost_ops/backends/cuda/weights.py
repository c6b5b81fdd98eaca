"""Where kernels of ``csrc/cuda`` find their parameters: the order of weights, and what a kernel is told of a block.

Everything here works on the places of parameters, in the packed form of a program or one after the other; from these
one gather then makes what the kernels read. A place of 0 stands for a zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from ...activations import NONE
from ...program import Conv, Depthwise, Excite, Folded, Ghost, Layer, Linear

NO_CONV = (-1, -1, -1, 0)


def _up(n: int, to: int) -> int:
    return -(-n // to) * to


@dataclass
class Block:
    """What ``csrc/cuda/shape.h`` calls so, in its order; a convolution is four numbers."""

    height: int = 0
    width: int = 0
    channels: int = 0
    primary: int = 0
    multiplier: int = 0
    cheap_kernel: int = 1
    kernel: int = 0
    stride: int = 1
    hidden: int = 0
    gate: int = 0
    primary2: int = 0
    multiplier2: int = 0
    kept2: int = 0
    cheap_kernel2: int = 1
    shortcut: int = -1
    window: int = 0
    window_stride: int = 1
    window_padding: int = 0
    image_channels: int = 0
    image_height: int = 0
    image_width: int = 0
    linear: int = 0
    first: tuple = NO_CONV
    cheap: tuple = NO_CONV
    depthwise: tuple = NO_CONV
    reduce: tuple = NO_CONV
    expand: tuple = NO_CONV
    second: tuple = NO_CONV
    cheap2: tuple = NO_CONV
    shortcut_depthwise: tuple = NO_CONV
    shortcut_pointwise: tuple = NO_CONV

    def numbers(self, height: int, width: int, image: tuple[int, int] = (0, 0)) -> list[int]:
        """As an operator takes them, for a map of this size; of a convolution of an image that is the result's."""
        if self.window:
            sizes = {"image_height": image[0], "image_width": image[1]}
        else:
            sizes = {}
        values = (vars(self) | {"height": height, "width": width} | sizes).values()
        return [n for value in values for n in (value if isinstance(value, tuple) else (value,))]


def tiles(weight: torch.Tensor, half: bool) -> torch.Tensor:
    """O x I, as ``csrc/cuda/products.h`` reads it: tiles of 16 inputs x 8 outputs, all outputs of 16 inputs first."""
    out, depth = weight.shape
    weight = F.pad(weight, (0, _up(depth, 16) - depth, 0, _up(out, 8) - out))
    if half:  # the order of the lanes: output, then pairs of inputs, both pairs of a lane together
        return weight.view(-1, 8, _up(depth, 16) // 16, 2, 4, 2).permute(2, 0, 1, 4, 3, 5).reshape(-1)
    return weight.view(-1, 8, _up(depth, 16) // 16, 16).permute(2, 0, 3, 1).reshape(-1)


@dataclass
class Weights:
    """The two buffers of the kernels in the making: matrices, in the dtype of the maps, and vectors, in float32.

    Depthwise weights are among the matrices in half precision, else among the vectors.
    """

    half: bool
    matrices: list[torch.Tensor] = field(default_factory=list)
    vectors: list[torch.Tensor] = field(default_factory=list)
    _ends: list[int] = field(default_factory=lambda: [0, 0])

    def _add(self, which: int, t: torch.Tensor, to: int) -> int:
        at = self._ends[which]
        t = F.pad(t.reshape(-1), (0, _up(t.numel(), to) - t.numel()))
        (self.matrices, self.vectors)[which].append(t)
        self._ends[which] += t.numel()
        return at

    def plain(self, t: torch.Tensor) -> int:
        """A tensor as it is, among the matrices; returns its place."""
        return self._add(0, t, 128)

    def matrix(self, weight: torch.Tensor) -> int:
        return self._add(0, tiles(weight, self.half), 128)

    def vector(self, t: torch.Tensor) -> int:
        return self._add(1, t, 16)

    def taps(self, folded: Folded, channels: torch.Tensor) -> int:
        """A depthwise weight of these channels, -1 where there is none. In half precision it is among the matrices: of
        each channel all taps, with zeros up to a multiple of 4."""
        if not self.half:
            return self.vector(_taps(folded, channels))
        taps = _pick(folded.weight.flatten(1).t(), F.pad(channels, (0, -len(channels) % 8), value=-1)).t()
        return self._add(0, F.pad(taps, (0, -taps.shape[1] % 4)), 128)

    def conv(self, weight: int, folded: Folded, layer: Layer, order=lambda t: t) -> tuple[int, int, int, int]:
        """Four numbers for ``Block``; ``order`` puts a vector of channels into the kernels' order."""
        slopes = None if folded.slopes is None else folded.slopes.expand(folded.weight.shape[0])
        bias = folded.weight.new_zeros(folded.weight.shape[0]) if folded.bias is None else folded.bias
        return (
            weight, self.vector(order(bias)), -1 if slopes is None else self.vector(order(slopes)), layer.act
        )  # fmt: skip

    def index(self) -> tuple[torch.Tensor, int]:
        """For every number of both buffers its place among the parameters, counted from 0, and -1 where it is a zero;
        and how many of the numbers are matrices. Kernels may read three tiles of outputs past the last ones."""
        spare, spare_outputs = torch.zeros(3 * 16 * 8), torch.zeros(3 * 8)
        places = torch.cat([*self.matrices, spare, *self.vectors, spare_outputs])
        return (places - 1).to(torch.int32), self._ends[0] + len(spare)


def _pick(t: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Elements of the last dimension; zero where the index is -1."""
    return F.pad(t, (1, 0))[..., (index + 1).to(t.device)]


def lane_channels(primary: int, multiplier: int, kept: int) -> torch.Tensor:
    """(1 + multiplier) x lanes: the channel of a Ghost module's output in every lane, -1 where there is none. Primary
    channels are up to a multiple of 8 lanes, and so are the first, second, ... cheap ones of each."""
    channel = torch.arange(_up(primary, 8)).repeat(1 + multiplier, 1)
    missing = channel >= primary
    for q in range(multiplier):
        channel[1 + q] = primary + channel[1 + q] * multiplier + q
    return channel.masked_fill(missing | (channel >= kept), -1)


def _taps(folded: Folded, channels: torch.Tensor) -> torch.Tensor:
    """A depthwise weight of these channels in float32: of 32 lanes the first tap, the second, ..., then of the next."""
    taps = _pick(folded.weight.flatten(1).t(), F.pad(channels, (0, -len(channels) % 32), value=-1))
    return taps.view(len(taps), -1, 32).transpose(0, 1)


def add_module(w: Weights, step: Ghost, first: Folded, cheap: Folded | None) -> dict:
    """A Ghost module's own fields of ``Block``: as the second one of a bottleneck, or alone."""
    multiplier = step.cheap_channels // step.primary
    found = {
        "primary2": step.primary, "multiplier2": multiplier, "kept2": step.out_channels, "cheap_kernel2": step.kernel,
        "second": w.conv(w.matrix(first.weight.flatten(1)), first, step.layer),
    }  # fmt: skip
    if cheap is not None:
        found["cheap2"] = _add_cheap(w, step, cheap)
    return found


def _add_replacing(w: Weights, step: Depthwise, folded: Folded) -> dict:
    """The fields of a depthwise convolution whose results take the place of what it reads, without their numbers."""
    order = lane_channels(step.channels, 0, step.channels).flatten()
    conv = w.conv(w.taps(folded, order), folded, step.layer, lambda t: _pick(t, order))
    return {"cheap": conv, "cheap_kernel": step.kernel[0]}


def _add_cheap(w: Weights, step: Ghost, cheap: Folded) -> tuple[int, int, int, int]:
    channels = lane_channels(step.primary, step.cheap_channels // step.primary, step.out_channels)[1:].flatten()
    made = torch.where(channels < 0, -1, channels - step.primary)
    return w.conv(w.taps(cheap, made), cheap, step.cheap, lambda t: _pick(t, made))


def ghost_module_block(w: Weights, step: Ghost, first: Folded, cheap: Folded | None) -> Block:
    """Runs a Ghost module, or with ``cheap_channels`` 0 a 1x1 convolution, by itself."""
    return Block(channels=step.channels, **add_module(w, step, first, cheap))


def window_block(w: Weights, step: Conv, folded: Folded) -> Block:
    """Runs a dense convolution of an image, as a 1x1 convolution of the numbers in each of its windows."""
    depth = folded.weight[0].numel()
    return Block(
        channels=depth, primary2=step.filters, kept2=step.filters, window=step.kernel[0], window_stride=step.stride[0],
        window_padding=step.padding[0], image_channels=step.channels,
        second=w.conv(w.matrix(folded.weight.flatten(1)), folded, step.layer),
    )  # fmt: skip


OF_MEANS, OF_FEATURES = 1, 2  # of ``Block.linear``: csrc/cuda/shape.h


def linear_block(w: Weights, step: Linear, folded: Folded, reads: int) -> Block:
    """Runs a linear layer, of the channel means of the block before it or of its features."""
    return Block(
        channels=step.channels, primary2=step.features, kept2=step.features, linear=reads,
        second=w.conv(w.matrix(folded.weight.flatten(1)), folded, step.layer),
    )  # fmt: skip


Layers = tuple[Ghost | Depthwise | Excite, list[Folded]]


@dataclass(frozen=True)
class Parts:
    """The steps of a bottleneck, each with the folded layers that it has; see ``bottlenecks.Bottleneck``."""

    two: Layers
    one: Layers | None = None
    cheap: Layers | None = None
    depthwise: Layers | None = None
    excite: Layers | None = None
    shortcut: tuple[Layers, Layers] | None = None
    cheap2: Layers | None = None
    adds_input: bool = False


def bottleneck_block(w: Weights, parts: Parts) -> Block:
    """A Ghost bottleneck (Han et al. 2020, arXiv 1911.11907, section 3.2), or another block of the same steps."""
    step, layers = parts.one or parts.depthwise
    b = Block(channels=step.channels, primary=step.channels)
    kept = step.channels
    if parts.one is not None:
        b.primary, b.multiplier, b.cheap_kernel = step.primary, step.cheap_channels // step.primary, step.kernel
        b.first, kept = w.conv(w.matrix(layers[0].weight.flatten(1)), layers[0], step.layer), step.out_channels
        if b.multiplier:
            b.cheap = _add_cheap(w, step, layers[1])
    if parts.cheap is not None:
        step, (folded,) = parts.cheap
        vars(b).update(_add_replacing(w, step, folded))
    lanes = lane_channels(b.primary, b.multiplier, kept).flatten()
    in_lanes = lambda t: _pick(t, lanes)
    if parts.depthwise is not None:
        step, (folded,) = parts.depthwise
        b.kernel, b.stride = step.kernel[0], step.stride[0]
        b.depthwise = w.conv(w.taps(folded, lanes), folded, step.layer, in_lanes)
    if parts.excite is not None:
        step, (reduce, expand) = parts.excite
        b.hidden, b.gate = step.hidden, step.gate
        b.reduce = w.conv(w.matrix(in_lanes(reduce.weight.flatten(1))), reduce, step.reduce)
        b.expand = w.conv(w.matrix(in_lanes(expand.weight.flatten(1).t()).t()), expand, step.expand, in_lanes)
    two, layers = parts.two
    ordered = layers[0]._replace(weight=in_lanes(layers[0].weight.flatten(1)))
    vars(b).update(add_module(w, two, ordered, layers[1] if two.cheap_channels else None))
    if parts.cheap2 is not None:
        step, (folded,) = parts.cheap2
        vars(b).update({f"{name}2": value for name, value in _add_replacing(w, step, folded).items()})
    b.shortcut = 0 if parts.adds_input else -1
    if parts.shortcut is not None:
        (step, (folded,)), (pointwise, (last,)) = parts.shortcut
        b.shortcut, b.stride = step.kernel[0], step.stride[0]
        channels = F.pad(torch.arange(b.channels), (0, b.channels % 2), value=-1)
        b.shortcut_depthwise = w.conv(w.taps(folded, channels), folded, step.layer)
        b.shortcut_pointwise = w.conv(w.matrix(last.weight.flatten(1)), last, pointwise.layer)
    return b


assert NONE == 0  # an activation that is not there
