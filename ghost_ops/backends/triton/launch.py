"""Turns tensors into kernel launches: strides, layouts, the device guard, and what a kernel is specialised for."""

from __future__ import annotations

import functools
import importlib
import math
import threading
from contextlib import nullcontext
from pathlib import Path

import torch

from ..layout import memory_format

INT32 = 2**31 - 1


class _Recorder(threading.local):
    current = None


recorder = _Recorder()  # ``current`` is told of every launch while this thread records (``launch_cache.py``)
instead = None  # a function that gets launches in the place of the device (``dry_run.py``)


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def on_device_of(t: torch.Tensor):
    """Launches within the block go to t's device, on the caller's current stream there."""
    return torch.cuda.device(t.device) if t.is_cuda else nullcontext()


@functools.cache
def hash_kernels() -> None:
    """Hash all kernels, in the same order in every process.

    Triton finds what it compiled by a kernel's hash. That depends on which of the functions that the kernel calls were
    hashed before it, so that two processes which start kernels in different orders would not find each other's.
    """
    from triton.runtime import JITFunction

    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        module = importlib.import_module(f"{__package__}.{path.stem}")
        for function in list(vars(module).values()):
            if isinstance(function, JITFunction):
                _ = function.cache_key


def start_kernel(kernel, grid: tuple[int, ...], arguments: dict, warps: int, stages: int) -> None:
    """Launch a kernel; nothing is launched over an empty grid.

    This is the only place where kernels start: tests take the arguments here and compile them for devices that are not
    there.
    """
    if min(grid) > 0:
        hash_kernels()
        if instead is not None:
            instead(kernel, grid, arguments, warps, stages)
            return
        compiled = kernel[grid](**arguments, num_warps=warps, num_stages=stages)
        if recorder.current is not None:
            recorder.current.launched(kernel, grid, arguments, compiled)


def precision(dtype: torch.dtype) -> str:
    """Precision of products: TF32 exactly where PyTorch's own float32 convolutions would use it."""
    return "tf32" if dtype == torch.float32 and torch.backends.cudnn.allow_tf32 else "ieee"


def is_wide(*maps: torch.Tensor | None, images: bool = False) -> bool:
    """Whether offsets within an image of these maps, or from image to image too, need 64 bits."""
    for t in maps:
        if t is not None:
            first = 0 if images else 1
            if sum((size - 1) * abs(stride) for size, stride in zip(t.shape[first:], t.stride()[first:])) > INT32:
                return True
    return False


def maps(**maps: torch.Tensor | None) -> dict[str, torch.Tensor | int | None]:
    """Arguments for maps by name: each map with its strides of image, channel, row and column, 0 where it is None."""
    found: dict[str, torch.Tensor | int | None] = {}
    for name, t in maps.items():
        found |= {name: t, **strides(name, t)}
    return found


def strides(name: str, t: torch.Tensor | None) -> dict[str, int]:
    """The strides of a map as arguments: image, channel, row, column."""
    found = (0, 0, 0, 0) if t is None else t.stride()
    return {f"{name}_{axis}": stride for axis, stride in zip(("n", "c", "h", "w"), found)}


def unit(*maps: torch.Tensor | None, counts: tuple[int, ...] = ()) -> int:
    """The largest divisor of 8 that divides ``counts`` and all strides but the channels' of these maps, in elements."""
    steps = list(counts)
    for t in maps:
        if t is not None:
            steps += [t.stride(axis) for axis in (0, 2, 3)]
    return math.gcd(8, *steps)


def is_flat(*maps: torch.Tensor | None) -> bool:
    """Whether a pixel's place is its number, through all images, times a stride in each of these maps."""
    for t in maps:
        if t is not None:
            (n, _, height, width), (to_image, _, to_row, to_pixel) = t.shape, t.stride()
            if (height > 1 and to_row != width * to_pixel) or (n > 1 and to_image != height * width * to_pixel):
                return False
    return True


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """An empty dense tensor. Where launches are cached, allocations are all that torch does between them."""
    return torch.empty(shape, dtype=dtype, device=device)


def new_map(like: torch.Tensor, channels: int, sides: tuple[int, int] | None = None) -> torch.Tensor:
    """An empty map of ``channels``, channels_last or NCHW as the operators' fakes promise it."""
    shape = (like.shape[0], channels, *(sides or like.shape[2:]))
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format(like))


def scratch(like: torch.Tensor, channels: int, sides: tuple[int, int] | None = None) -> torch.Tensor:
    """An empty map that only kernels see: channels_last."""
    shape = (like.shape[0], channels, *(sides or like.shape[2:]))
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def vector(t: torch.Tensor | None) -> torch.Tensor | None:
    """A parameter whose elements follow each other, as kernels read them."""
    return None if t is None else t.contiguous()
