"""The kernels of ``csrc/cuda`` run on the CPU, a fiber a CUDA thread (``emulator/``), on tensors of the CPU."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch

from ghost_ops.backends.cuda import launch, plan
from ghost_ops.backends.cuda.program import fitting
from ghost_ops.backends.cuda.weights import Block

ROOT = Path(__file__).resolve().parents[2]
CUDA, EMULATOR = ROOT / "csrc" / "cuda", Path(__file__).with_name("emulator")
LIST = ROOT / "ghost_ops" / "activations.inc"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
H200 = (132, 227 << 10)  # processors, bytes of shared memory a block
FLAGS = (
    "-std=gnu++20 -O2 -fno-strict-aliasing -fPIC -shared -ffp-contract=off -U_FORTIFY_SOURCE -Wall -Wextra "
    "-Wno-unknown-pragmas -DGHOST_HOST_EMULATION"
).split()


def _build(name: str, sources: list[Path], *flags: str) -> Path:
    """A library of the emulator, built once for its sources."""
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("g++")
    if compiler is None:
        pytest.skip("the emulator needs a C++ compiler")
    read = sorted([*CUDA.glob("*"), *EMULATOR.glob("*"), *(ROOT / "csrc").glob("a*.h"), LIST])
    digest = hashlib.sha256(
        b"".join(p.read_bytes() for p in read) + " ".join([*FLAGS, *flags, *map(str, sources)]).encode()
    )
    built = ROOT / "build" / "emulator" / f"{name}.{digest.hexdigest()[:16]}.so"
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        own = built.with_suffix(f".{os.getpid()}")
        include = [f"-I{ROOT / 'csrc'}", f"-I{LIST.parent}", f"-I{EMULATOR}"]
        subprocess.run([compiler, *FLAGS, *flags, *include, *map(str, sources), "-o", str(own)], check=True)
        own.replace(built)
    return built


@functools.cache
def library() -> ctypes.CDLL:
    """Registers the operators of ``_cuda.so`` for tensors of the CPU, run by the emulator on what would be an H200."""
    sources = [EMULATOR / "emulator.cpp", EMULATOR / "operators.cpp", CUDA / "operators.cpp", CUDA / "planner_api.cpp"]
    flags = ["-fvisibility=hidden", "-Wl,-Bsymbolic", '-DGHOST_DISPATCH_KEY="CPU"']
    sources.append(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")
    built = str(_build("operators", sources, *flags))
    torch.ops.load_library(built)
    found = ctypes.CDLL(built)
    found.ghost_emulated_parted.restype = found.ghost_emulated_banks.restype = ctypes.c_char_p
    return found


class Emulator:
    """While it runs, programs find it in the place of a device.

    Attributes:
        order: of the threads: 0 forward, 1 backward, then seeds of random orders.
        wish: what the planner must keep to, see ``ghost_ops.backends.cuda.launch.wish``.
        device: 1 has only one processor, so that a thread block has several images.
        calls: of each call the blocks that were computed.
    """

    def __init__(self, order: int = 0, wish: tuple[int, ...] = (), device: int = 0) -> None:
        self.order, self.wish, self.device, self.calls = order, list(wish), device, []

    @contextmanager
    def running(self) -> Iterator[None]:
        lib = library()

        def seen(name: str, blocks: Callable) -> Callable:
            own = getattr(launch, name)

            def call(x, matrices, vectors, what, *rest):
                self.calls.append(blocks(what))
                return own(x, matrices, vectors, what, *rest)

            return call

        calls = {
            "launch_chain": seen("launch_chain", blocks_of),
            "launch_ghost_module": seen("launch_ghost_module", lambda block: [block]),
        }
        with (
            mock.patch.multiple(plan, library=lambda: lib, limits=lambda device: H200),
            mock.patch.multiple(launch, wish=self.wish, **calls),
        ):
            clear()
            lib.ghost_emulated_set_order(self.order)
            lib.ghost_emulated_set_device(self.device)
            try:
                yield
            finally:
                lib.ghost_emulated_set_order(0)
                lib.ghost_emulated_set_device(0)
                clear()


def blocks_of(numbers: list[int]) -> list[Block]:
    """The blocks of which these are the numbers."""
    found, rest = [], iter(numbers)
    for first in rest:
        block = Block(height=first)
        for name, value in list(vars(block).items())[1:]:
            setattr(block, name, tuple(next(rest) for _ in value) if isinstance(value, tuple) else next(rest))
        found.append(block)
    return found


def clear() -> None:
    """Forgets plans, which are kept by device."""
    plan.find.cache_clear()
    fitting.cache_clear()
