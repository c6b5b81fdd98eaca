"""``warm_up``: compiles what a net needs before the first call, in parallel."""

from __future__ import annotations

import importlib.util
import os
import re
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ..backends import triton as backend
from .dry_run import Launches, dry_run
from .kernels import architecture_of, compile_all, specialisations

if TYPE_CHECKING:
    from rich.progress import Progress


@dataclass(frozen=True)
class WarmUp:
    """What ``warm_up`` did.

    Attributes:
        kernels: number of different kernels that the call starts.
        launches: number of times that it starts one.
        seconds: how long it took.
    """

    kernels: int
    launches: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.kernels} kernels for {self.launches} launches are ready, after {self.seconds:.0f} s"


def warm_up(
    net: nn.Module,
    example: torch.Tensor | tuple,
    *,
    jobs: int | None = None,
    progress: bool = True,
    architecture: str | None = None,
) -> WarmUp:
    """Compile the Triton kernels that ``net(example)`` starts, and its backward where the net is in training.

    Without it the first step of a fused GhostNet compiles some eighty kernels, one after the other, as it meets them.
    They are compiled in ``jobs`` processes here, and are found in Triton's cache on disk afterwards, by other processes
    and other runs too. Nothing is computed: parameters, gradients, buffers and random numbers stay as they are, and a
    net or an example may hold anything. A net whose forward depends on values of tensors cannot be warmed up in this
    way. Integers that follow from the batch size are not compiled for, but tiles depend on how much work there is: a
    batch of another size may need a few kernels more.

    Call it as the net will be called: in the same mode (``train`` or ``eval``), within the same ``torch.autocast``, on
    the same device, with an example of the same dtype, memory format and height and width.

    Args:
        net: a net that :func:`fuse` or :func:`freeze` has returned; of another, nothing is compiled.
        example: its input, or a tuple of its arguments.
        jobs: processes; as many as the processor's cores at most, by default that many.
        progress: whether a progress bar is shown, on standard error.
        architecture: compile for a device that is not there, ``"sm_80"``, ``"sm_90"`` or the like, as for a container:
            then net and example may be on the CPU, and autocast must be the CPU's, of the same dtype.

    Returns:
        How many kernels are ready.

    Raises:
        TypeError: net is not a ``torch.nn.Module``.
        ValueError: an example on the CPU without ``architecture``, or a number of jobs below 1.
        RuntimeError: Triton is not installed, the device is not supported, or a kernel does not compile.
    """
    began = time.perf_counter()
    if not isinstance(net, nn.Module):
        raise TypeError(f"ghost_ops.warm_up: net: expected a torch.nn.Module, got {type(net).__name__}")
    arguments = example if isinstance(example, tuple) else (example,)
    tensors = [t for t in tree_leaves(arguments) if isinstance(t, torch.Tensor)]
    if not tensors:
        raise ValueError(f"ghost_ops.warm_up: example: expected a tensor or a tuple of arguments, got {example!r}")
    if jobs is not None and jobs < 1:
        raise ValueError(f"ghost_ops.warm_up: jobs: expected at least 1, got {jobs}")
    device = tensors[0].device
    assumed = _checked(device, architecture)
    launches = _launches(net, arguments, None if device.type == "cuda" and architecture is None else assumed)
    kernels = specialisations(launches.kernels, assumed)
    most = jobs or len(os.sched_getaffinity(0))  # Triton is there on Linux only
    if kernels:
        with _bar(progress) as bar:
            task = bar.add_task("kernels", total=len(kernels))
            errors = compile_all(kernels, assumed, min(most, len(kernels)), lambda kernel: bar.advance(task))
        if errors:
            name, why = next(iter(errors.items()))
            raise RuntimeError(f"ghost_ops.warm_up: {len(errors)} kernels did not compile; the first, {name}: {why}")
    return WarmUp(len(kernels), len(launches.kernels), time.perf_counter() - began)


def _checked(device: torch.device, architecture: str | None) -> str:
    """The architecture to compile for."""
    if importlib.util.find_spec("triton") is None:
        raise RuntimeError("ghost_ops.warm_up: Triton is not installed: pip install triton")
    if architecture is not None:
        if not re.fullmatch(r"sm_\d+", str(architecture)):
            raise ValueError(f"ghost_ops.warm_up: architecture: expected a name such as 'sm_90', got {architecture!r}")
        return architecture
    if device.type != "cuda":
        raise ValueError(
            f"ghost_ops.warm_up: example: expected a tensor on a CUDA device, or architecture=..., got one on {device}"
        )
    why = backend.refuse_device(device)
    if why is not None:
        raise RuntimeError(f"ghost_ops.warm_up: no kernels run on {device}: {why}")
    return architecture_of(device)


def _launches(net: nn.Module, arguments: tuple, architecture: str | None) -> Launches:
    with dry_run(architecture) as found:
        if not (net.training and torch.is_grad_enabled()):
            with torch.no_grad() if not net.training else nullcontext():
                net(*arguments)
            return found
        outputs = list(_differentiable(net(*arguments)))
        wanted = [p for p in net.parameters() if p.requires_grad]
        if outputs and wanted:  # gradients are returned, so that none is accumulated
            gradients = [torch.empty_like(t) for t in outputs]
            torch.autograd.grad(outputs, wanted, gradients, allow_unused=True)
    return found


def _differentiable(output: object) -> Iterator[torch.Tensor]:
    return (t for t in tree_leaves(output) if isinstance(t, torch.Tensor) and t.requires_grad)


def _bar(shown: bool) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("compiling {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True)
