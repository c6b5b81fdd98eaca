"""The CUDA C++ kernels as they are shipped: what each stage costs, read from its machine code (``cuda.json``).

``stages.cu`` has each stage as a kernel by itself, so that its loops can be told apart. What an item of a stage costs
is the shortest way through its loop: that of the frequent case, without what only borders and rare activations need.
The planner (``csrc/cuda/plan.h``) counts with the same numbers, and so predicts the time of a launch.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import networkx

from . import sass

ROOT = Path(__file__).resolve().parents[2]
FILE = Path(__file__).with_name("cuda.json")
KERNEL = "strip_kernel"
RESULTS = {  # that a thread has of an item: two lanes of 4 x 4 pixels, or 32 pixels x 32 lanes of a warp
    "product_stage": 32, "product_tall": 32, "depthwise_3_1": 32, "depthwise_3_2": 32, "depthwise_5_1": 32,
    "depthwise_5_2": 32, "load_stage": 8, "window_stage": 8, "store_stage": 8, "scale_stage": 8, "activate_stage": 2,
}  # fmt: skip
IDEAL = {"depthwise_3_1": 14.3, "depthwise_3_2": 19.8, "depthwise_5_2": 41.8}
"""Instructions that prototypes of these stages, compiled for fixed sizes, have for each result."""
MOST = 1.3
"""How many times as many a stage may have."""


def nvcc() -> str | None:
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def version() -> str:
    said = subprocess.run([nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release ([\d.]+)", said)[1]


def compile_functions(source: Path, dtype: str = "float16", architecture: str = "sm_90") -> dict[str, sass.Function]:
    """The functions of a .cu by their names in machine code; takes some seconds."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        include = [f"-I{ROOT / folder}" for folder in ("csrc", "ghost_ops")]
        command = [nvcc(), "-O3", "-std=c++17", *include, f"-DGHOST_DTYPE={dtype}", f"-arch={architecture}"]
        done = subprocess.run([*command, "-cubin", "-o", str(cubin), str(source)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"nvcc failed: {done.stderr}")
        return sass.disassemble(cubin.read_bytes())


def shortest_way(function: sass.Function, loop: sass.Loop) -> int:
    """Instructions of the shortest way once through a loop, without those of loops within."""
    within = {block for inner in loop.inner for block in inner.blocks}
    size = lambda block: 0 if block in within else len(function.blocks[block])
    graph = networkx.DiGraph()
    graph.add_nodes_from(loop.blocks)
    for block in loop.blocks:
        inside = (to for to in function.successors[block] if to in loop.blocks and to != loop.header)
        graph.add_edges_from((block, to, {"weight": size(block)}) for to in inside)
    ways = networkx.single_source_dijkstra_path_length(graph, loop.header)
    return min(way + size(end) for end, way in ways.items() if loop.header in function.successors[end])


def stage_costs(functions: dict[str, sass.Function]) -> dict[str, int]:
    """Instructions of an item of each stage, and of 16 inputs of a product."""
    found = {}
    for name in RESULTS:
        loops = functions[name].loops
        outer = max(loops, key=lambda loop: shortest_way(functions[name], loop))
        if name == "window_stage":  # the loop over pixels, within that over numbers of a window
            (outer,) = outer.inner
        found[name] = shortest_way(functions[name], outer)
        if name == "product_stage":
            found["product_depth"] = shortest_way(functions[name], outer.inner[-1])
    return found


def counts(function: sass.Function) -> dict[str, int]:
    """What the machine code of the kernel shows."""
    within = [one for top in function.loops for loop, _ in top.walk() for one in function.own(loop)]
    return {
        "registers": function.registers, "instructions": len(function.code), "stack": function.stack,
        "copies": sum(one.kind == "copy" for one in within), "matrix": sum(one.kind == "matrix" for one in within),
    }  # fmt: skip


def measure() -> dict:
    """The counts as they are now."""
    stages = stage_costs(compile_functions(Path(__file__).with_name("stages.cu")))
    kernels = compile_functions(ROOT / "csrc" / "cuda" / "kernels.cu")
    (kernel,) = (one for name, one in kernels.items() if KERNEL in name)
    return {
        "nvcc": version(), "dtype": "float16", "architecture": "sm_90", "stages": stages, "kernel": counts(kernel)
    }  # fmt: skip


def load() -> dict:
    return json.loads(FILE.read_text())


def complaints(now: dict[str, int], known: dict[str, int]) -> list[str]:
    """Counts that are worse than what is known, and ones that are so much better that they should be written down."""
    found = []
    for name, limit in known.items():
        if now[name] > limit:
            found.append(f"{name}: {now[name]}, it was {limit}")
        elif limit - now[name] > 0.1 * limit:
            found.append(f"{name}: {now[name]}, much better than {limit}: write it down")
    return found
