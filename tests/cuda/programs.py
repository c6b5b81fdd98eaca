"""Bottlenecks for the CUDA backend, drawn."""

from __future__ import annotations

import random

import torch

from ghost_ops.activations import ACTIVATIONS, GATES, NONE, PRELU, RELU, WITH_NUMBER
from ghost_ops.program import BETA, BIAS, GAMMA, NORM, SLOPES, Depthwise, Excite, Ghost, Layer, Load, Step, Store
from tests.program.cases import Program, parameters_for

BN = NORM | GAMMA | BETA


def draw_bottleneck(rng: random.Random, most: int = 40) -> tuple[list[Step], int]:
    """The steps of a bottleneck of any kind, and its stride."""

    def layer(acts=None):
        act = rng.choice([NONE, RELU, *(range(len(ACTIVATIONS)) if acts is None else acts)])
        parts = rng.choice([0, BIAS, NORM, BN, BIAS | BN]) | (SLOPES if act == PRELU else 0)
        return Layer(parts, 1e-5, act, 0.2 if act in WITH_NUMBER else 0.0)

    def ghost(source, out, channels, primary, kept, *, residual=-1, scaled=False, squeeze=False):
        made = primary * (-(-(kept - primary) // primary))
        kernel = rng.choice([1, 3, 3, 5, 7])
        return Ghost(source, out, residual, scaled, squeeze, channels, primary, made, kept, kernel, layer(),
                     layer() if made else None)  # fmt: skip

    def split(kept):
        return rng.choice([kept, -(-kept // 2), -(-kept // 2), -(-kept // 2), -(-kept // 3), -(-kept // 4)])

    channels, expanded = rng.choice([1, 3, 8, 16, 17, 24, rng.randint(1, most)]), rng.randint(2, 3 * most)
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


def draw_block(seed: int, most: int = 40) -> tuple[Program, torch.Tensor]:
    """A bottleneck as a program, and an input; maps of one pixel and of odd sides among them."""
    rng = random.Random(seed)
    steps, _ = draw_bottleneck(rng, most)
    steps.append(Store(steps[-1].out))
    program = Program(tuple(steps), parameters_for(steps, seed), steps[0].channels)
    shape = rng.choice([1, 1, 2]), program.channels, rng.choice([1, 4, 7, 9, 13]), rng.choice([1, 3, 7, 8, 12])
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return program, x
