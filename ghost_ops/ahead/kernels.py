"""Compiles Triton's kernels before they are needed, in several processes, for a device that need not be there.

A compiled kernel is found again in Triton's cache on disk, by this process and by others, whoever compiled it.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .dry_run import Launch


@dataclass(frozen=True)
class Specialisation:
    """A kernel with all that it is compiled for.

    Attributes:
        module: where the kernel is defined.
        data: Triton's own description of it, which ``JITFunction.preload`` reads.
    """

    module: str
    data: str

    @property
    def name(self) -> str:
        """The kernel's name."""
        return json.loads(self.data)["name"].rsplit(".", 1)[1]

    def compile(self) -> None:
        """Compile it, or find it in the cache."""
        from ..backends.triton import launch

        launch.hash_kernels()
        getattr(importlib.import_module(self.module), self.name).preload(self.data)


def specialisations(launches: Iterable[Launch], architecture: str | None = None) -> list[Specialisation]:
    """What must be compiled for these launches, each once, in order.

    Args:
        architecture: as of ``dry_run``; None is this process's device.
    """
    import triton

    found: dict[Specialisation, None] = {}

    def take(*, fn, compile, **_: object) -> bool:
        found[Specialisation(fn.module, compile["specialization_data"])] = None
        return True  # do not compile

    hooks = triton.knobs.runtime
    before, hooks.jit_cache_hook = hooks.jit_cache_hook, take
    try:
        with _driver(architecture):
            for one in launches:
                options = {"num_warps": one.warps, "num_stages": one.stages}
                one.kernel.warmup(**one.arguments, **options, grid=one.grid)
    finally:
        hooks.jit_cache_hook = before
    return list(found)


def compile_all(
    kernels: list[Specialisation], architecture: str, jobs: int, done: Callable[[Specialisation], None]
) -> dict[str, str]:
    """Compile kernels in ``jobs`` processes of their own.

    Args:
        architecture: the device's, such as ``"sm_90"``.
        done: called with each kernel that is ready, or has failed.

    Returns:
        The error of each kernel that did not compile, by its name.
    """
    errors: dict[str, str] = {}
    context = get_context("spawn")  # no process inherits a device that is in use
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_prepare, initargs=(architecture,)) as pool:
        running = {pool.submit(_compile, kernel): kernel for kernel in kernels}
        for future in as_completed(running):
            kernel = running[future]
            error = future.result()
            if error is not None:
                errors[kernel.name] = error
            done(kernel)
    return errors


def architecture_of(device: object) -> str:
    """The name of a CUDA device's architecture, such as ``"sm_90"``."""
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def _prepare(architecture: str) -> None:
    """Prepare a process of ``compile_all``: no device is touched in it."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _stand_in(architecture)


def _compile(kernel: Specialisation) -> str | None:
    try:
        kernel.compile()
    except Exception as error:  # told by ``compile_all``, whatever it is
        return f"{type(error).__name__}: {error}"[:500]
    return None


@contextmanager
def _driver(architecture: str | None) -> Iterator[None]:
    """Within the block Triton takes this architecture for the current device's."""
    if architecture is None:
        yield
        return
    from triton.runtime import driver

    before = driver._active
    _stand_in(architecture)
    try:
        yield
    finally:
        driver._active = before


def _stand_in(architecture: str) -> None:
    """Puts a driver in the place of Triton's that knows what a kernel is compiled for and starts none."""
    import triton.backends.nvidia.driver as nvidia
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    target = GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)

    def launcher(source: object, metadata: object) -> Callable:
        if hasattr(nvidia, "make_launcher"):  # Triton before 3.7 compiles a launcher for each signature, too
            _compile_launcher(nvidia, source, metadata)
        return lambda *args: None

    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: target,
            get_current_device=lambda: architecture,  # Triton keeps what it compiled by device
            get_current_stream=lambda device: 0,
            launcher_cls=launcher,
        )
    )


def _compile_launcher(nvidia: object, source: object, metadata: object) -> None:
    """Compiles the C code that starts a kernel, against a library that is empty where the driver is not installed."""
    import triton.runtime.build as build

    with tempfile.TemporaryDirectory() as folder:
        stub = Path(folder, "libcuda.so.1")
        command = ["cc", "-shared", "-x", "c", "/dev/null", f"-Wl,-soname,{stub.name}", "-o", str(stub)]
        subprocess.run(command, check=True)
        environment, load = os.environ.get("TRITON_LIBCUDA_PATH"), build._load_module_from_path
        os.environ.setdefault("TRITON_LIBCUDA_PATH", folder)
        build._load_module_from_path = lambda name, path: SimpleNamespace(launch=None)
        try:
            nvidia.CudaLauncher(source, metadata)
        finally:
            build._load_module_from_path = load
            if environment is None:
                del os.environ["TRITON_LIBCUDA_PATH"]
