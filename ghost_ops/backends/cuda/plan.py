"""The planner of ``csrc/cuda/plan.h``, asked through ``_cuda.so``: launches and bytes of a block."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import torch

from . import library


@dataclass(frozen=True)
class Launch:
    """One kernel launch of a block.

    Attributes:
        piece: what it computes: "whole", "expand" (the expanded map and its sums), "excite" or "project".
        threads, shared: threads of a thread block, and bytes of its shared memory.
        grid: thread blocks that share the images of a part.
        band, strip, step: rows and columns of the output that a part has, rows that are computed at once.
        bands, strips, chunks: parts of an image down, across, and of its lanes.
        cycles, instructions: that the planner expects, of the device and of all warps.
    """

    piece: str
    threads: int
    shared: int
    grid: int
    band: int
    strip: int
    step: int
    bands: int
    strips: int
    chunks: int
    cycles: float
    instructions: float

    def __str__(self) -> str:
        parts = [f"{self.band} x {self.strip} pixels a thread block" if self.bands * self.strips > 1 else "an image"]
        if self.step < self.band:
            parts.append(f"{self.step} rows at once")
        if self.chunks > 1:
            parts.append(f"lanes in {self.chunks} parts")
        return f"{self.piece}: {', '.join(parts)}, {self.threads} threads, {self.shared / 1024:.0f} KiB shared"


@dataclass(frozen=True)
class Plan:
    """How a block is computed.

    Attributes:
        launches: one after the other.
        fused, by_module: bytes of global memory that move so, and module by module.
    """

    launches: tuple[Launch, ...]
    fused: int
    by_module: int

    @property
    def shared(self) -> int:
        """Bytes of shared memory of the thread blocks that have most."""
        return max(launch.shared for launch in self.launches)

    def __str__(self) -> str:
        return "; ".join(map(str, self.launches))


_PIECES = ("whole", "expand", "excite", "project")  # csrc/cuda/lower.h
_MOST_LAUNCHES = 3


def ask(
    library: ctypes.CDLL, numbers: tuple[int, ...], element: int, images: int, processors: int, shared: int
) -> Plan | None:
    """The plan of a library for a block's numbers; None where nothing fits."""
    count, each = library.ghost_ops_cuda_numbers(0), library.ghost_ops_cuda_numbers(1)
    if len(numbers) != count:
        raise ValueError(f"ghost_ops: a block: expected {count} numbers, got {len(numbers)}")
    block, told = (ctypes.c_int32 * count)(*numbers), (ctypes.c_int32 * (_MOST_LAUNCHES * each))()
    predicted, moved = (ctypes.c_double * (_MOST_LAUNCHES * 2))(), (ctypes.c_int64 * 2)()
    found = library.ghost_ops_cuda_plan(
        block, element, ctypes.c_int64(images), processors, shared, told, predicted, moved
    )  # fmt: skip
    if not found:
        return None
    rows = [(*told[i * each : (i + 1) * each], *predicted[2 * i : 2 * i + 2]) for i in range(found)]
    return Plan(tuple(Launch(_PIECES[row[0]], *row[1:]) for row in rows), *moved)


@functools.cache
def limits(device: torch.device) -> tuple[int, int]:
    """Processors of a device, and bytes of shared memory that a block may have there."""
    found = torch.cuda.get_device_properties(device)
    return found.multi_processor_count, found.shared_memory_per_block_optin


@functools.lru_cache(maxsize=4096)
def find(numbers: tuple[int, ...], dtype: torch.dtype, images: int, device: torch.device) -> Plan | None:
    """The plan for maps of this dtype on a device; None where nothing fits."""
    return ask(library(), numbers, dtype.itemsize, max(images, 1), *limits(device))
