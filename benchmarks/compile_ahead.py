"""Compile the Triton kernels of a run ahead of time, for a device that is not there, into a cache to be carried to it.

Time on a device is expensive, and most of a first run there is compiling: the GPU tests have some 3000 kernels. Here
the operators run on CPU tensors with a driver that compiles as that device would ask it to, and launches nothing. On
the device the same Triton (the same wheel and Python) finds all of it: ``gpu_check.py --cache`` takes the archive, and
anything else TRITON_CACHE_DIR, naming the path that the cache was made at.

    python benchmarks/compile_ahead.py --cache cache --pack kernels.tar.xz check
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import click
import kernel_cache

ROOT = Path(__file__).resolve().parents[1]
CHECK = "check"
WHAT = (CHECK, "tests", "tune", "nets", "train")


def prepare(cache: Path, capability: int) -> None:
    """Puts the driver in Triton's place, and the Triton kernels in that of the CPU's. Once in a process."""
    stub = cache.parent / f"{cache.name}-stub" / "libcuda.so.1"  # the launchers' C code is linked against it
    stub.parent.mkdir(parents=True, exist_ok=True)
    if not stub.exists():
        command = ["cc", "-shared", "-x", "c", "/dev/null", f"-Wl,-soname,{stub.name}", "-o", stub]
        subprocess.run(command, check=True)
    os.environ |= {"TRITON_CACHE_DIR": str(cache), "TRITON_LIBCUDA_PATH": str(stub.parent)}
    os.environ["GHOST_OPS_BACKEND"] = "reference"  # leaves the CPU's place among the operators free
    sys.path.insert(0, str(ROOT))

    import torch
    import triton
    import triton.backends.nvidia.driver as nvidia
    import triton.runtime.build as build
    from triton.backends.compiler import GPUTarget

    torch.set_num_threads(1)
    build._load_module_from_path = lambda name, path: SimpleNamespace(launch=None)

    def launcher(source, metadata):
        if hasattr(nvidia, "make_launcher"):  # Triton before 3.7 compiles one for each signature
            nvidia.CudaLauncher(source, metadata)
        return lambda *args: None

    triton.runtime.driver.set_active(
        SimpleNamespace(
            utils=SimpleNamespace(
                load_binary=lambda *args: (0, 0, 1, 0, 1024),
                get_device_properties=lambda device: {"max_shared_mem": 227 << 10, "multiprocessor_count": 132},
            ),
            launcher_cls=launcher,
            get_current_target=lambda: GPUTarget("cuda", capability, 32),
            get_current_device=lambda: 0,
            set_current_device=lambda device: None,
            get_current_stream=lambda device: 0,
        )
    )

    import ghost_ops  # noqa: F401
    from ghost_ops import dispatch
    from ghost_ops.backends import native
    from ghost_ops.backends import triton as kernels
    from ghost_ops.backends.registry import SCHEMAS
    from ghost_ops.backends.triton import tiles
    from ghost_ops.ops import _library

    for name in filter(kernels.has, SCHEMAS):
        _library._library.impl(name, kernels.load(name), "CPU")
    freezing = sys.modules["ghost_ops.surgery.freeze"]
    dispatch.BACKENDS["native"] = replace(
        native.BACKEND, refuse_device=lambda device: None, has=kernels.has, dtypes=kernels.DTYPES
    )
    dispatch._select.cache_clear()
    freezing.native = SimpleNamespace(available=lambda: True)
    freezing.compare.difference = lambda *_: None  # kernels that are only compiled compute nothing
    tiles.architecture = lambda device: f"sm_{capability}"


def of_tests() -> Iterator[Callable[[], object]]:
    """The drawn cases and layer shapes of tests/gpu/test_operators.py."""
    from unittest import mock

    from tests.gpu import test_operators as tests

    def run(kind, case, dtype, errors=None):
        tests.results(kind, tests.moved(case, dtype, "cpu"), False, 2 if case.options.get("return_squeeze") else 1)

    for dtype in tests.DTYPES:
        for kind in tests.KINDS:
            for seed in (seed for seeds in tests.SEEDS for seed in seeds):
                yield lambda kind=kind, dtype=dtype, seed=seed: run(kind, tests.drawn(kind, seed), dtype)

        def layers(dtype=dtype):
            (shapes,) = (m.args[1] for m in tests.test_layer_shapes_of_ghostnet.pytestmark if m.args[0] == "shape")
            with mock.patch.object(tests, "check", run):
                for shape in shapes:
                    for layout in ("nchw", "channels_last"):
                        tests.test_layer_shapes_of_ghostnet(shape, dtype, layout)

        yield layers


def of_tuning(batch: int = 128) -> Iterator[Callable[[], object]]:
    import tune_triton as tuning  # beside this file

    from ghost_ops.backends.triton import tiles

    def layer(kernel, tile, shape):
        with tiles.override(kernel, **tile) if tile else nullcontext():
            for call in tuning.calls_of(*shape, tuning.CLASSES["half"], batch, "cpu"):
                call()

    for kernel in tuning.SIDES:
        for tile in (None, *tuning.candidates(kernel)):
            for shape in (shape for shapes in tuning.LAYERS.values() for shape in shapes):
                yield lambda kernel=kernel, tile=tile, shape=shape: layer(kernel, tile, shape)


def of_nets(batches: tuple[int, ...] = (1, 256)) -> Iterator[Callable[[], object]]:
    """The benchmark's net in float16, frozen and fused."""
    import torch

    import ghost_ops
    from ghost_ops.bench.cases import NetCase

    def infer(batch):
        case = NetCase("ghostnet_100", side=224)
        net = case.build().eval()
        x = case.input(batch).half().contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            ghost_ops.freeze(net).half()(x)
            ghost_ops.fuse(net.half().to(memory_format=torch.channels_last))(x)

    for batch in batches:
        yield lambda batch=batch: infer(batch)


