"""The planner of ``csrc/cuda/chain.h``, asked through ``_cuda.so``: launches and bytes of a chain of blocks."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import torch

from . import library


@dataclass(frozen=True)
class Launch:
    """One kernel launch of a chain of blocks.

    Attributes:
        first, last: blocks of which it computes something.
        begins_within: whether of the first one only what follows the expanded map.
        ends_within: whether of the last one only the expanded map and its sums.
        excites: whether only the excitations of a block.
        threads, shared: threads of a thread block, and bytes of its shared memory.
        grid: thread blocks that share the images of a part.
        band, strip, step: rows and columns of the output that a part has, rows that are computed at once.
        bands, strips, chunks: parts of an image down, across, and of its lanes.
        cycles, instructions: that the planner expects, of the device and of all warps.
    """

    first: int
    last: int
    begins_within: bool
    ends_within: bool
    excites: bool
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

    @property
    def piece(self) -> str:
        """What it computes, in a word: of one block "whole", "expand", "excite" or "project"; of several "join"."""
        kinds = {"join": self.first < self.last, "excite": self.excites, "project": self.begins_within,
                 "expand": self.ends_within}  # fmt: skip
        return next((kind for kind, is_it in kinds.items() if is_it), "whole")

    def __str__(self) -> str:
        parts = [f"{self.band} x {self.strip} pixels a thread block" if self.bands * self.strips > 1 else "an image"]
        if self.step < self.band:
            parts.append(f"{self.step} rows at once")
        if self.chunks > 1:
            parts.append(f"lanes in {self.chunks} parts")
        return f"{self.piece}: {', '.join(parts)}, {self.threads} threads, {self.shared / 1024:.0f} KiB shared"


@dataclass(frozen=True)
class Plan:
    """How a chain of blocks is computed.

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


_MOST_LAUNCHES = 3  # of a block


def ask(
    library: ctypes.CDLL, numbers: tuple[int, ...], element: int, images: int, processors: int, shared: int
) -> Plan | None:
    """The plan of a library for the numbers of blocks one after the other; None where nothing fits."""
    own, each = library.ghost_ops_cuda_numbers(0), library.ghost_ops_cuda_numbers(1)
    if not numbers or len(numbers) % own:
        raise ValueError(f"ghost_ops: blocks: expected {own} numbers each, got {len(numbers)}")
    count = len(numbers) // own
    most = count * _MOST_LAUNCHES
    blocks, told = (ctypes.c_int32 * len(numbers))(*numbers), (ctypes.c_int32 * (most * each))()
    predicted, moved = (ctypes.c_double * (most * 2))(), (ctypes.c_int64 * 2)()
    found = library.ghost_ops_cuda_plan(
        blocks, count, element, ctypes.c_int64(images), processors, shared, told, predicted, moved
    )  # fmt: skip
    if not found:
        return None
    rows = [(told[i * each : (i + 1) * each], predicted[2 * i : 2 * i + 2]) for i in range(found)]
    return Plan(tuple(Launch(*n[:2], *map(bool, n[2:5]), *n[5:], *cycles) for n, cycles in rows), *moved)


@functools.cache
def limits(device: torch.device) -> tuple[int, int]:
    """Processors of a device, and bytes of shared memory that a block may have there."""
    found = torch.cuda.get_device_properties(device)
    return found.multi_processor_count, found.shared_memory_per_block_optin


@functools.lru_cache(maxsize=4096)
def find(numbers: tuple[int, ...], dtype: torch.dtype, images: int, device: torch.device) -> Plan | None:
    """The plan for maps of this dtype on a device; None where nothing fits."""
    return ask(library(), numbers, dtype.itemsize, max(images, 1), *limits(device))
