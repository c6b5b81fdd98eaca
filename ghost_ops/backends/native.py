"""The compiled kernels: loads ``ghost_ops/_cpu.so`` when imported, or records why it does not.

Loading the library registers the operators' schemas and CPU kernels with PyTorch. ``GHOST_OPS_BACKEND=reference`` in
the environment does not load it, ``GHOST_OPS_BACKEND=native`` makes it an error that it cannot be loaded, and
``GHOST_OPS_ISA`` picks another instruction set than the one that is chosen (``environment.py``).
"""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from pathlib import Path

import torch

from . import environment
from .registry import CHEAP_KERNELS, SCHEMAS, Backend

NAMESPACE = "ghost_ops"
# Instruction sets that multiply bfloat16 themselves and so round maps; their other kernels are those of AVX-512.
ROUNDING = frozenset({"amx", "avx512bf16"})
LIBRARY = Path(__file__).resolve().parents[1] / "_cpu.so"


def available() -> bool:
    """Whether the compiled kernels are loaded."""
    return _library is not None


def library() -> ctypes.CDLL | None:
    """The compiled library, for questions to it; None where it is not loaded."""
    return _library


def reason() -> str | None:
    """Why the compiled kernels are not loaded, as the end of a sentence; None where they are."""
    return _reason


def isa() -> str:
    """The instruction set whose kernels run here, such as ``"avx512"``; ``"none"`` without the library."""
    return _text(_library, "ghost_ops_cpu_isa") or "none"


def isas() -> tuple[str, ...]:
    """The instruction sets that the library has kernels for and this machine runs, the fastest first."""
    return tuple(filter(None, _text(_library, "ghost_ops_cpu_isas").split(",")))


def program_scratch(steps: list[int], images: int, height: int, width: int) -> int:
    """Bytes of scratch that one thread keeps for a program over this many images; 0 without the library.

    Raises:
        ValueError: these are not the steps of a program, or it takes no map of this size.
    """
    if _library is None:
        return 0
    call, size = _library.ghost_ops_cpu_program_scratch, ctypes.c_int64
    call.argtypes, call.restype = (ctypes.POINTER(size), size, size, size, size), size
    found = call((size * len(steps))(*steps), len(steps), images, height, width)
    if found < 0:
        raise ValueError(f"program_scratch: expected a program that takes a {height} x {width} map")
    return found


def in_huge_pages(t: torch.Tensor) -> torch.Tensor:
    """A copy of a dense CPU tensor in huge pages, where the system has them; t itself without the library."""
    if _library is None or not t.is_cpu or t.is_meta:
        return t
    copy = torch.empty_like(t)
    call = _library.ghost_ops_cpu_advise_huge_pages
    call.argtypes, call.restype = (ctypes.c_void_p, ctypes.c_int64), None
    call(copy.data_ptr(), copy.numel() * copy.element_size())
    return copy.copy_(t)


def empty_cache() -> None:
    """Give back the memory that is kept for the next maps, as ``torch.cuda.empty_cache`` does on a GPU.

    On the CPU the memory of large outputs is kept for reuse, since fresh memory costs more than computing what goes
    there. Kept and used memory together hardly exceed what was once in use at the same time. At most 1024 MiB are
    kept, or what the environment variable ``GHOST_OPS_KEEP_MB`` says; with 0 nothing is kept.
    """
    if _library is not None and _library.ghost_ops_cpu_empty_cache():
        raise RuntimeError("ghost_ops.empty_cache: the memory could not be given back")


def kept_bytes() -> int:
    """Number of bytes that are kept for the next maps; 0 without the library."""
    if _library is None:
        return 0
    call = _library.ghost_ops_cpu_kept_bytes
    call.restype = ctypes.c_int64
    found = call()
    if found < 0:
        raise RuntimeError("kept_bytes: there is no memory for what counts them")
    return found


