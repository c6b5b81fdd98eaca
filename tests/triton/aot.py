"""Kernels compiled ahead of time, as a call of an operator would have them compiled, and what the assembler says.

``record`` runs an operator's launching code on tensors of the CPU and takes what it would launch: the very arguments,
tile and specialisation. ``compile_for`` compiles that for a chip that need not be there.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from ghost_ops.backends.triton import launch, tiles

SHARED = {"sm_80": 163 << 10, "sm_89": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10}  # bytes a block may have
TYPES = {
    torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """A kernel with all that it is specialised for."""

    kernel: object
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, object], ...]
    divisible: tuple[str, ...]
    warps: int
    stages: int

    def __str__(self) -> str:
        shown = {k: v for k, v in self.constants if k.isupper() and v is not None}
        kinds = {v for _, v in self.signature if v.startswith("*")}
        return f"{self.kernel.__name__} {shown} {sorted(kinds)} {self.warps} warps, {self.stages} stages"


@dataclass(frozen=True)
class Resources:
    registers: int
    spilled: int
    shared: int
    ptx: str


def launch_of(kernel, arguments: dict, warps: int, stages: int) -> Launch:
    """The launch of a kernel with these arguments, as Triton specialises it."""
    signature, constants, divisible = [], [], []
    for parameter in kernel.params:
        name = parameter.name
        value = arguments[name]
        looked_at = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (looked_at and isinstance(value, int) and value == 1):
            signature.append((name, "constexpr"))
            constants.append((name, value))
        elif isinstance(value, torch.Tensor):
            signature.append((name, TYPES[value.dtype]))
            divisible.append(name)  # PyTorch allocates at multiples of 512 bytes
        elif isinstance(value, int):
            signature.append((name, "i32" if abs(value) <= launch.INT32 else "i64"))
            if looked_at and not parameter.do_not_specialize_on_alignment and value % 16 == 0:
                divisible.append(name)
        else:
            signature.append((name, "fp32"))
    assert set(arguments) == set(kernel.arg_names), set(arguments) ^ set(kernel.arg_names)
    return Launch(kernel, tuple(signature), tuple(constants), tuple(divisible), warps, stages)


@contextmanager
def recording(found: list[Launch]) -> Iterator[None]:
    def start_kernel(kernel, grid, arguments, warps, stages):
        found.append(launch_of(kernel, arguments, warps, stages))

    with mock.patch.object(launch, "start_kernel", start_kernel):
        yield


def record(architecture: str, call: Callable[[], object]) -> list[Launch]:
    """What ``call`` would launch on a chip of this architecture, each once."""
    found: list[Launch] = []
    with recording(found), tiles.assume(architecture):
        call()
    return list(dict.fromkeys(found))


def build(one: Launch, architecture: str) -> triton.compiler.CompiledKernel:
    """Compiles for a chip that need not be there."""
    launch.hash_kernels()  # before any is hashed here in another order
    names = one.kernel.arg_names
    source = ASTSource(
        fn=one.kernel,
        signature=dict(one.signature),
        constexprs={(names.index(k),): v for k, v in one.constants},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in one.divisible},
    )
    target = GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    return triton.compile(source, target=target, options={"num_warps": one.warps, "num_stages": one.stages})


def compile_for(one: Launch, architecture: str) -> Resources:
    """Compiles to PTX, then assembles that with Triton's own assembler."""
    capability = int(architecture.removeprefix("sm_"))
    built = build(one, architecture)
    ptx = built.asm["ptx"]
    target = re.search(r"\.target (sm_\w+)", ptx)[1]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [get_ptxas(capability).path, "-v", "--gpu-name", target, file.name, "-o", file.name + ".cubin"]
        said = subprocess.run(["sh", "-c", '"$@"; rm -f "$0"', file.name + ".cubin", *command], **_TEXT).stderr
    number = lambda pattern: int(re.search(pattern, said)[1])
    spilled = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
    return Resources(number(r"Used (\d+) registers"), spilled, built.metadata.shared, ptx)


_TEXT = {"capture_output": True, "text": True, "check": True}
