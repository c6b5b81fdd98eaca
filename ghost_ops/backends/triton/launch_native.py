"""Replays recorded launches in C++ (``csrc/launch``): one call finds the recording, allocates and starts the kernels.

C++ starts kernels by the driver's ``cuLaunchKernelEx``, as Triton's launcher does, and passes what that passes: the
arguments that are not constants, and two addresses of scratch memory, which kernels seldom need. What C++ cannot replay
goes through Triton's launcher (``launch_replay.py``); ``reason`` says why.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import weakref
from dataclasses import dataclass, field

import torch
import triton
from triton.backends.nvidia.driver import CudaLauncher

from .. import environment, native
from .launch_recording import Address, Launch, Recorded

DRIVER, TORCH = "libcuda.so.1", "libtorch_cuda.so"
TRITONS = ("3.6.", "3.7.")  # whose launchers pass what is passed here
_WISH = environment.read().launches
_BYTES = {  # of a parameter; half precision is left out, since no number of Python's becomes one
    "i1": 1, "i8": 1, "i16": 2, "i32": 4, "i64": 8, "u1": 1, "u8": 1, "u16": 2, "u32": 4, "u64": 8,
    "fp32": 4, "f32": 4, "fp64": 8,
}  # fmt: skip
_FLOATS = {"fp32": ctypes.c_float, "f32": ctypes.c_float, "fp64": ctypes.c_double}
_POINTER = 8
_ADDRESS_OF_NOTHING = (_POINTER, -1, 0)
_numbers = itertools.count()  # of kinds and of recordings
_refusals: dict[str, None] = {}  # why recordings are replayed in Python, the oldest first
_MOST_REFUSALS = 16


class Refused(Exception):
    """C++ does not replay a recording; the message says why, as the end of a sentence."""


@dataclass
class Kind:
    """Calls of one function that differ in nothing but their tensors.

    Attributes:
        single: whether the function returns a tensor; a tuple of tensors where not.
        number: what C++ knows it by.
        recordings: number of its recordings that C++ has.
    """

    single: bool
    number: int = field(default_factory=lambda: next(_numbers))
    recordings: int = 0


class Native:
    """A recording that C++ has, until this goes. Keeps Triton's kernels alive, whose code C++ starts."""

    def __init__(self, number: int, kernels: list[object]):
        self.kernels = kernels
        finalizer = weakref.finalize(self, native.library().ghost_ops_launch_remove, ctypes.c_int64(number))
        finalizer.atexit = False


@functools.cache
def _state() -> str | None:
    if _WISH == "python":
        return "GHOST_OPS_LAUNCHES=python is set"
    if not native.available():
        return native.reason()
    if not triton.__version__.startswith(TRITONS):
        known = " and ".join(version.rstrip(".") for version in TRITONS)
        return f"the launchers of Triton {known} are known, this is Triton {triton.__version__}"
    return open_driver(DRIVER, TORCH)


def open_driver(driver: str, torch_library: str) -> str | None:
    """Open the CUDA driver for C++, by the name or path of its library.

    Args:
        torch_library: the library of this process that has torch's stream of a device.

    Returns:
        why that fails, as the end of a sentence; None where it succeeds.
    """
    call = native.library().ghost_ops_launch_open
    call.argtypes, call.restype = (ctypes.c_char_p, ctypes.c_char_p), ctypes.c_char_p
    why = call(driver.encode(), torch_library.encode())
    return None if why is None else why.decode()


def reason() -> str | None:
    """Why launches are replayed in Python, all of them or some, as the end of a sentence; None where C++ does it."""
    return _state() or next(iter(_refusals), None)


def count() -> int:
    """Number of recordings that C++ has."""
    if not native.available():
        return 0
    call = native.library().ghost_ops_launch_count
    call.restype = ctypes.c_int64
    return call()


def add(recorded: Recorded, kind: Kind) -> Native | None:
    """Hand a recording to C++, for calls of this kind with such tensors; None where C++ does not replay it."""
    if _state() is not None:
        return None
    try:
        words = [recorded.device, recorded.scratch, *recorded.lies_in, len(recorded.launches)]
        for launch in recorded.launches:
            words += _words_of(launch)
        number = next(_numbers)
        _add(recorded.arguments, kind.number, number, recorded.allocations, [*recorded.results], words)
    except (Refused, RuntimeError) as why:
        if len(_refusals) < _MOST_REFUSALS:
            _refusals[str(why).splitlines()[0]] = None
        return None
    return Native(number, [launch.compiled for launch in recorded.launches])


def _words_of(launch: Launch) -> list[int]:
    """A launch as ``csrc/launch/sequence.h`` reads it."""
    compiled = launch.compiled
    try:
        metadata, name, types = compiled.metadata, compiled.metadata.name, [*compiled.src.signature.values()]
        if not isinstance(compiled.run, CudaLauncher):
            raise Refused(f"the kernel {name} is not started by Triton's launcher for CUDA")
        if metadata.num_ctas != 1 or metadata.launch_cooperative_grid:
            raise Refused(f"the blocks of the kernel {name} are started together")
        if metadata.global_scratch_size or metadata.profile_scratch_size:
            raise Refused(f"the kernel {name} asks Triton for scratch memory")
        words = [_signed(compiled.function), *launch.grid, 32 * metadata.num_warps, metadata.shared]
        words += [int(bool(metadata.launch_pdl)), len(name.encode()), *name.encode()]
    except AttributeError as why:
        raise Refused(f"what Triton compiled does not say how it is started: {why}") from None
    if len(types) != len(launch.arguments):
        raise Refused(f"the kernel {name} has other arguments than were recorded")
    parameters = [
        _parameter(name, value, kind)
        for value, kind in zip(launch.arguments.values(), types, strict=True)
        if kind != "constexpr"
    ]
    parameters += [_ADDRESS_OF_NOTHING, _ADDRESS_OF_NOTHING]  # Triton's two kinds of scratch memory
    return [*words, len(parameters), *itertools.chain(*parameters)]


def _parameter(kernel: str, value: object, kind: str) -> tuple[int, int, int]:
    """Bytes, base and value of a kernel's parameter."""
    if type(value) is Address:
        if isinstance(kind, str) and kind.startswith("*"):
            return _POINTER, value.base, value.distance
    elif kind in _FLOATS and isinstance(value, (int, float)):
        return _BYTES[kind], -1, int.from_bytes(bytes(_FLOATS[kind](value)), "little", signed=True)
    elif kind in _BYTES and isinstance(value, int):
        return _BYTES[kind], -1, _signed(value)
    raise Refused(f"the kernel {kernel} takes a {type(value).__name__} as {kind}")


def _signed(value: int) -> int:
    """The low 64 bits of a number, as C++ takes them."""
    value &= 2**64 - 1
    return value - 2**64 if value >> 63 else value


# ``replay(tensors, kind)`` starts the recorded call of such tensors again and returns its results as a list; None where
# none was recorded. A kernel that the driver does not start is a RuntimeError.
replay = None
if native.available():
    _library = torch.library.Library("ghost_ops", "FRAGMENT")
    for _name in ("_launch_replay", "_launch_add"):  # autograd has nothing to do with them
        _library.impl(_name, torch.library.fallthrough_kernel, "Autograd")
    replay, _add = torch.ops.ghost_ops._launch_replay.default, torch.ops.ghost_ops._launch_add.default
