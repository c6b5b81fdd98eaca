"""Trains and runs a small GhostNet with ever other sizes, and fails where memory grows or a result is wrong.

``python -m tests.endurance.soak --seconds 7200``. A step is a training step of the fused net or calls of frozen ones,
each with another batch, height, width, layout, number of threads and dtype. From time to time the net is reverted,
fused and frozen again, and results are compared with plain PyTorch and float64.
"""

from __future__ import annotations

import copy
import os
import random
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # more threads than cores, which would wait busily
# PyTorch keeps 1024 convolutions of sizes that it has seen, in two caches: those of one convolution grow by 40 MiB over
# the first 2000 sizes and stay so. Small ones are full after the warm-up.
os.environ.setdefault("LRU_CACHE_CAPACITY", "16")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")

import click
import torch
from torch import nn

import ghost_ops

from ..fuzz.lives import Life, step
from ..helpers import LAYOUTS, assert_as_accurate, make_map
from .nets import small_ghostnet
from .resident import Samples

COMPARED, RENEWED, NEW = 40, 25, 1000  # so many steps apart: comparisons, nets fused and frozen again, other nets
SAMPLES, WARM_UP = 120, 1 / 8  # of memory; the share of the time before the first that counts
DTYPES = torch.float32, torch.bfloat16


class Soak(Life):
    """A net that is used, beside two that are never fused; ``plain`` leaves ghost_ops out, to see what PyTorch does."""

    def __init__(self, seed: int, plain: bool = False) -> None:
        self.draw, self.without = random.Random(seed), plain
        self.steps, self.compared, self.failures = 0, 0, []
        self.new_net()

    def new_net(self) -> None:
        self.seed = self.draw.randrange(2**16)
        self.ours = small_ghostnet(self.seed)
        self.plain, self.exact = copy.deepcopy(self.ours), copy.deepcopy(self.ours).double()
        self.renew()

    def renew(self) -> None:
        """Revert, fuse and freeze the net again."""
        if self.without:
            self.frozen = {dtype: copy.deepcopy(self.ours).eval().to(dtype) for dtype in DTYPES}
            return
        ghost_ops.revert(self.ours)
        ghost_ops.fuse(self.ours, memory=self.draw.choice([None, "low", "balanced"]))
        self.frozen = {dtype: ghost_ops.freeze(self.ours.eval(), dtype=dtype) for dtype in DTYPES}
        self.source = copy.deepcopy(ghost_ops.revert(copy.deepcopy(self.ours)))

    def an_image(self) -> torch.Tensor:
        n, h, w = (self.draw.randint(low, high) for low, high in ((1, 6), (17, 96), (17, 96)))
        return make_map((n, 3, h, w), layout=self.draw.choice(list(LAYOUTS)), seed=self.draw.randrange(2**31))

    def step(self) -> None:
        torch.set_num_threads(self.draw.randint(1, 3))
        self.steps += 1
        if self.steps % NEW == 0:
            self.new_net()
        elif self.steps % RENEWED == 0:
            self.renew()
        self.train_once()
        self.run()
        if self.steps % COMPARED == 0:
            self.check()

    def train_once(self) -> None:
        optimizer = torch.optim.SGD(self.ours.train().parameters(), lr=0.01)
        x, target = self.an_image(), torch.tensor([self.draw.randrange(10)])
        with torch.autocast("cpu", torch.bfloat16, enabled=self.draw.random() < 0.25):
            loss = nn.functional.cross_entropy(self.ours(x), target.expand(len(x)))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.ours.parameters(), 1.0)
        optimizer.step()

    def run(self) -> None:
        x = self.an_image()
        with torch.no_grad():
            self.ours.eval()(x)
            for dtype, net in self.frozen.items():
                net(x.to(dtype))

    def check(self) -> None:
        if self.without:
            return
        try:
            self.twins(lambda net: net.train())
            self.align()
            self.compare(f"step {self.steps}, training", step, self.an_image())
            for dtype, frozen in self.frozen.items():
                x = self.an_image().to(dtype)
                with torch.no_grad():
                    plain = copy.deepcopy(self.source).eval().to(dtype)(x)
                    exact = copy.deepcopy(self.source).eval().to(dtype).double()(x.double())
                    assert_as_accurate(frozen(x), plain, exact, what=f"step {self.steps}, frozen {dtype}")
        except AssertionError as error:
            self.failures.append(str(error))
            click.echo(f"wrong: {error}")
        self.compared += 1


@click.command(help=__doc__.splitlines()[0])
@click.option("--seconds", default=7200.0)
@click.option("--seed", default=0)
@click.option("--plain", is_flag=True, help="Without ghost_ops, to see what PyTorch and the allocator do.")
def main(seconds: float, seed: int, plain: bool) -> None:
    soak, samples, start = Soak(seed, plain), Samples(), time.monotonic()
    sampled = 0.0
    while (now := time.monotonic() - start) < seconds:
        soak.step()
        if now - sampled < seconds / SAMPLES:
            continue
        sampled, counts = now, now >= seconds * WARM_UP
        taken = samples if counts else Samples()
        taken.take(now)
        click.echo(f"{now / 60:6.1f} min  {soak.steps:7} steps  {soak.compared:5} compared  "
                   f"{taken.untrimmed[-1]:7.1f} MiB resident  {taken.trimmed[-1]:7.1f} MiB held"
                   f"{'' if counts else '  warm-up'}")  # fmt: skip
    grown = samples.growth()
    for line in (*grown, *soak.failures[:20]):
        click.echo(line)
    wrong = len(soak.failures)
    click.echo(f"{soak.steps} steps in {seconds / 60:.0f} minutes, {soak.compared} compared, {wrong} wrong; memory "
               f"{'grows' if grown else 'flat'}: {samples.trimmed[0]:.1f} MiB held at first, "
               f"{samples.trimmed[-1]:.1f} at last")  # fmt: skip
    raise SystemExit(bool(grown or soak.failures))


if __name__ == "__main__":
    main()
