"""The bare kernels, one instruction set at a time: GFLOP/s, and the share of the machine's FMA peak, on one core.

Needs the development extension: GHOST_OPS_DEV=1 python setup.py build_ext --inplace. Every kernel's result is compared
with NumPy in float64 before it is timed.

    python benchmarks/microkernels.py [--isa avx2] [--seconds 0.2] [--json PATH]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ghost_ops.bench import machine
from ghost_ops.bench.cases import module_cases

TOLERANCE = 1e-5  # relative to the largest element


def exact_gemm(x: np.ndarray, w: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return np.maximum(x.astype(np.float64) @ w.T.astype(np.float64) + bias, 0)


def exact_depthwise(x: np.ndarray, w: np.ndarray, bias: np.ndarray) -> np.ndarray:
    (height, width, _), size = x.shape, w.shape[1]
    padded = np.pad(x.astype(np.float64), ((size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    taps = ((i, j) for i in range(size) for j in range(size))
    return np.maximum(sum(padded[i : i + height, j : j + width] * w[:, i, j] for i, j in taps) + bias, 0)


def error(result: np.ndarray, exact: np.ndarray) -> float:
    return float(np.abs(result - exact).max() / np.abs(exact).max())


def measure(kernels, isa: str, seconds: float) -> list[dict]:
    """A row for each kernel and shape of GhostNet-100's Ghost modules, on one image."""
    random, rows = np.random.default_rng(0), []
    peak = max(kernels.fma_peak(isa, seconds / 8) for _ in range(8))  # what the machine does undisturbed
    normal = lambda *shape: random.standard_normal(shape, dtype=np.float32)
    jobs = {}
    for case in module_cases():
        m, side, size = case.primary, case.side, case.kernel
        jobs["gemm", f"{side * side} x {case.inp} x {m}"] = (side * side, case.inp, m)
        jobs["depthwise", f"{side} x {side} x {m}, {size} x {size}"] = (side, side, m, size)
    for (kernel, shape), sizes in track(jobs.items(), f"{isa}", console=Console(stderr=True), transient=True):
        if kernel == "gemm":
            pixels, c, n = sizes
            arguments = normal(pixels, c), normal(n, c), normal(n)
            flops, exact = 2 * pixels * c * n, exact_gemm
        else:
            height, width, c, size = sizes
            arguments = normal(height, width, c), normal(c, size, size), normal(c)
            flops, exact = 2 * height * width * c * size * size, exact_depthwise
        found = error(getattr(kernels, kernel)(isa, *arguments, True), exact(*arguments))
        row = {"isa": isa, "kernel": kernel, "shape": shape, "error": found, "peak": peak, "gflops": None}
        if found <= TOLERANCE:
            row["gflops"] = flops / getattr(kernels, f"time_{kernel}")(isa, *sizes, seconds) * 1e-9
        rows.append(row)
    return rows


@click.command()
@click.option("--isa", "isas", multiple=True, help="Default: all that this machine runs.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=0.1, show_default=True, help="Each.")
@click.option("--json", "path", help='Write JSON; "-" is standard output.')
def main(isas: tuple[str, ...], seconds: float, path: str | None) -> None:
    """GFLOP/s of the bare kernels against the FMA peak of one core."""
    try:
        from ghost_ops import _kernels
    except ImportError as missing:
        command = "GHOST_OPS_DEV=1 python setup.py build_ext --inplace"
        raise click.ClickException(f"the development extension is not built: {command} ({missing})") from missing
    unknown = set(isas) - set(_kernels.isas())
    if unknown:
        raise click.BadParameter(f"this machine has {', '.join(_kernels.isas())}, not {', '.join(sorted(unknown))}")
    rows = [row for isa in isas or _kernels.isas() for row in measure(_kernels, isa, seconds)]
    if path != "-":
        table = Table("instruction set", "kernel", "shape", "GFLOP/s", "of peak", "error")
        for row in rows:
            gflops = row["gflops"]
            speed = ("WRONG", "") if gflops is None else (f"{gflops:.0f}", f"{gflops / row['peak']:.0%}")
            table.add_row(row["isa"], row["kernel"], row["shape"], *speed, f"{row['error']:.0e}")
        Console().print(table)
        for isa in dict.fromkeys(row["isa"] for row in rows):
            click.echo(f"{isa}: FMA peak {next(r['peak'] for r in rows if r['isa'] == isa):.0f} GFLOP/s a core")
    if path:
        text = json.dumps({"machine": machine.describe(), "rows": rows}, indent=1)
        click.echo(text) if path == "-" else Path(path).write_text(text + "\n")
    sys.exit(any(row["gflops"] is None for row in rows))


if __name__ == "__main__":
    main()
