"""Programs through the CUDA backend with the emulator in the place of the device."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch

from ghost_ops.activations import ACTIVATIONS, GATES, NONE, PRELU, RELU, WITH_NUMBER
from ghost_ops.backends.cuda import launch
from ghost_ops.backends.cuda.weights import Block, chunk_of
from ghost_ops.program import BETA, BIAS, GAMMA, NORM, SLOPES, Depthwise, Excite, Ghost, Layer, Load, Step, Store
from tests.cuda import emulate
from tests.program.cases import Program, parameters_for

BN = NORM | GAMMA | BETA


def lanes(b: Block) -> int:
    if not b.primary:
        return b.kept2
    chunk = chunk_of(b.primary)
    return -(-b.primary // chunk) * chunk * (1 + b.multiplier)


class Emulator:
    """What ``backends/cuda/launch.py`` has, on the CPU.

    Attributes:
        order: of the fibers, see ``emulate.run``.
        tile: height, width, threads and kept of every bottleneck and module; None: the planner's.
        device: processors and bytes of shared memory.
        plans: of the calls that were made, each with its block.
    """

    def __init__(self, order: int = 0, tile=None, device: tuple[int, int] = emulate.H200) -> None:
        self.order, self.tile, self.device, self.plans = order, tile, device, []

    def gather(self, packed, index, matrices, like):
        return emulate.gather(packed, index, matrices, like.dtype, self.order)

    def find(self, numbers, dtype, images, device):
        found = None
        if self.tile is not None:
            found = emulate.plan(list(numbers), dtype, images, self.device, self.tile)
        return found or emulate.plan(list(numbers), dtype, images, self.device)

    def _plan(self, block: Block, x: torch.Tensor) -> tuple[list[int], list[int]]:
        numbers = block.numbers(*x.shape[2:])
        found = self.find(numbers, x.dtype, x.shape[0], x.device)
        assert found is not None, "no plan fits"
        self.plans.append((block, found))
        return numbers, found

    def launch_bottleneck(self, x, matrices, vectors, block):
        assert x.is_contiguous(memory_format=torch.channels_last)
        return emulate.run(*self._plan(block, x), x, matrices, vectors, lanes=lanes(block), order=self.order)[0]

    def launch_ghost_module(self, x, matrices, vectors, block, scale, residual, squeeze):
        return emulate.run(
            *self._plan(block, x), x, matrices, vectors, lanes=lanes(block), residual=residual, scale=scale,
            squeeze=squeeze, order=self.order,
        )  # fmt: skip

    @contextmanager
    def running(self) -> Iterator[None]:
        own = {name: getattr(self, name) for name in ("find", "gather", "launch_bottleneck", "launch_ghost_module")}
        with mock.patch.multiple(launch, **own):
            yield


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
