"""Drawn programs and calls of them, and what is held against PyTorch's result."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd

import torch

from ghost_ops.activations import ACTIVATIONS, GATES, PRELU, WITH_NUMBER
from ghost_ops.backends import reference
from ghost_ops.program import (
    BETA,
    BIAS,
    GAMMA,
    NORM,
    SLOPES,
    Activation,
    Add,
    AvgPool,
    BilinearUpsample,
    Concat,
    Conv,
    Depthwise,
    Excite,
    Flatten,
    Ghost,
    Layer,
    Linear,
    Load,
    MaxPool,
    Multiply,
    Pool,
    Scale,
    ScaleFeatures,
    Shuffle,
    Slice,
    Squeeze,
    Step,
    Store,
    StoreFeatures,
    Upsample,
)
from tests.helpers import assert_as_accurate
from tests.ops.cases import Errors, in_layout
from tests.program.cases import SLOTS, Program, conv, parameters_for

PARTS = (0, BIAS, NORM, NORM | GAMMA, NORM | BETA, NORM | GAMMA | BETA, BIAS | NORM | GAMMA | BETA)


class _Drawing:
    """A program as it grows: which slot holds which map, and what there is of squeeze and excitation."""

    def __init__(self, rng: random.Random, most_channels: int) -> None:
        self.rng, self.most = rng, most_channels
        self.steps: list[Step] = []
        self.maps: dict[int, tuple[int, int]] = {}  # slot: channels, and a number that stands for the size
        self.squeeze = self.excitation = self.at = 0
        self.sizes = 0

    def layer(self, acts: Sequence[int] = range(len(ACTIVATIONS))) -> Layer:
        act, parts = self.rng.choice([0, 1, *acts]), self.rng.choice(PARTS)
        parts |= SLOPES if act == PRELU else 0
        return Layer(parts, self.rng.choice([1e-5, 1e-3]), act, 0.2 if act in WITH_NUMBER else 0.0)

    def channels(self) -> int:
        return self.rng.choice([1, 3, 4, 7, 8, 12, 16, 17, 20, 24, 33, 40, self.rng.randint(1, self.most)])

    def first(self) -> None:
        rng, channels = self.rng, self.channels()
        if rng.random() < 0.4:
            channels = rng.choice([1, 2, 3, 3, 3, 8])
            kernel = rng.choice([1, 2, 3, 3, 4, 5])
            filters, stride, padding = self.channels(), rng.choice([1, 2, 2, 3]), rng.choice([kernel // 2, 0, 2])
            self.add(conv(-1, 0, channels, filters, kernel, stride, padding, self.layer()), filters)
        else:
            self.add(Load(0, channels, True), channels)

    def add(self, step: Step, channels: int, size: int = 0) -> None:
        self.steps.append(step)
        self.maps[step.out] = channels, size
        self.at = step.out
        if hasattr(step, "squeeze"):
            self.squeeze = channels if step.squeeze else 0

    def target(self, *taken: int) -> int:
        return self.rng.choice([slot for slot in range(SLOTS) if slot not in taken])

    def ghost(self, source: int, squeeze: bool = False) -> None:
        rng = self.rng
        channels, size = self.maps[source]
        scaled = self.excitation == channels and rng.random() < 0.8
        residuals = [slot for slot, (c, other) in self.maps.items() if other == size and 1 < c <= self.most]
        residual = rng.choice(residuals) if residuals and rng.random() < 0.4 else -1
        if residual >= 0:
            kept = self.maps[residual][0]
            primary = rng.choice([kept, -(-kept // 2), -(-kept // 3), rng.randint(-(-kept // 4), kept)])
            made = primary * (-(-(kept - primary) // primary)) if primary < kept else 0
        else:
            primary = self.channels()
            made = primary * rng.choice([0, 1, 1, 1, 2, 3]) if primary * 4 < 3 * self.most else primary
            kept = rng.choice([primary + made, rng.randint(primary + 1, primary + made)]) if made else primary
        cheap = self.layer() if made else None
        step = Ghost(source, self.target(source, residual), residual, scaled, squeeze, channels, primary, made, kept,
                     rng.choice([1, 3, 3, 5, 7]), self.layer(), cheap)  # fmt: skip
        self.add(step, kept, size)

    def depthwise(self, source: int, squeeze: bool) -> None:
        channels, size = self.maps[source]
        kernel, stride = self.rng.choice([1, 3, 5, 7, 7]), self.rng.choice([1, 1, 2, 2, 3])
        if stride > 1:
            self.sizes += 1
            size = self.sizes
        self.add(
            Depthwise.same(source, self.target(source), squeeze, channels, kernel, stride, self.layer()), channels, size
        )

    def dense(self, source: int, squeeze: bool) -> None:
        """A convolution with or without a residual, of sizes that fit on a map of one pixel."""
        rng = self.rng
        channels, size = self.maps[source]
        residuals = [slot for slot, (c, other) in self.maps.items() if other == size and c <= self.most]
        kernel = [(rng.choice([1, 2, 3, 3, 5]), rng.choice([1, 1, 1, 2])) for _ in range(2)]
        (kh, dh), (kw, dw) = kernel
        padding = [-(-d * (k - 1) // 2) for k, d in kernel]
        stride, residual = (rng.choice([1, 1, 2, 3]), rng.choice([1, 1, 2])), -1
        if stride != (1, 1) or any(d * (k - 1) % 2 for k, d in kernel):
            self.sizes += 1
            size = self.sizes
        elif residuals and rng.random() < 0.6:
            residual = rng.choice(residuals)
        filters = self.maps[residual][0] if residual >= 0 else self.channels()
        groups = rng.choice(
            [g for g in range(1, 5) if channels % g == 0 and filters % g == 0] + [gcd(channels, filters)]
        )
        step = conv(
            source, self.target(source, residual), channels, filters, (kh, kw), stride, tuple(padding), self.layer(),
            dilation=(dh, dw), groups=groups, residual=residual,
            residual_first=residual >= 0 and rng.random() < 0.5, squeeze=squeeze,
        )  # fmt: skip
        self.add(step, filters, size)

    def max_pool(self, source: int) -> None:
        channels, size = self.maps[source]
        kernel, stride = self.rng.choice([1, 2, 3, 3, 5]), self.rng.choice([1, 2, 2, 3])
        if stride > 1 or kernel % 2 == 0:
            self.sizes += 1
            size = self.sizes
        self.add(MaxPool(source, self.target(source), channels, kernel, stride, kernel // 2), channels, size)

    def activation(self, source: int, squeeze: bool) -> None:
        (channels, size), layer = self.maps[source], self.layer()
        layer = replace(layer, parts=layer.parts & SLOPES, eps=0.0)
        self.add(Activation(source, self.target(source), squeeze, channels, layer), channels, size)

    def any_depthwise(self, source: int, squeeze: bool) -> None:
        """A kernel that need not be square, with its own stride, padding and dilation of rows and of columns."""
        rng, (channels, size) = self.rng, self.maps[source]
        kernel = rng.choice([(1, 5), (5, 1), (2, 3), (4, 1), (3, 3), (1, 9), (7, 2)])
        dilation = rng.choice([(1, 1), (1, 1), (2, 1), (1, 3), (2, 2)])
        reach = [d * (k - 1) for d, k in zip(dilation, kernel)]
        stride, padding = rng.choice([(1, 1), (1, 1), (2, 1), (1, 3)]), tuple(-(-n // 2) for n in reach)
        if stride != (1, 1) or any(n % 2 for n in reach):
            size = self.new_size()
        step = Depthwise(
            source, self.target(source), squeeze, channels, kernel, stride, padding, dilation, self.layer()
        )
        self.add(step, channels, size)

    def new_size(self) -> int:
        self.sizes += 1
        return self.sizes

    def others(self, channels: int | None, size: int | None) -> list[int]:
        """Slots with maps of so many channels and of this size; None: any."""
        return [slot for slot, (c, s) in self.maps.items() if channels in (None, c) and size in (None, s)]

    def concat(self, source: int, squeeze: bool) -> None:
        rng, (_, size) = self.rng, self.maps[source]
        sources = [source, *rng.choices(self.others(None, size), k=rng.choice([1, 1, 2]))]
        rng.shuffle(sources)
        channels = sum(self.maps[slot][0] for slot in sources)
        if channels <= 3 * self.most:
            self.add(Concat(self.target(*sources), squeeze, tuple(sources)), channels, size)

    def slice(self, source: int) -> None:
        channels, size = self.maps[source]
        begin, end = sorted(self.rng.sample(range(channels + 1), 2))
        self.add(Slice(source, self.target(source), begin, end), end - begin, size)

    def sum(self, source: int, squeeze: bool) -> None:
        channels, size = self.maps[source]
        other = self.rng.choice(self.others(channels, size))
        self.add(Add(source, other, self.target(source, other), squeeze, channels), channels, size)

    def gate(self, source: int, squeeze: bool) -> None:
        """By a map that is often smaller."""
        channels, size = self.maps[source]
        if self.rng.random() < 0.7:
            self.avg_pool(source)
        gate = self.rng.choice(self.others(channels, None))
        if source in self.maps and self.maps[source] == (channels, size):
            self.add(Multiply(source, gate, self.target(source, gate), squeeze, channels), channels, size)

    def shuffle(self, source: int) -> None:
        channels, size = self.maps[source]
        groups = self.rng.choice([n for n in range(1, channels + 1) if channels % n == 0])
        self.add(Shuffle(source, self.target(source), channels, groups), channels, size)

    def upsample(self, source: int) -> None:
        rng, (channels, size) = self.rng, self.maps[source]
        like = rng.choice([-1, *self.maps])
        fixed = rng.choice([(0, 0), (5, 8)]) if like < 0 else (0, 0)
        scales = rng.choice([(2.0, 2.0), (1.0, 1.5), (1.3, 1.7)]) if like < 0 and fixed == (0, 0) else (0.0, 0.0)
        size = self.new_size() if like < 0 else self.maps[like][1]
        out = self.target(source, *([like] if like >= 0 else []))
        step = Upsample(source, out, channels, like, fixed, *scales)
        if rng.random() < 0.5:
            step = BilinearUpsample(*vars(step).values(), rng.random() < 0.5)
        self.add(step, channels, size)

    def avg_pool(self, source: int) -> None:
        rng, (channels, size) = self.rng, self.maps[source]
        kernel, stride = rng.choice([(2, 2), (3, 3), (2, 3), (1, 4)]), rng.choice([(2, 2), (1, 1), (2, 1)])
        if stride != (1, 1) or kernel != (3, 3):
            size = self.new_size()
        padding = tuple(k // 2 for k in kernel)
        self.add(
            AvgPool(source, self.target(source), channels, kernel, stride, padding, rng.random() < 0.5), channels, size
        )

    def scale(self, source: int, squeeze: bool) -> None:
        """By an excitation of as many channels, where there is one."""
        channels, size = self.maps[source]
        if self.excitation == channels:
            self.add(Scale(source, self.target(source), squeeze, channels), channels, size)

    def means(self, source: int) -> None:
        """Those of a map that is there, in a step of their own."""
        channels, _ = self.maps[source]
        self.steps.append(Squeeze(source, channels))
        self.squeeze = channels

    def excite(self) -> None:
        rng, channels = self.rng, self.squeeze
        acts = [a for a in range(len(ACTIVATIONS)) if a != PRELU] if rng.random() < 0.7 else [PRELU]
        hidden = rng.choice([1, 3, 8, 20])
        self.steps.append(Excite(channels, hidden, rng.randrange(len(GATES)), self.layer(acts), self.layer()))
        self.excitation = channels

    def draw(self, length: int) -> tuple[Step, ...]:
        rng = self.rng
        self.first()
        at = self.at
        for _ in range(length):
            source = at if rng.random() < 0.85 else rng.choice(list(self.maps))
            squeeze = rng.random() < 0.4
            kind = rng.random()
            if kind < 0.35:
                self.ghost(source, squeeze)
            elif kind < 0.42:
                self.dense(source, squeeze)
            elif kind < 0.52:
                self.depthwise(source, squeeze)
            elif kind < 0.55:
                self.any_depthwise(source, squeeze)
            elif kind < 0.6:
                self.activation(source, squeeze)
            elif kind < 0.8:
                rng.choice([self.concat, self.sum, self.gate])(source, squeeze)
            else:
                rng.choice([self.max_pool, self.slice, self.shuffle, self.upsample, self.avg_pool])(source)
            at, squeeze = self.at, self.squeeze > 0
            if rng.random() < 0.1:
                self.means(rng.choice(list(self.maps)))
                squeeze = True
            if squeeze and rng.random() < 0.8:
                self.excite()
            if rng.random() < 0.3:
                self.scale(at, rng.random() < 0.4)
                at = self.at
        if rng.random() < 0.6:
            self.steps.append(Store(at))
            return tuple(self.steps)
        if rng.random() < 0.3:
            channels, out = self.maps[at][0], self.target(at)
            self.steps += [Upsample(at, out, channels, -1, (2, 3), 0.0, 0.0), Flatten(out, channels, 6 * channels)]
            width = 6 * channels
        else:
            self.ghost(at, squeeze=True)
            width = self.squeeze
            self.steps.append(Pool(width))
        for _ in range(rng.randint(0, 3)):
            if rng.random() < 0.3:
                self.steps.append(ScaleFeatures(width, self.layer()))
                continue
            features = self.channels()
            self.steps.append(Linear(width, features, self.layer()))
            width = features
        if rng.random() < 0.2:
            self.steps.append(StoreFeatures(width))
        return tuple(self.steps)


def draw_program(seed: int, most_channels: int = 70, longest: int = 7) -> Program:
    rng = random.Random(seed)
    first, *steps = _Drawing(rng, most_channels).draw(rng.randint(1, longest))
    if isinstance(first, Load):  # as freeze does
        by_lanes = (Depthwise, Slice, Add, Multiply, Scale, Squeeze, Upsample, BilinearUpsample, AvgPool)
        first = replace(first, by_lanes=any(isinstance(s, by_lanes) and first.out in s.reads() for s in steps))
    steps = (first, *steps)
    return Program(steps, parameters_for(steps, seed), steps[0].channels)


@dataclass
class Call:
    """A program with an input, and how many threads run it."""

    program: Program
    x: torch.Tensor
    threads: int = 1

    def exact(self) -> torch.Tensor:
        p = self.program.to(torch.float64)
        return reference.program_eval(self.x.double(), p.parameters, p.code)

    def plain(self) -> torch.Tensor:
        """PyTorch's in float32, rounded once: what a program promises for bfloat16 too."""
        p = self.program.to(torch.float32)
        return reference.program_eval(self.x.float(), p.parameters, p.code).to(self.x.dtype)

    def __str__(self) -> str:
        steps = "".join(f"\n  {step}" for step in self.program.steps)
        return f"{tuple(self.x.shape)}, strides {self.x.stride()}, {self.threads} threads:{steps}"


