"""Peak resident memory of a training step, in a process of its own: ``python -m ghost_ops.bench.resident``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from .results import OK, Result
from .training import STEPS, TrainCase

STEPS_RUN = 3  # the first makes gradients and momenta, the others show what stays


def resident_bytes(name: str, case: TrainCase, batch: int, threads: int) -> int:
    """What the step called ``name`` adds to the peak resident memory of a process that holds net and batch.

    Raises:
        RuntimeError: the process failed.
    """
    arguments = (name, case.net, str(case.side), str(batch), str(threads))
    child = subprocess.run([sys.executable, "-m", __spec__.name, *arguments], capture_output=True, text=True)
    if child.returncode:
        raise RuntimeError(f"the step {name} in a process of its own: {child.stderr.strip().splitlines()[-1:]}")
    return int(child.stdout.split()[-1])


def add_resident(rows: list[Result], case: TrainCase, on_step: Callable[[str], None]) -> list[Result]:
    """Fills in ``resident_bytes`` of the results of ``run_training`` that have a time; on Linux only."""
    if not Path("/proc/self/clear_refs").exists():
        return rows
    for row in rows:
        if row.status == OK:
            on_step(f"{row.label}: memory")
            row.resident_bytes = resident_bytes(row.baseline, case, row.batch, row.threads)
    return rows


def _memory(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process, in bytes.

    psutil has no peak that can be reset, and the peak of getrusage may be the parent's.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def main(name: str, net: str, side: str, batch: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    step = next(step for step in STEPS if step.name == name)
    case = TrainCase(net, int(side))
    module = case.build().to(memory_format=step.layout)
    x, labels = case.batch(int(batch))
    x = x.contiguous(memory_format=step.layout)
    forward = step.prepare(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    for _ in range(STEPS_RUN):
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(forward(x), labels).backward()
        optimizer.step()
    print(_memory("VmHWM") - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
