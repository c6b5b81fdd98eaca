"""Single dense convolutions as programs, beside PyTorch and OpenVINO, on one core and one image.

What is timed is the processor's time, in turns, so that other work on the machine disturbs little; the shortest of all
rounds is compared, and the median of the ratios says how much of it is luck. Every result is compared with float64
before it is timed.

    python benchmarks/convolutions.py [--dtype bfloat16] [--rounds 40] [--case 64-64-80-3-1] [--json PATH]

The development extension, where it is built, measures the FMA peak in the same rounds.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from ghost_ops import bench
from ghost_ops.backends import native
from ghost_ops.bench import machine, roofline
from ghost_ops.bench.baselines import BASELINES
from ghost_ops.bench.machine import Unavailable
from ghost_ops.ops.program import program, program_pack
from ghost_ops.program import BFLOAT16, BIAS, FLOAT32, Conv, Layer, Store, encode

# channels, filters, side of the input, kernel, stride: of YOLO, ResNet, VGG, and narrow ones
CASES = (
    (64, 64, 80, 3, 1), (128, 128, 40, 3, 1), (256, 256, 20, 3, 1), (512, 512, 7, 3, 1), (64, 64, 56, 3, 1),
    (32, 64, 160, 3, 2), (64, 128, 80, 3, 2), (128, 256, 40, 3, 2), (128, 256, 28, 1, 2), (3, 64, 224, 7, 2),
    (16, 16, 80, 3, 1), (16, 32, 80, 3, 1), (24, 24, 80, 3, 1), (20, 40, 40, 3, 1),
)  # fmt: skip
TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2}  # relative to the largest element
RELU = 1


def calls_of(case: tuple[int, ...], dtype: str) -> tuple[dict[str, Callable[[], object]], int]:
    """What is compared, by name, each compared with float64; and its FLOPs."""
    channels, filters, side, kernel, stride = case
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(channels, filters, kernel, stride, kernel // 2), nn.ReLU()).eval()
    x = torch.randn(1, channels, side, side).to(memory_format=torch.channels_last)
    exact = module.double()(x.double()).detach()
    module.float()
    parameters = [module[0].weight.detach(), module[0].bias.detach()]
    sizes = (kernel, kernel), (stride, stride), (kernel // 2, kernel // 2), (1, 1)
    step = Conv(-1, 0, -1, False, False, channels, filters, *sizes, 1, Layer(BIAS, 0.0, RELU))
    code = encode([step, Store(0)], 1, BFLOAT16 if dtype == "bfloat16" else FLOAT32)
    packed = program_pack(parameters, code)
    calls = {"ghost_ops": lambda: program(x, packed, code)}
    results = {"ghost_ops": program(x, packed, code)}
    for name in ("eager", "openvino_nhwc" if dtype == "float32" else "openvino_bfloat16"):
        if name not in BASELINES:
            continue
        try:
            built = BASELINES[name].build(module, x, 1)
        except Unavailable as reason:
            click.echo(f"{name}: {reason}", err=True)
            continue
        calls[name], results[name] = built.call, built.result(built.call())
    for name, result in results.items():
        error = float((result - exact).abs().max() / exact.abs().max())
        if error > TOLERANCE[dtype]:
            raise click.ClickException(f"{name} is wrong for {case}: an error of {error:.1e}")
    return calls, 2 * exact.shape[2] * exact.shape[3] * parameters[0].numel()


def peak_of() -> Callable[[], float]:
    """A function that gives the FLOPs a second of one core now."""
    try:
        from ghost_ops import _kernels
    except ImportError:
        flops = roofline.measure().flops
        return lambda: flops
    isa = next(name for name in _kernels.isas() if name not in native.ROUNDING)
    return lambda: _kernels.fma_peak(isa, 0.001) * 1e9


def measure(case: tuple[int, ...], dtype: str, rounds: int) -> dict:
    calls, flops = calls_of(case, dtype)
    peak, peaks, seconds = peak_of(), [], {name: [] for name in calls}
    for _ in range(rounds):
        peaks.append(peak())
        for name, call in calls.items():
            call()  # its caches
            start = time.process_time()
            call()
            seconds[name].append(time.process_time() - start)
    row: dict = {"case": "-".join(map(str, case)), "dtype": dtype, "flops": flops, "peak": max(peaks)}
    row["microseconds"] = {name: 1e6 * min(found) for name, found in seconds.items()}
    ours = seconds["ghost_ops"]
    row["median_ratio"] = {
        name: statistics.median(theirs / own for theirs, own in zip(found, ours, strict=True))
        for name, found in seconds.items()
        if name != "ghost_ops"
    }
    return row


@click.command()
@click.option("--dtype", type=click.Choice(sorted(TOLERANCE)), default="float32", show_default=True, help="Of weights.")
@click.option("--rounds", type=click.IntRange(1), default=40, show_default=True)
@click.option("--case", "names", multiple=True, help="channels-filters-side-kernel-stride. Default: all.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Where results are written.")
def main(dtype: str, rounds: int, names: tuple[str, ...], path: Path | None) -> None:
    """Dense convolutions of programs beside PyTorch's and OpenVINO's, one core, one image."""
    bench.extend()
    torch.set_num_threads(1)
    cases = [tuple(map(int, name.split("-"))) for name in names] or CASES
    if any(len(case) != 5 or min(case) < 1 for case in cases):
        raise click.BadParameter("expected five positive numbers, such as 64-64-80-3-1", param_hint="--case")
    console = Console()
    with torch.inference_mode():
        rows = [measure(c, dtype, rounds) for c in track(cases, "", console=Console(stderr=True), transient=True)]
    others = list(dict.fromkeys(name for row in rows for name in row["median_ratio"]))
    table = Table("case", "us", "GFLOP/s", "of FMA peak", *(f"{name}: us, ratio, median" for name in others))
    for row in rows:
        us = row["microseconds"]["ghost_ops"]
        rate = row["flops"] / us * 1e-3
        cells = [row["case"], f"{us:.0f}", f"{rate:.0f}", f"{rate * 1e9 / row['peak']:.0%}"]
        for name in others:
            other = row["microseconds"].get(name)
            found = "" if other is None else f"{other:.0f}, {other / us:.2f}, {row['median_ratio'][name]:.2f}"
            cells.append(found)
        table.add_row(*cells)
    console.print(table)
    if path:
        path.write_text(json.dumps({"machine": machine.describe(), "rounds": rounds, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
