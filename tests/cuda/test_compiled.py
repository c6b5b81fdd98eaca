"""Every .cu for every architecture that is shipped: no spills, registers and shared memory as launches need them."""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOST_THREADS, REGISTERS = 512, 65536  # of a block; of a processor
SECONDS = 2 * 90  # of processors: 90 on two


def _setup(name: str) -> str:
    """The value of a constant in setup.py."""
    return re.search(rf"^{name} = (.+?)(?:  #.*)?$", (ROOT / "setup.py").read_text(), re.MULTILINE)[1]


def _nvcc() -> str:
    found = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if found is None:
        warnings.warn("nvcc was not found: NO CUDA KERNEL WAS COMPILED", UserWarning, stacklevel=1)
        pytest.skip("nvcc was not found: no CUDA kernel was compiled")
    return found


def _compile(nvcc: str, source: str, dtype: str, to: Path) -> str:
    names = [v.replace(".", "") for v in eval(_setup("CUDA_ARCHITECTURES")).split()]
    codes = [f"-gencode=arch=compute_{v},code=sm_{v}" for v in names]
    codes.append(f"-gencode=arch=compute_{names[-1]},code=compute_{names[-1]}")
    flags = [
        "-O3",
        "-std=c++17",
        f"-I{ROOT / 'csrc'}",
        f"-I{ROOT / 'ghost_ops'}",
        "-Xptxas",
        "-v",
        f"-DGHOST_DTYPE={dtype}",
        "-c",
    ]
    command = [nvcc, *flags, *codes, str(ROOT / "csrc" / "cuda" / source), "-o", str(to)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_no_spills_anywhere(tmp_path, record_property):
    nvcc = _nvcc()
    dtypes = eval(_setup("CUDA_DTYPES"))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with ThreadPoolExecutor(2) as pool:
        said = dict(
            zip(dtypes, pool.map(lambda d: _compile(nvcc, "kernels.cu", d, tmp_path / f"{d}.o"), dtypes), strict=True)
        )
    _compile(nvcc, "device_info.cu", "float32", tmp_path / "device_info.o")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    record_property("seconds", took)
    architectures = {"sm_" + v.replace(".", "") for v in eval(_setup("CUDA_ARCHITECTURES")).split()}
    entry = re.compile(
        r"Compiling entry function '(\w+)' for '(sm_\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers(.*?)$",
        re.DOTALL | re.MULTILINE,
    )
    most = 0
    for dtype, text in said.items():
        seen = {}
        for name, architecture, stack, stores, loads, registers, rest in entry.findall(text):
            kind = re.search(r"strip_kernel|means_kernel|gather_kernel", name)[0]
            seen.setdefault(kind, set()).add(architecture)
            most = max(most, int(registers))
            what = f"{kind}, {dtype}, {architecture}"
            assert (stack, stores, loads) == ("0", "0", "0"), f"{what}: {stack} bytes of stack, {stores} spilled"
            assert int(registers) <= REGISTERS // MOST_THREADS, f"{what}: {registers} registers"
            assert "smem" not in rest, f"{what}: shared memory that no plan knows of:{rest}"
        assert len(seen) == 3 and all(found == architectures for found in seen.values()), (dtype, seen)
    print(f"{len(architectures)} architectures, {len(dtypes)} dtypes: at most {most} registers, {took:.0f} s")
    assert took < SECONDS