def poison_maps(on: bool) -> None:
    """For tests: set whether kept memory is filled with NaNs before it is used again."""
    if _library is not None and _library.ghost_ops_cpu_poison_maps(int(on)):
        raise RuntimeError("poison_maps: there is no memory for what keeps maps")


def use_reference(on: bool) -> None:
    """Set whether the CPU kernels hand every call to the reference, in all threads, until this is called again."""
    global _uses_reference
    _uses_reference = on
    if _library is not None and not torch.compiler.is_compiling():  # which traces ``uses_reference`` instead
        _library.ghost_ops_cpu_use_reference(int(on))


def uses_reference() -> bool:
    """Whether the CPU kernels hand every call to the reference."""
    return _uses_reference


def _text(library: ctypes.CDLL | None, function: str) -> str:
    """What a function ``const char* function()`` of the library returns; empty without the library."""
    if library is None:
        return ""
    call = getattr(library, function)
    call.restype = ctypes.c_char_p
    return call().decode()


def _is_loaded() -> bool:
    return any(os.path.exists(other) and os.path.samefile(other, LIBRARY) for other in torch.ops.loaded_libraries)


def _operators_exist() -> bool:
    return any(name.startswith(f"{NAMESPACE}::") for name in torch._C._dispatch_get_all_op_names())


def _warn(why: str) -> None:
    warnings.warn(
        f"ghost_ops runs on its reference backend, which is slower: {why}. "
        "GHOST_OPS_BACKEND=reference in the environment silences this.",
        UserWarning,
        stacklevel=3,
    )


def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """The loaded library, or why there is none."""
    if not LIBRARY.exists():
        if sys.platform != "linux":
            return None, f"its kernels are built on Linux only, this is {sys.platform}"
        return None, (
            f"{LIBRARY.name} is missing, since the package was built without a C++ compiler or with GHOST_OPS_NATIVE=0"
        )
    if not _is_loaded() and _operators_exist():  # registering them a second time would end the process
        return None, "another copy of ghost_ops has registered its operators in this process"
    try:
        torch.ops.load_library(str(LIBRARY))
        return ctypes.CDLL(str(LIBRARY)), None
    except OSError as error:
        return None, f"{LIBRARY.name} does not load: {error}"


def _set_up() -> tuple[ctypes.CDLL | None, str | None]:
    """The library, loaded as the environment says, or why there is none."""
    wishes = environment.read()
    if wishes.backend == "reference":
        return None, "GHOST_OPS_BACKEND=reference is set"
    library, why = _load()
    if library is None:
        if wishes.backend == "native":
            raise RuntimeError(f"GHOST_OPS_BACKEND=native: the compiled kernels are not loaded: {why}")
        if (LIBRARY.exists() or sys.platform == "linux") and not _operators_exist():
            _warn(why)
        return None, why
    if wishes.keep_mb is not None:
        library.ghost_ops_cpu_keep_most(ctypes.c_int64(wishes.keep_mb << 20))
    if wishes.isa is not None and not library.ghost_ops_cpu_use_isa(wishes.isa.encode()):
        names = environment.one_of(_text(library, "ghost_ops_cpu_isas").split(","))
        raise environment.wrong("GHOST_OPS_ISA", f"{names}, which this machine runs", wishes.isa)
    return library, None


def _refuse_device(device: torch.device) -> str | None:
    if device.type != "cpu":
        return f"its kernels run on the CPU, the input is on {device.type}"
    return reason()


def _has(operator: str) -> bool:
    """Whether a kernel is registered for the CPU: by the library, or composed of its kernels."""
    return operator in SCHEMAS and torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{operator}", "CPU")


_has._dynamo_marked_constant = True  # what torch.compiler.assume_constant_result does, which would import the compiler
_uses_reference = False
_library, _reason = _set_up()
BACKEND = Backend(
    "native",
    is_candidate=lambda device, forced: device.type != "cuda",
    refuse_device=_refuse_device,
    has=_has,
    missing=reason,
    dtypes=(torch.float32, torch.bfloat16),
    kernels=CHEAP_KERNELS,
)
