"""Bottlenecks for the CUDA backend, drawn."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import torch

from ghost_ops.activations import ACTIVATIONS, GATES, NONE, PRELU, RELU, WITH_NUMBER
from ghost_ops.program import (
    BETA,
    BIAS,
    GAMMA,
    NORM,
    SLOPES,
    Add,
    Depthwise,
    Excite,
    Ghost,
    Layer,
    Linear,
    Load,
    Pool,
    Scale,
    Step,
    Store,
)
from tests.program.cases import Program, conv, parameters_for

BN = NORM | GAMMA | BETA


def draw_layer(rng: random.Random, acts: tuple[int, ...] | None = None) -> Layer:
    """A layer with some of the parameters that there are, and one of these activations."""
    act = rng.choice([NONE, RELU, *(range(len(ACTIVATIONS)) if acts is None else acts)])
    parts = rng.choice([0, BIAS, NORM, BN, BIAS | BN]) | (SLOPES if act == PRELU else 0)
    return Layer(parts, 1e-5, act, 0.2 if act in WITH_NUMBER else 0.0)


def draw_bottleneck(rng: random.Random, most: int = 40, given: int | None = None) -> tuple[list[Step], int]:
    """The steps of a bottleneck of any kind, of any number of channels or the given one, and its stride."""

    def layer(acts=None):
        return draw_layer(rng, acts)

    def ghost(source, out, channels, primary, kept, *, residual=-1, scaled=False, squeeze=False):
        made = primary * (-(-(kept - primary) // primary))
        kernel = rng.choice([1, 3, 3, 5, 7])
        return Ghost(source, out, residual, scaled, squeeze, channels, primary, made, kept, kernel, layer(),
                     layer() if made else None)  # fmt: skip

    def split(kept):
        return rng.choice([kept, -(-kept // 2), -(-kept // 2), -(-kept // 2), -(-kept // 3), -(-kept // 4)])

    channels, expanded = rng.choice([1, 3, 8, 16, 17, 24, rng.randint(1, most)]), rng.randint(2, 3 * most)
    channels = channels if given is None else given
    stride, squeezed = rng.choice([1, 1, 2, 2, 3]), rng.random() < 0.5
    between = stride > 1 or rng.random() < 0.2
    kind = rng.choice(["identity", "convolutions", "none"]) if stride == 1 else rng.choice(["convolutions", "none"])
    out = channels if kind == "identity" else rng.choice([1, 8, 13, 24, rng.randint(1, most)])
    steps: list[Step] = [
        Load(0, channels, True),
        ghost(0, 1, channels, split(expanded), expanded, squeeze=squeezed and not between),
    ]
    inner = 1
    if between:
        inner = 2
        steps.append(Depthwise.same(1, 2, squeezed, expanded, rng.choice([1, 3, 3, 5, 7]), stride, layer()))
    if squeezed:
        gate = rng.randrange(len(GATES))
        steps.append(Excite(expanded, rng.choice([1, 4, 20]), gate, layer(), layer((NONE,))))
    residual = {"identity": 0, "none": -1, "convolutions": 4}[kind]
    if kind == "convolutions":
        steps.append(Depthwise.same(0, 3, False, channels, rng.choice([1, 3, 5, 7]), stride, layer()))
        steps.append(Ghost(3, 4, -1, False, False, channels, out, 0, out, 1, layer(), None))
    steps.append(ghost(inner, 5, expanded, split(out), out, residual=residual, scaled=squeezed))
    return steps, stride


def draw_other_block(rng: random.Random, most: int = 40, given: int | None = None) -> tuple[list[Step], int]:
    """The steps of a block that is no Ghost bottleneck, and its stride: an inverted residual, a separable convolution,
    or a bottleneck of RepGhost, whose cheap operations take the place of the primary channels."""

    def product(source, out, channels, kept, residual=-1, scaled=False):
        return Ghost(source, out, residual, scaled, False, channels, kept, 0, kept, 1, draw_layer(rng), None)

    def spread(source, out, channels, stride=1, squeeze=False):
        return Depthwise.same(source, out, squeeze, channels, rng.choice([3, 3, 5]), stride, draw_layer(rng))

    channels = rng.choice([3, 8, 16, 17, 24, rng.randint(1, most)]) if given is None else given
    expanded, stride, squeezed = rng.randint(2, 2 * most), rng.choice([1, 1, 2]), rng.random() < 0.5
    kind = rng.choice(["inverted", "separable", "rep", "rep", "rep"])
    kept = channels if stride == 1 and rng.random() < 0.6 else rng.choice([8, 13, rng.randint(1, most)])
    steps: list[Step] = [Load(0, channels, True)]
    at, expanded = (0, channels) if kind == "separable" else (1, expanded)
    if at:
        steps.append(product(0, 1, channels, expanded))
    if kind == "rep":
        between = stride > 1 or rng.random() < 0.3
        steps.append(spread(1, 2, expanded, squeeze=squeezed and not between))
        at = 2
        if between:
            steps.append(spread(2, 1, expanded, stride, squeezed))
            at = 1
    else:
        steps.append(spread(at, 2, expanded, stride, squeezed))
        at = 2
    scaled = squeezed
    if squeezed:
        steps.append(
            Excite(expanded, rng.choice([1, 4]), rng.randrange(len(GATES)), draw_layer(rng), draw_layer(rng, (NONE,)))
        )
        if rng.random() < 0.5:
            steps.append(Scale(at, 3 - at, False, expanded))
            at, scaled = 3 - at, False
    if kind != "rep":
        adds = kept == channels and stride == 1 and kind == "inverted"
        return [*steps, product(at, 5, expanded, kept, 0 if adds else -1, scaled)], stride
    steps += [product(at, 3, expanded, kept, scaled=scaled), spread(3, 4, kept)]
    if kept == channels and stride == 1:
        return [*steps, Add(*rng.choice([(4, 0), (0, 4)]), 5, False, kept)], stride
    return [*steps, spread(0, 1, channels, stride), product(1, 5, channels, kept, 4)], stride


def draw_block(seed: int, most: int = 40, draw: Callable = draw_bottleneck) -> tuple[Program, torch.Tensor]:
    """A bottleneck as a program, and an input; maps of one pixel and of odd sides among them."""
    rng = random.Random(seed)
    steps, _ = draw(rng, most)
    steps.append(Store(steps[-1].out))
    program = Program(tuple(steps), parameters_for(steps, seed), steps[0].channels)
    shape = rng.choice([1, 1, 2]), program.channels, rng.choice([1, 4, 7, 9, 13]), rng.choice([1, 3, 7, 8, 12])
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return program, x


def draw_chain(seed: int, most: int = 20) -> tuple[Program, torch.Tensor, int]:
    """Blocks that follow each other, a convolution of the image before them and linear layers after them or not, and an
    input; and how many blocks there are."""
    rng = random.Random(seed)
    steps: list[Step] = []
    blocks, channels, entry = 0, None, rng.choice([1, 3, 3, 4])
    side = rng.choice([9, 14, 17])
    if rng.random() < 0.6:
        kernel, stride = rng.choice([1, 2, 3, 3, 5, 6]), rng.choice([1, 2, 2, 3])
        channels = rng.choice([8, 13, 16])
        steps.append(conv(-1, 0, entry, channels, kernel, stride, rng.choice([kernel // 2, 0, 2]), draw_layer(rng)))
        blocks, side = 1, side * 2
    for _ in range(rng.choice([0, 1, 2, 2, 3]) if blocks else rng.choice([1, 2, 2, 3])):
        more, _ = rng.choice([draw_bottleneck, draw_bottleneck, draw_other_block])(rng, most, channels)
        slots = {0: steps[-1].out if steps else 0, 5: 5 - (steps[-1].out if steps else 0)}
        named = lambda step, slots=slots: {
            name: slots.get(slot, slot) for name in ("source", "out", "residual", "other")
            if (slot := getattr(step, name, -1)) >= 0
        }  # fmt: skip
        first, *rest = more
        entry, steps = (entry, steps) if steps else (first.channels, [first])
        steps += [replace(step, **named(step)) for step in rest]
        last = steps[-1]
        channels, blocks = last.channels if isinstance(last, Add) else last.out_channels, blocks + 1
    at = steps[-1].out
    if rng.random() < 0.5:
        wide, sizes = rng.choice([8, 20, 40]), [rng.choice([5, 16, 24]) for _ in range(rng.choice([1, 2]))]
        squeezed = Ghost(at, 5 - at, -1, False, True, channels, wide, 0, wide, 1, draw_layer(rng), None)
        steps += [squeezed, Pool(wide)]
        steps += [Linear(i, o, draw_layer(rng)) for i, o in zip([wide, *sizes], sizes)]
        blocks += 1 + len(sizes)
    else:
        steps.append(Store(at))
    program = Program(tuple(steps), parameters_for(steps, seed), entry)
    x = torch.randn(rng.choice([1, 2, 9]), entry, side, rng.choice([7, 10, 12]),
                    generator=torch.Generator().manual_seed(seed))  # fmt: skip
    return program, x, blocks
