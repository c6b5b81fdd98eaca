"""Kills the example's training at random moments (SIGKILL), resumes it, and looks at what each kill has cost.

    python -m tests.examples.kills --kills 50

Half of the kills come at a drawn time, half as soon after it as a file is being written. After each the checkpoint must
load, be at least as new as the newest that was finished, and at most ``EVERY`` steps behind. A run that has ended must
have the bits of one that was never killed.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import sys
import tempfile
import time
import traceback
from pathlib import Path

import click
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
EVERY = 2  # steps from checkpoint to checkpoint
OPTIONS = ("--side", "8", "--batch-size", "200", "--ema", "0.9", "--checkpoint-every", str(EVERY))
PICTURES = 2  # curves.png takes as long as a few epochs: one run of so many draws it


class Child:
    """The example in a process of its own, made by fork: importing PyTorch for each would take longer than training.

    ``steps`` counts the run's steps, and ``saved`` is the step of the newest checkpoint that was finished.
    """

    def __init__(self, train, out: Path, epochs: int) -> None:
        self.shared = mmap.mmap(-1, 16)
        resumed = (out / "checkpoint.pt").is_file()
        self._put(*[step_of(out) if resumed else 0] * 2)
        self.pid = os.fork()
        if not self.pid:
            try:
                self._train(train, out, ["--epochs", str(epochs), *(["--resume"] if resumed else [])])
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)

    @property
    def steps(self) -> int:
        return struct.unpack("qq", self.shared[:])[0]

    @property
    def saved(self) -> int:
        return struct.unpack("qq", self.shared[:])[1]

    def _put(self, steps: int, saved: int) -> None:
        self.shared[:] = struct.pack("qq", steps, saved)

    def _train(self, train, out: Path, options: list[str]) -> None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        torch.set_num_threads(1)
        save = train.Run.save

        def counted(run, *args):
            save(run, *args)
            self._put(self.steps, run.place.step)

        train.Run.save = counted
        train_epoch = train.train_epoch

        def watched(run, *args):
            *args, after_step = args

            def after() -> bool:
                self._put(run.place.step, self.saved)
                return after_step()

            return train_epoch(run, *args, after)

        train.train_epoch = watched
        if random.randrange(PICTURES):
            train.draw_curves = lambda log, path: None
        train.main(["--out", str(out), *OPTIONS, *options], standalone_mode=False)
        os._exit(0)

    def ended(self) -> bool:
        """Whether it has ended by itself; raises where it has failed."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        assert not pid or status == 0, f"the training failed, status {status}"
        return bool(pid)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def step_of(out: Path) -> int:
    return torch.load(out / "checkpoint.pt", weights_only=True)["place"]["step"]


def killed(child: Child, out: Path, delay: float, writing: bool) -> bool:
    """Whether the child was killed, after a delay in seconds, or while it was writing a file after that."""
    end = time.monotonic() + delay
    while time.monotonic() < end or (writing and not any(out.glob("*.unfinished"))):
        if child.ended():
            return False
        time.sleep(0 if time.monotonic() > end else 0.002)
    if child.ended():
        return False
    child.kill()
    return True


def assert_same_run(out: Path, whole: Path) -> None:
    from .test_train import assert_same_bits

    assert_same_bits(*(torch.load(path / "checkpoint.pt", weights_only=True) for path in (out, whole)))
    assert (out / "log.csv").read_bytes() == (whole / "log.csv").read_bytes()


@click.command(help=__doc__.splitlines()[0])
@click.option("--kills", default=50)
@click.option("--epochs", default=3)
@click.option("--seed", default=0)
def main(kills: int, epochs: int, seed: int) -> None:
    sys.path.insert(0, str(EXAMPLES))
    import matplotlib.figure  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import train

    draw, folder = random.Random(seed), Path(tempfile.mkdtemp())
    whole = folder / "whole"
    child, began = Child(train, whole, epochs), time.monotonic()
    while not child.ended():
        time.sleep(0.01)
    seconds, total = time.monotonic() - began, step_of(whole)
    print(f"a run: {total} steps, {seconds:.1f} s, a checkpoint every {EVERY} steps and at the end of {epochs} epochs")
    count, runs, unfinished, lost = 0, 0, 0, []
    out = folder / "0"
    while count < kills:
        child = Child(train, out, epochs)
        if not killed(child, out, draw.uniform(0, seconds), draw.random() < 0.5):
            assert_same_run(out, whole)
            runs += 1
            out = folder / str(runs)
            continue
        count += 1
        there = step_of(out) if (out / "checkpoint.pt").exists() else 0
        left = any(out.glob("*.unfinished"))
        assert there >= child.saved, f"checkpoint {child.saved} was lost, {there} is there"
        assert child.steps - there <= EVERY, f"{child.steps} steps were done, the checkpoint is of {there}"
        unfinished += left
        lost.append(child.steps - there)
        while_writing = ", while a file was being written" if left else ""
        print(f"kill {count:2}: after step {child.steps:2}, the checkpoint is of step {there:2}{while_writing}")
    child = Child(train, out, epochs)
    while not child.ended():
        time.sleep(0.01)
    assert_same_run(out, whole)
    print(
        f"{count} kills, {unfinished} while a file was being written: no checkpoint lost, at most {max(lost)} steps; "
        f"{runs + 1} runs ended with the bits of one that was not killed"
    )


if __name__ == "__main__":
    main()
