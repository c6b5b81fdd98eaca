"""A CUDA driver that starts nothing and notes what it is given, under Triton's own launcher and under ours.

``load`` builds and loads ``libcuda.c``. ``under_triton`` makes it the driver of Triton in this process: kernels go
the whole way through Triton's Python, but nothing is compiled.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.runtime import JITFunction

from ghost_ops.backends import native
from ghost_ops.backends.triton import launch_native

SOURCE = Path(__file__).with_name("libcuda.c")
STREAM = 77
BYTES = {"i1": 1, "u1": 1, "i8": 1, "u8": 1, "i16": 2, "u16": 2, "i32": 4, "u32": 4, "fp32": 4}
POINTER = 8
MOST_PARAMETERS = 160
needs_native = pytest.mark.skipif(
    not native.available() or shutil.which(os.environ.get("CC", "cc")) is None,
    reason="no compiled library, or no C compiler for the driver",
)


class Launch(ctypes.Structure):
    """What ``cuLaunchKernelEx`` was given; ``values`` has each parameter in the low bytes of a number."""

    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("function", "stream", "context")),
        *((name, ctypes.c_uint32 * 3) for name in ("grid", "block")),
        *((n, ctypes.c_uint32) for n in ("shared", "attribute_count", "attribute", "attribute_value", "count")),
        ("values", ctypes.c_uint64 * MOST_PARAMETERS),
    ]

    def parameters(self) -> list[int]:
        return self.values[: self.count]


class Driver:
    """The library, loaded; ``path`` is where it is."""

    def __init__(self, path: Path):
        self.path = path
        self.library = ctypes.CDLL(str(self.path))
        self.library.stub_function.restype = ctypes.c_uint64
        self.library.stub_launch.restype = ctypes.POINTER(Launch)
        self.library.stub_stream.argtypes = (ctypes.c_uint64,)
        self.library.stub_reset()
        self.functions: dict[int, tuple[object, list[str]]] = {}

    def open(self) -> None:
        """C++ starts its kernels by this driver from here on."""
        why = launch_native.open_driver(str(self.path), str(self.path))
        assert why is None, why

    def function(self, kernel: object, signature: dict[str, str]) -> int:
        """The handle of a kernel whose arguments have these types of Triton's; ``functions`` has them by handle."""
        types = [kind for kind in signature.values() if kind != "constexpr"]
        sizes = [*(BYTES.get(kind, POINTER) for kind in types), POINTER, POINTER]  # two of Triton's own
        handle = self.library.stub_function(len(sizes), bytes(sizes))
        self.functions[handle] = kernel, types
        return handle

    def launches(self) -> list[Launch]:
        """What was started since the last time."""
        count = self.library.stub_launch_count()
        found = [Launch.from_buffer_copy(self.library.stub_launch(i).contents) for i in range(count)]
        self.library.stub_reset()
        return found


@functools.cache
def load() -> Driver:
    """The driver of this process. A second one would have the same name for the loader."""
    folder = Path(tempfile.mkdtemp(prefix="stub-driver-"))
    atexit.register(shutil.rmtree, folder)
    path = folder / "libcuda.so.1"
    flags = f"-shared -fPIC -O2 -Wall -Wextra -Werror -pthread -Wl,-soname,{path.name}".split()
    subprocess.run([os.environ.get("CC", "cc"), *flags, SOURCE, "-o", path], check=True)
    return Driver(path)


@contextmanager
def under_triton(driver: Driver, capability: int = 90) -> Iterator[None]:
    """Within the block Triton has this driver, whose only device has the number 0. Kernels are not compiled."""
    from ghost_ops.backends.triton import tiles

    seen: list[JITFunction] = []  # not a set: Triton's hash of a kernel depends on which were hashed before
    before = triton.runtime.driver._active

    def compiled(self, key, signature, device, constexprs, options, attrs, warmup):
        seen.append(self)
        source = SimpleNamespace(fn=self, signature=signature, constants=constexprs)
        metadata = SimpleNamespace(
            name=self.__name__, num_warps=options.num_warps, num_ctas=options.num_ctas, shared=1024,
            launch_cooperative_grid=options.launch_cooperative_grid, launch_pdl=options.launch_pdl,
            global_scratch_size=0, global_scratch_align=1, profile_scratch_size=0, profile_scratch_align=1,
        )  # fmt: skip
        return SimpleNamespace(
            src=source, metadata=metadata, run=nvidia.CudaLauncher(source, metadata),
            packed_metadata=(options.num_warps, options.num_ctas, metadata.shared),
            function=driver.function(self, signature), launch_metadata=lambda *args: None,
        )  # fmt: skip

    active = SimpleNamespace(
        utils=None,
        launcher_cls=nvidia.CudaLauncher,
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: STREAM,
    )
    with (
        mock.patch.dict(os.environ, {"TRITON_LIBCUDA_PATH": str(driver.path.parent)}),
        mock.patch.object(JITFunction, "_do_compile", compiled),
        mock.patch.object(tiles, "architecture", lambda device: f"sm_{capability}"),
    ):
        triton.runtime.driver.set_active(active)
        active.utils = nvidia.CudaUtils()
        try:
            yield
        finally:
            triton.runtime.driver._active = before
            for kernel in seen:
                kernel.device_caches.pop(0, None)
