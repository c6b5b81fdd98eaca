"""Writes down drawn calls of every operator, for ``replay``, and programs, as a corpus for ``fuzz``.

A call is a line: the operator, the number of threads, and its arguments in the schema's order. A tensor is its dtype,
sizes and strides; ``replay`` draws its values. Run as a module: ``python -m tests.sanitize.record FOLDER``.
"""

from __future__ import annotations

import random
import struct
import sys
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ghost_ops.ops.program import program, program_eval, program_maps, program_pack
from ghost_ops.program import BFLOAT16, FLOAT32, with_precision
from tests.fuzz import operators
from tests.ops.cases import POSITIONAL, Case, results
from tests.ops.guard_pages import each_drawn
from tests.program.drawn import draw_call, draw_program


def text_of(value: object) -> str:
    if value is None:
        return "N"
    if isinstance(value, torch.Tensor):
        sizes, strides = ("x".join(map(str, numbers)) for numbers in (value.shape, value.stride()))
        return f"T:{str(value.dtype).removeprefix('torch.')}:{sizes}:{strides}"
    if isinstance(value, (list, tuple)):
        kind = "L" if any(isinstance(item, torch.Tensor) for item in value) or not value else "I"
        return f"{kind}:" + ";".join(text_of(v) if kind == "L" else str(v) for v in value)
    return {bool: "b", int: "i", float: "f"}[type(value)] + f":{value!r}"


class Recorder(TorchDispatchMode):
    """Keeps the calls of our operators that are made while it is active, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "ghost_ops":
            given = dict(zip((a.name for a in func._schema.arguments), args)) | (kwargs or {})
            values = [given.get(a.name, a.default_value) for a in func._schema.arguments]
            name = func._schema.name.split("::")[1]
            self.lines.append(" ".join([name, str(torch.get_num_threads()), *map(text_of, values)]))
        return func(*args, **(kwargs or {}))


def run_case(name: str, case: Case, recorder: Recorder) -> None:
    """The operator on a drawn case; where it has a gradient, that too."""
    if name in operators.VALUES:
        positional = [t for key, t in case.tensors.items() if key in POSITIONAL]
        named = {key: t for key, t in case.tensors.items() if key not in POSITIONAL} | case.options
        torch.set_num_threads(case.threads)
        with torch.no_grad(), recorder:
            operators._named(operators.VALUES[name][0], case, positional, named)
        return
    operator = operators.GRADIENTS[name][0]
    outputs, _ = results(operator, case, None, False)
    differentiable = 2 if case.options.get("return_squeeze") else 1
    with recorder:
        results(operator, case, [torch.ones_like(t) for t in outputs[:differentiable]], False)


def run_programs(number: int, recorder: Recorder) -> None:
    dtype, precision = (torch.float32, torch.bfloat16)[number % 2], (FLOAT32, BFLOAT16)[number // 2 % 2]
    call = draw_call(number, dtype, 1 + number % 3)
    code, parameters = with_precision(call.program.code, precision), list(call.program.parameters)
    torch.set_num_threads(call.threads)
    with torch.no_grad(), recorder:
        packed = program_pack(parameters, code)
        program(call.x, packed, code)
        program_maps(call.x, packed, code)
        if precision == FLOAT32:
            program_eval(call.x, parameters, code)


def record(each: int) -> list[str]:
    """Calls of every operator, of ``each`` draws."""
    recorder = Recorder()
    for name, draw in operators.DRAWS.items():
        each_drawn(each, lambda case, name=name: run_case(name, case, recorder), draw)
    for number in range(4 * each):
        run_programs(number, recorder)
    return recorder.lines


def write_seeds(folder: Path, count: int) -> None:
    """Inputs of ``fuzz``: programs, and headers that call them (fuzz_program.cpp says how)."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = random.Random(number)
        code = with_precision(draw_program(number, 24, 5).code, rng.choice([FLOAT32, FLOAT32, BFLOAT16]))
        header = [number % 6, rng.choice([1, 1, 2]), rng.randint(5, 19), rng.randint(5, 19), 0, rng.randrange(3),
                  rng.randrange(3), rng.randrange(256), 0, rng.randrange(256), rng.randrange(3)]  # fmt: skip
        data = bytes(header).ljust(16, b"\0") + struct.pack(f"<{len(code)}q", *code)
        (folder / f"program-{number:04}").write_bytes(data)


def main(folder: str, each: str = "6", programs: str = "120") -> None:
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    lines = record(int(each))
    (out / "calls.txt").write_text("\n".join(lines) + "\n")
    write_seeds(out / "seeds", int(programs))
    found = {line.split()[0] for line in lines}
    missing = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("ghost_ops::")}
    missing = {name.split("::")[1].split(".")[0] for name in missing if not name.endswith("_reference")} - found
    print(f"{len(lines)} calls of {len(found)} operators, {programs} programs; not called: {sorted(missing)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
