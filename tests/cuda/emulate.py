"""The kernels of ``csrc/cuda`` run on the CPU, a fiber a CUDA thread (``emulator/``), on tensors of the CPU."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
CUDA, EMULATOR = ROOT / "csrc" / "cuda", Path(__file__).with_name("emulator")
LIST = ROOT / "ghost_ops" / "activations.inc"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
H200 = (132, 227 << 10)  # processors, bytes of shared memory a block
FLAGS = (
    "-std=gnu++20 -O2 -fPIC -shared -ffp-contract=off -U_FORTIFY_SOURCE -Wall -Wextra -Wno-unknown-pragmas "
    "-DGHOST_HOST_EMULATION"
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
    """The kernels and the planner, by pointers."""
    sources = [EMULATOR / "emulator.cpp", EMULATOR / "calls.cpp", CUDA / "planner_api.cpp"]
    found = ctypes.CDLL(str(_build("kernels", sources)))
    for name in ("run", "gather", "parted"):
        getattr(found, f"ghost_emulated_{name}").restype = ctypes.c_char_p
    return found


@functools.cache
def load_operators() -> ctypes.CDLL:
    """Registers the operators of ``_cuda.so`` for tensors of the CPU, run by the emulator on what would be an H200."""
    sources = [EMULATOR / "emulator.cpp", EMULATOR / "operators.cpp", CUDA / "operators.cpp", CUDA / "planner_api.cpp"]
    flags = ["-fvisibility=hidden", "-Wl,-Bsymbolic", '-DGHOST_DISPATCH_KEY="CPU"']
    sources.append(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")
    built = str(_build("operators", sources, *flags))
    torch.ops.load_library(built)
    return ctypes.CDLL(built)


def _ints(values: list[int]) -> ctypes.Array:
    return (ctypes.c_int32 * len(values))(*values)


def plan(
    block: list[int], dtype: torch.dtype, images: int, device: tuple[int, int] = H200,
    tile: tuple[int, int, int, bool] | None = None,
) -> list[int] | None:  # fmt: skip
    """The planner's numbers, or those of a tile (height, width, threads, kept); None where nothing fits."""
    lib = library()
    assert len(block) == lib.ghost_ops_cuda_numbers(0)
    found = _ints([0] * lib.ghost_ops_cuda_numbers(1))
    if tile is None:
        ok = lib.ghost_ops_cuda_plan(_ints(block), dtype.itemsize, ctypes.c_int64(images), *device, found)
    else:
        ok = lib.ghost_emulated_plan(_ints(block), dtype.itemsize, device[1], *map(int, tile), found)
    return list(found) if ok else None


def _pointer(t: torch.Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if t is None else t.data_ptr())


class Guarded:
    """An uninitialised tensor between margins, all of it NaN; ``check`` sees what was written beside it."""

    margin = 256

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        size = torch.Size(shape).numel()
        self.memory = torch.full((size + 2 * self.margin,), torch.nan, dtype=dtype)
        self.tensor = self.memory[self.margin : self.margin + size].view(shape)

    def check(self) -> torch.Tensor:
        assert self.memory[: self.margin].isnan().all() and self.memory[-self.margin :].isnan().all(), "written beside"
        return self.tensor


def run(
    block: list[int], plan: list[int], x: torch.Tensor, matrices: torch.Tensor, vectors: torch.Tensor, *,
    lanes: int, residual: torch.Tensor | None = None, scale: torch.Tensor | None = None, squeeze: bool = False,
    order: int = 0,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """A block on x, N x C x H x W; ``lanes`` are those of its sums. ``order``: 0 forward, 1 backward, then seeds."""
    last = torch.channels_last
    x = x.contiguous(memory_format=last)
    fields = dict(zip(("height", "width", "channels"), block))
    stride, kept = block[8], block[13]
    size = [(fields[k] - 1) // stride + 1 for k in ("height", "width")]
    tiles = plan[2] * plan[3]
    out = Guarded((x.shape[0], *size, kept), x.dtype)
    sums = Guarded((x.shape[0], tiles, lanes), torch.float32)
    means = Guarded((x.shape[0], kept), x.dtype) if squeeze else None
    residual = None if residual is None else residual.contiguous(memory_format=last)
    nhwc = lambda t: None if t is None else t.permute(0, 2, 3, 1)
    vectors_of_x = x.shape[1] * x.element_size() % 16 == 0 and x.data_ptr() % 16 == 0
    why = library().ghost_emulated_run(
        _ints(block), _ints(plan), DTYPES.index(x.dtype), ctypes.c_int64(x.shape[0]), _pointer(nhwc(x)),
        _pointer(matrices), _pointer(vectors), _pointer(out.tensor),
        _pointer(sums.tensor) if squeeze or block[3] else None, _pointer(means and means.tensor), _pointer(residual),
        _pointer(scale), int(vectors_of_x), order,
    )  # fmt: skip
    assert why is None, why.decode()
    sums.check()
    return out.check().permute(0, 3, 1, 2), means and means.check()


def gather(packed: torch.Tensor, index: torch.Tensor, count: int, dtype: torch.dtype, order: int = 0):
    """Matrices and vectors from a packed form."""
    matrices, vectors = Guarded((count,), dtype), Guarded((index.numel() - count,), torch.float32)
    why = library().ghost_emulated_gather(
        DTYPES.index(dtype), _pointer(matrices.tensor), _pointer(vectors.tensor), _pointer(packed), _pointer(index),
        ctypes.c_int64(count), ctypes.c_int64(index.numel()), order,
    )  # fmt: skip
    assert why is None, why.decode()
    return matrices.check(), vectors.check()
