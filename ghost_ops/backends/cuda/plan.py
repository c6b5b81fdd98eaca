"""The planner of ``csrc/cuda/plan.h``, asked through ``_cuda.so``: kernel, tile and bytes of a block."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import torch

from . import library


@dataclass(frozen=True)
class Plan:
    """How a block is computed.

    Attributes:
        tile, tiles: height and width of a tile of the output; how many an image has, down and across.
        launches: 2 where a squeeze of its own comes first.
        shared: bytes of shared memory of a thread block.
        kept: whether the expanded tile stays in shared memory between squeeze and excitation.
        fused, by_module: bytes of global memory that move so, and module by module.
    """

    tile: tuple[int, int]
    tiles: tuple[int, int]
    launches: int
    shared: int
    kept: bool
    fused: int
    by_module: int

    def __str__(self) -> str:
        kind = "an image a thread block" if self.tiles == (1, 1) else "tiles of {} x {}".format(*self.tile)
        phases = ", in two phases" if self.launches == 2 else ""
        return f"{kind}{phases}, {self.shared / 1024:.0f} KiB shared"


_KEPT, _LAUNCHES, _SHARED = 6, 7, 8  # places in the plan's numbers, csrc/cuda/shape.h


def ask(
    library: ctypes.CDLL, numbers: tuple[int, ...], element: int, images: int, processors: int, shared: int
) -> Plan | None:
    """The plan of a library for a block's numbers; None where no tile fits."""
    count = library.ghost_ops_cuda_numbers
    if len(numbers) != count(0):
        raise ValueError(f"ghost_ops: a block: expected {count(0)} numbers, got {len(numbers)}")
    block, plan = (ctypes.c_int32 * len(numbers))(*numbers), (ctypes.c_int32 * count(1))()
    if not library.ghost_ops_cuda_plan(block, element, ctypes.c_int64(images), processors, shared, plan):
        return None
    fused, by_module = ctypes.c_int64(), ctypes.c_int64()
    library.ghost_ops_cuda_traffic(
        block, plan, element, ctypes.c_int64(images), ctypes.byref(fused), ctypes.byref(by_module)
    )
    p = list(plan)
    return Plan(tuple(p[:2]), tuple(p[2:4]), p[_LAUNCHES], p[_SHARED], bool(p[_KEPT]), fused.value, by_module.value)


@functools.cache
def limits(device: torch.device) -> tuple[int, int]:
    """Processors of a device, and bytes of shared memory that a block may have there."""
    found = torch.cuda.get_device_properties(device)
    return found.multi_processor_count, found.shared_memory_per_block_optin


@functools.lru_cache(maxsize=4096)
def find(numbers: tuple[int, ...], dtype: torch.dtype, images: int, device: torch.device) -> Plan | None:
    """The plan for maps of this dtype on a device; None where no tile fits."""
    return ask(library(), numbers, dtype.itemsize, max(images, 1), *limits(device))
