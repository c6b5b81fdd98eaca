"""The CUDA C++ kernels as they are shipped: what each stage costs, read from its machine code (``cuda.json``).

``stages.cu`` has each stage as a kernel by itself, so that its loops can be told apart. What an item of a stage costs
is the shortest way through its loop: that of the frequent case, without what only borders and rare activations need.
The planner (``csrc/cuda/cost.h``) counts with the same numbers, and so predicts the time of a launch.
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
RESULTS = {  # that a thread has of an item
    "product_stage": 32, "product_tall": 32, "product_deep": 32,  # a warp: 32 x 32 or 64 x 16 pixels x lanes
    "product_small": 8, "product_small_deep": 8,  # 16 x 16
    "product_ahead": 16,  # 16 x 32
    "depthwise_3_1": 16, "depthwise_3_2": 16,  # 4 rows x 16 pixels x 8 lanes
    "depthwise_3_1_low": 8, "depthwise_3_2_low": 8, "depthwise_5_1_low": 8, "depthwise_5_2_low": 8,  # 2 rows
    "load_stage": 8, "window_stage": 8, "store_stage": 8, "store_parts": 8, "store_added": 8, "scale_stage": 8,
    "activate_stage": 2, "mean_stage": 4,
}  # fmt: skip
PRODUCTS = {"product_deep": 8, "product_small_deep": 2, "product_ahead": 4}
FULL = "HMMA.16816"
"""Products of a warp for 16 inputs, and their name; those for the last eight are in a loop of their own."""
BEGINS = {
    "product_begin": "product_stage", "depthwise_3_begin": "depthwise_3_1", "depthwise_5_begin": "depthwise_5_1_low",
    "load_begin": "load_stage", "store_begin": "store_added", "scale_begin": "scale_stage", "mean_begin": "mean_stage",
}  # fmt: skip
"""What a warp does before its items, and where their outer number changes: the name of the count, and the stage."""
PROTOTYPES = {"depthwise_3_1": 14.3, "depthwise_3_2": 19.8, "depthwise_5_2_low": 41.8, "product_stage": 3.0}
"""Instructions that prototypes of these stages, compiled for fixed sizes, have for each result; the depthwise ones
without tensor cores."""


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


def _ways(function: sass.Function, loop: sass.Loop) -> networkx.DiGraph:
    """The blocks of a loop; an edge weighs the instructions of the block that it leaves, 0 in loops within."""
    within = {block for inner in loop.inner for block in inner.blocks}
    graph = networkx.DiGraph()
    graph.add_nodes_from(loop.blocks)
    for block in loop.blocks:
        inside = [to for to in function.successors[block] if to in loop.blocks and to != loop.header]
        graph.add_edges_from(
            (block, to, {"weight": 0 if block in within else len(function.blocks[block])}) for to in inside
        )
    return graph


def shortest_way(function: sass.Function, loop: sass.Loop, by: int | None = None) -> int:
    """Instructions of the shortest way once through a loop, or by a block of it, without those of loops within."""
    graph, first = _ways(function, loop), loop.header
    ways = lambda start: networkx.single_source_dijkstra_path_length(graph, start)
    before = 0 if by is None else ways(first)[by]
    within = {block for inner in loop.inner for block in inner.blocks}
    size = lambda block: 0 if block in within else len(function.blocks[block])
    found = ways(first if by is None else by)
    return before + min(way + size(end) for end, way in found.items() if first in function.successors[end])


def _loops(function: sass.Function) -> tuple[sass.Loop, sass.Loop]:
    """The loop over a warp's outer numbers and that over its items; the same one where there is only one."""
    outer = max(function.loops, key=lambda loop: sum(len(function.blocks[block]) for block in loop.blocks))
    return outer, max(outer.inner, key=lambda loop: len(loop.blocks), default=outer)


def _code(function: sass.Function, loop: sass.Loop) -> list[sass.Instruction]:
    """All instructions of a loop."""
    return [function.code[i] for block in loop.blocks for i in function.blocks[block]]


def stage_costs(functions: dict[str, sass.Function]) -> dict[str, int]:
    """Instructions of an item of each stage, before the items of a warp, and of 16 inputs of a product."""
    found = {}
    for name in RESULTS:
        outer, item = _loops(functions[name])
        found[name] = shortest_way(functions[name], item)
        if name in PRODUCTS:  # its loop has several steps, of which the last may be left out
            codes = (_code(functions[name], loop) for loop in item.inner)
            (code,) = (code for code in codes if any(FULL in one.opcode for one in code))
            steps = sum(FULL in one.opcode for one in code) / PRODUCTS[name]
            found[f"{name}_depth"] = round(len(code) / steps)
    for name, stage in BEGINS.items():
        outer, item = _loops(functions[stage])
        found[name] = shortest_way(functions[stage], outer, item.header)
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