HEIGHTS, WIDTHS = (1, 5, 14, 23, 40, 40), (1, 7, 17, 41)


def draw_call(seed: int, dtype: torch.dtype, threads: int) -> Call:
    rng, program = random.Random(seed), draw_program(seed)
    generator = torch.Generator().manual_seed(seed)
    least = 5 if isinstance(program.steps[0], Conv) else 1
    n = rng.choice([1, 2, 3, 9])
    h, w = (max(rng.choice(sizes), least) for sizes in (HEIGHTS, WIDTHS))
    x = torch.randn((n, program.channels, h, w), generator=generator).to(dtype)
    layout = rng.choice(["nchw", "channels_last", "channels_last", "strided"])
    parameters = program if rng.random() < 0.5 else program.to(dtype)
    return Call(parameters, in_layout(x, layout), threads)


def mismatch(call: Call, ours: torch.Tensor, what: str, errors: Errors | None = None) -> str | None:
    """How the result is less accurate than it may be: four times the error of a single case, whose few elements are a
    matter of luck; twice that of many, which ``errors`` takes. None where it is accurate enough."""
    exact, plain = call.exact(), call.plain()
    if errors is not None:
        errors.add(what, ours, plain, exact)
    try:
        assert_as_accurate(ours, plain, exact, 4.0, what=f"{what} of {call}")
    except AssertionError as error:
        return str(error)
    return None
