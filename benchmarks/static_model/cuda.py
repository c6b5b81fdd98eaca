"""The CUDA C++ kernels as they are shipped: counts of their machine code (``cuda.json``).

Their loops run over regions that the planner chooses, several stages in one kernel, so no time is predicted of them: a
stage has to be compiled by itself for that. What shows without: how many warps are resident, divisions and narrow
accesses in loops, asynchronous copies.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from . import model, sass
from .model import Facts, Part

ROOT = Path(__file__).resolve().parents[2]
FILE = Path(__file__).with_name("cuda.json")
KERNELS = ("bottleneck_kernel", "module_kernel")
THREADS = 512  # of a thread block, the most that the planner takes
AT_LEAST = ("resident_warps", "narrowest", "copies")  # better where larger; of all other counts the smaller is better


def nvcc() -> str | None:
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def version() -> str:
    said = subprocess.run([nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release ([\d.]+)", said)[1]


def compile_kernels(dtype: str = "float16", architecture: str = "sm_90") -> dict[str, sass.Function]:
    """The functions of csrc/cuda/kernels.cu by their C++ names; takes some seconds."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        command = [
            nvcc(), "-O3", "-std=c++17", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'ghost_ops'}", f"-DGHOST_DTYPE={dtype}",
            f"-arch={architecture}", "-cubin", "-o", str(cubin), str(ROOT / "csrc" / "cuda" / "kernels.cu"),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"nvcc failed: {done.stderr}")
        found = sass.disassemble(cubin.read_bytes())
    return {name: one for mangled, one in found.items() for name in KERNELS if f"{len(name)}{name}" in mangled}


def counts(function: sass.Function) -> dict[str, int]:
    """What the machine code of a kernel shows."""
    loops = [loop for top in function.loops for loop, _ in top.walk()]
    within = [one for loop in loops for one in function.own(loop)]
    nothing = Part()
    facts = Facts(function.registers, THREADS // 32, 0, 1, nothing, 1, nothing, 0, 0, 0, 0, 0, 1)
    return {
        "registers": function.registers, "resident_warps": facts.resident(model.H200) * facts.warps,
        "instructions": len(function.code), "loops": len(loops), "stack": function.stack,
        "divisions": sum(one.divides for one in within), "calls": sum(one.base == "CALL" for one in within),
        "barriers": sum(one.base == "BAR" for one in within), "copies": sum(one.kind == "copy" for one in within),
        "narrowest": min((one.bits for one in within if one.kind in ("load", "store", "copy")), default=128),
    }  # fmt: skip


def load() -> dict:
    return json.loads(FILE.read_text())


def write() -> dict:
    """The counts as they are now."""
    found = {name: counts(function) for name, function in compile_kernels().items()}
    return {"nvcc": version(), "dtype": "float16", "architecture": "sm_90", "kernels": found}


def complaints(now: dict[str, int], known: dict[str, int]) -> list[str]:
    """Counts that are worse than what is known, and ones that are so much better that they should be written down."""
    found = []
    for name, limit in known.items():
        worse, better = (
            (now[name] < limit, now[name] > limit) if name in AT_LEAST else (now[name] > limit, now[name] < limit)
        )
        if worse:
            found.append(f"{name}: {now[name]}, it was {limit}")
        elif better and abs(now[name] - limit) > 0.1 * limit:
            found.append(f"{name}: {now[name]}, much better than {limit}: write it down")
    return found
