"""The limits of this machine, measured, and the least time that a case can take under them.

roof = max(FLOPs / peak, bytes / bandwidth of the smallest cache level that holds what moves).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from ..backends import native
from .machine import cache_bytes
from .timing import torch_threads

MM_SIDE = 1024


@dataclass(frozen=True)
class Limits:
    """What ``threads`` threads of this machine can do together.

    Attributes:
        flops: float32 operations a second, multiply and add counted as two.
        source: how they were measured.
        bandwidth: bytes a second, read and written, by level: L2, L3, DRAM.
        capacity: bytes that L2 and L3 hold.
        bfloat16_flops: the same for products of bfloat16, where they were measured.
    """

    threads: int
    flops: float
    source: str
    bandwidth: dict[str, float]
    capacity: dict[str, int]
    bfloat16_flops: float = 0.0

    def peak(self, dtype: str = "float32") -> float:
        """Operations a second of products in this dtype; maps in bfloat16 may always be widened."""
        return max(self.flops, self.bfloat16_flops) if dtype == "bfloat16" else self.flops

    def level(self, size: int) -> str:
        """The smallest level that holds this many bytes."""
        return next((name for name, capacity in self.capacity.items() if size <= capacity), "DRAM")

    def roof(self, flops: int, size: int, dtype: str = "float32") -> float:
        """The least seconds for this work, in which ``size`` bytes move."""
        return max(flops / self.peak(dtype), size / self.bandwidth[self.level(size)])

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def measure(threads: int = 1, seconds: float = 0.3, bfloat16: bool = False) -> Limits:
    """Measure peak, that of bfloat16 where it is asked for, and bandwidths; takes about five times ``seconds``."""
    l2, l3 = cache_bytes(2), cache_bytes(3)
    with torch_threads(threads):
        flops, source = _peak(threads, seconds)
        bfloat16_flops = _product_flops(threads, seconds, torch.bfloat16) if bfloat16 else 0.0
        with torch_threads(1):
            private = _copy_bandwidth(l2 // 2, seconds) * threads
        shared = _copy_bandwidth(max(l3 // 2, 2 * l2 * threads), seconds)
        memory = _copy_bandwidth(max(8 * l3, 128 << 20), seconds)
    # What a level delivers can only shrink with its distance; a measurement that says otherwise was disturbed.
    shared = max(shared, memory)
    bandwidth = {"L2": max(private, shared), "L3": shared, "DRAM": memory}
    return Limits(threads, flops, source, bandwidth, {"L2": l2 * threads, "L3": l3}, bfloat16_flops)


def _best(call: Callable[[], object], seconds: float) -> float:
    """The shortest of the calls that fit into this time: limits are what the machine does undisturbed."""
    call()
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        call()
        now = time.perf_counter()
        best = min(best, now - start)
        if now >= end:
            return best


def _product_flops(threads: int, seconds: float, dtype: torch.dtype) -> float:
    """FLOPs a second that a matrix product reaches."""
    a, b = torch.randn(2, MM_SIDE, MM_SIDE).to(dtype).unbind()
    out = torch.empty(MM_SIDE, MM_SIDE, dtype=dtype)
    best = _best(lambda: torch.mm(a, b, out=out), seconds)
    if threads > 1:  # where threads hinder each other, a single one is the better measure
        with torch_threads(1):
            best = min(best, _best(lambda: torch.mm(a, b, out=out), seconds))
    return 2 * MM_SIDE**3 / best


def _peak(threads: int, seconds: float) -> tuple[float, str]:
    """FLOPs a second, of a matrix product or, with the development extension, of bare FMAs if these are faster."""
    flops, source = _product_flops(threads, seconds, torch.float32), "torch.mm"
    try:
        from .. import _kernels
    except ImportError:
        return flops, source
    isa = next(name for name in _kernels.isas() if name not in native.ROUNDING)
    bare = max(_kernels.fma_peak(isa, seconds / 8) for _ in range(8)) * 1e9 * threads
    return (bare, f"FMA loop, {isa}, times {threads}") if bare > flops else (flops, source)


def _copy_bandwidth(size: int, seconds: float) -> float:
    """Bytes read and written a second by a copy whose two ends together have ``size`` bytes.

    Small copies are timed in bursts, less what calls on nothing take, so that the calls themselves do not count.
    """
    source = torch.zeros(max(size // 8, 1))
    target = torch.zeros_like(source)
    nothing = torch.zeros(0)
    burst = max(1, (1 << 24) // size)

    def copies(a: torch.Tensor, b: torch.Tensor) -> Callable[[], None]:
        def run() -> None:
            for _ in range(burst):
                a.copy_(b)

        return run

    moved = 8 * source.numel() * burst
    overhead = _best(copies(nothing, nothing), seconds / 10) if burst > 1 else 0.0
    return moved / max(_best(copies(target, source), seconds) - overhead, 1e-9)