def of_training(batches: tuple[int, ...] = (256,)) -> Iterator[Callable[[], object]]:
    import torch
    import torch.nn.functional as F

    import ghost_ops
    from ghost_ops.bench.training import TrainCase

    def step(batch):
        case = TrainCase(side=224)
        images, labels = case.batch(batch)
        net = ghost_ops.fuse(case.build().to(memory_format=torch.channels_last))
        with torch.autocast("cpu", torch.float16):
            loss = F.cross_entropy(net(images.contiguous(memory_format=torch.channels_last)).float(), labels)
        loss.backward()

    for batch in batches:
        yield lambda batch=batch: step(batch)


def compile_check(cache: Path, capability: int, jobs: int) -> None:
    """What ``gpu_check.py`` needs apart from its tests."""
    os.environ["TRITON_CACHE_DIR"] = str(cache)
    sys.path.insert(0, str(ROOT))
    from gpu_check_parts import kernels
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("kernels", total=None)
        started = lambda count: progress.update(task, total=count)
        errors = kernels.compile_ahead(f"sm_{capability}", jobs, started, lambda kernel: progress.advance(task))
    for name, why in errors.items():
        click.echo(f"{name}: {why}", err=True)


def work(cache: Path, capability: int, what: set[str], part: int, parts: int) -> None:
    prepare(cache, capability)
    import torch

    sources = {"tests": of_tests, "tune": of_tuning, "nets": of_nets, "train": of_training}
    torch.backends.cudnn.allow_tf32 = False  # as where results are compared; halves do not depend on it
    jobs = [job for name in sorted(what) for job in sources[name]()]
    for job in jobs[part::parts]:
        try:
            job()
        except Exception as why:  # a tile that does not compile is left out there too
            click.echo(f"{type(why).__name__}: {str(why)[-300:]}", err=True)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("what", nargs=-1, type=click.Choice(WHAT))
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="A folder: Triton's cache.")
@click.option("--pack", type=click.Path(path_type=Path), help="An archive, such as kernels.tar.xz, to be carried.")
@click.option("--capability", type=int, default=90, show_default=True, help="Of the device.")
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Processes.")
def main(what: tuple[str, ...], cache: Path, pack: Path | None, capability: int, jobs: int) -> None:
    """Compile the kernels of the GPU check, of the GPU tests, of tuning and of the benchmark; by default all."""
    what = what or WHAT
    if CHECK in what:
        compile_check(cache.resolve(), capability, jobs)
    arguments = [(cache.resolve(), capability, set(what) - {CHECK}, part, jobs) for part in range(jobs)]
    with get_context("spawn").Pool(jobs) as pool:
        pool.starmap(work, arguments if set(what) - {CHECK} else ())
    click.echo(f"{sum(1 for _ in cache.glob('*/*.cubin'))} kernels in {cache}")
    if pack is not None:
        kernel_cache.pack(cache, pack)
        click.echo(f"{pack}: {pack.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
