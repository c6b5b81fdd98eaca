"""One frozen net and one fused module, used by many threads and processes: ``python -m tests.endurance.concurrency``.

Threads call them all the time, each with other sizes and another number of threads of PyTorch's. Meanwhile the process
forks, spawns others, and loads data with workers that call them too. Every result must have the bits that it has where
nothing else runs with as many threads of PyTorch's, and memory must stay flat.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # many times more threads than cores, which would wait busily

import click
import torch
from torch.utils.data import DataLoader, Dataset

import ghost_ops

from ..helpers import LAYOUTS, make_map, randomise
from .nets import small_ghostnet
from .resident import Samples

THREADS, LIMIT = 16, 120.0  # LIMIT: seconds after which a process hangs
SAMPLES, WARM_UP = 40, 1 / 4
COUNTS = 1, 2, 3  # threads of PyTorch's, on which the order of some sums depends
SIZES = [(1, 33, 31), (2, 20, 45), (3, 17, 17), (1, 64, 64), (4, 40, 24), (2, 48, 48)]


class Shared:
    """The net, the module, inputs, and what each call gives where it is the only one."""

    def __init__(self) -> None:
        layouts = list(LAYOUTS)
        self.frozen = ghost_ops.freeze(small_ghostnet(1).eval())
        self.fused = randomise(ghost_ops.FusedGhostBottleneck(3, 20, 12, stride=2, se_ratio=0.25), 2).eval()
        self.inputs = [make_map((n, 3, h, w), layout=layouts[i % 2], seed=i) for i, (n, h, w) in enumerate(SIZES)]
        self.expected = {}
        before = torch.get_num_threads()
        for count in COUNTS:
            torch.set_num_threads(count)
            self.expected[count] = [[self.call(kind, x) for x in self.inputs] for kind in self.KINDS]
        torch.set_num_threads(before)
        file = io.BytesIO()
        torch.save(self.__dict__, file)
        self.saved = file.getvalue()

    def __reduce__(self) -> tuple:
        """As bytes: a tensor that is sent to another process moves to shared memory, under the threads that read it."""
        return _loaded, (self.saved,)

    def _run_frozen(self, x: torch.Tensor) -> list[torch.Tensor]:
        with torch.no_grad():
            return [self.frozen(x)]

    def _run_fused(self, x: torch.Tensor) -> list[torch.Tensor]:
        with torch.inference_mode():
            return [self.fused(x)]

    def _gradients(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            out = self.fused(x)
            return [out.detach(), *torch.autograd.grad(out.square().sum(), (x, *self.fused.parameters()))]

    KINDS: tuple[Callable[..., list[torch.Tensor]], ...] = _run_frozen, _run_fused, _gradients

    def call(self, kind: Callable[..., list[torch.Tensor]], x: torch.Tensor) -> list[torch.Tensor]:
        return kind(self, x)

    def wrong(self, draw: random.Random) -> str | None:
        """Makes a drawn call; says what differs from the call that ran by itself."""
        kind, index = draw.randrange(len(self.KINDS)), draw.randrange(len(self.inputs))
        results = self.call(self.KINDS[kind], self.inputs[index])
        expected = self.expected[torch.get_num_threads()][kind][index]
        for number, (a, b) in enumerate(zip(results, expected, strict=True)):
            if not torch.equal(a, b):
                return (
                    f"{self.KINDS[kind].__name__}, input {index}, result {number}: {float((a - b).abs().max()):.3g} off"
                )
        return None

    def some_wrong(self, calls: int, seed: int) -> list[str]:
        draw = random.Random(seed)
        return [found for found in (self.wrong(draw) for _ in range(calls)) if found]


def _loaded(saved: bytes) -> Shared:
    shared = Shared.__new__(Shared)
    shared.__dict__.update(torch.load(io.BytesIO(saved), weights_only=False), saved=saved)
    return shared


class Results(Dataset):
    """A data set whose items are results of the frozen net and the fused module."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared

    def __len__(self) -> int:
        return 2 * len(SIZES)

    def __getitem__(self, index: int) -> torch.Tensor:
        kind, index = divmod(index, len(SIZES))
        return self.shared.call(Shared.KINDS[kind], self.shared.inputs[index])[0].clone()


def in_a_fork(shared: Shared, seed: int) -> list[str]:
    """A forked process calls them, while the threads of its parent run on."""
    child = os.fork()
    if child == 0:
        code = 2
        try:
            torch.set_num_threads(1)  # OpenMP's threads do not survive a fork: DataLoader's workers do the same
            code = int(bool(shared.some_wrong(4, seed)))
        finally:
            os._exit(code)
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return [f"a forked process ended with {status}"] if status else []
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return [f"a forked process hung for {LIMIT:.0f} s"]


def _spawned(shared: Shared, seed: int, results: Any) -> None:
    torch.set_num_threads(2)
    results.put(shared.some_wrong(4, seed))


def in_a_spawned_process(shared: Shared, seed: int) -> list[str]:
    """A process that starts afresh is given the net and the module."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_spawned, args=(shared, seed, results))
    process.start()
    process.join(LIMIT)
    if process.exitcode != 0:
        process.kill()
        return [f"a spawned process ended with {process.exitcode} (None: it hung)"]
    return results.get(timeout=LIMIT)


def in_loaders(shared: Shared, context: str, workers: int = 2) -> list[str]:
    """A DataLoader's workers call them."""
    loader = DataLoader(Results(shared), batch_size=None, num_workers=workers, multiprocessing_context=context,
                        timeout=LIMIT)  # fmt: skip
    expected = [value[0] for kind in shared.expected[1][:2] for value in kind]  # a worker has one thread
    return [f"item {i} of a {context} DataLoader" for i, (a, b) in enumerate(zip(loader, expected, strict=True))
            if not torch.equal(a, b)]  # fmt: skip


EVENTS: tuple[Callable[[Shared, int], list[str]], ...] = (
    in_a_fork,
    lambda shared, seed: in_loaders(shared, "fork"),
    in_a_fork,
    in_a_spawned_process,
    in_a_fork,
    lambda shared, seed: in_loaders(shared, "spawn"),
)


class Crowd:
    """Threads that call until they are stopped."""

    def __init__(self, shared: Shared, threads: int = THREADS) -> None:
        self.shared, self.calls, self.failures, self.stops = shared, [0] * threads, [], threading.Event()
        self.threads = [threading.Thread(target=self._work, args=(number,)) for number in range(threads)]

    def _work(self, number: int) -> None:
        draw = random.Random(number)
        torch.set_num_threads(draw.choice(COUNTS))
        try:
            while not self.stops.is_set():
                if draw.random() < 0.1:
                    torch.set_num_threads(draw.choice(COUNTS))
                if found := self.shared.wrong(draw):
                    self.failures.append(found)
                self.calls[number] += 1
        except BaseException as error:  # a thread's own error would only be printed
            self.failures.append(f"{type(error).__name__}: {error}")
            raise

    def __enter__(self) -> Crowd:
        self.before = torch.get_num_threads()
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stops.set()
        for thread in self.threads:
            thread.join()
        torch.set_num_threads(self.before)


class Watch(threading.Thread):
    """Takes samples of memory, whatever the other threads wait for."""

    def __init__(self, seconds: float, crowd: Crowd) -> None:
        super().__init__(daemon=True)
        self.seconds, self.crowd, self.samples, self.ends = seconds, crowd, Samples(), threading.Event()

    def run(self) -> None:
        start = time.monotonic()
        while not self.ends.wait(self.seconds / SAMPLES):
            now = time.monotonic() - start
            taken = self.samples if now >= self.seconds * WARM_UP else Samples()
            taken.take(now)
            click.echo(f"{now / 60:5.1f} min  {sum(self.crowd.calls):8} calls  {taken.trimmed[-1]:7.1f} MiB held"
                       f"{'' if taken is self.samples else '  warm-up'}")  # fmt: skip


@click.command(help=__doc__.splitlines()[0])
@click.option("--seconds", default=600.0)
@click.option("--threads", default=THREADS)
def main(seconds: float, threads: int) -> None:
    torch.set_num_threads(2)
    shared, failures, events, start = Shared(), [], 0, time.monotonic()
    with Crowd(shared, threads) as crowd:
        watch = Watch(seconds, crowd)
        watch.start()
        while time.monotonic() - start < seconds:
            failures += EVENTS[events % len(EVENTS)](shared, events)
            events += 1
            time.sleep(1.0)
        watch.ends.set()
        watch.join()
    failures += crowd.failures
    grown = watch.samples.growth()
    for line in (*grown, *failures[:20]):
        click.echo(line)
    held = watch.samples.trimmed
    click.echo(f"{threads} threads, {sum(crowd.calls)} calls, at least {min(crowd.calls)} a thread, {events} forks, "
               f"spawns and loaders in {seconds / 60:.0f} minutes: {len(failures)} wrong; memory "
               f"{'grows' if grown else 'flat'}: {held[0]:.1f} MiB held at first, {held[-1]:.1f} at last")  # fmt: skip
    raise SystemExit(bool(grown or failures))


if __name__ == "__main__":
    main()
