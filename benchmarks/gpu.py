"""The long GPU benchmark: Ghost modules, whole nets and training steps on a CUDA device, against PyTorch at its best.

Every result, and every training step's gradients, are compared with float64 before they are timed; the contenders take
turns within a round (A B A B), and medians are reported. Writes ``<out>/<device>.json`` after every case, the most
telling cases first, and ``<device>.png`` in the end where matplotlib is. ``benchmarks/gpu_check.py`` is the short one.

    python benchmarks/gpu.py [--part modules --part nets --part train] [--batch 256] [--minutes 8] [--dry-run]

``--dry-run`` runs everything once on the CPU at a tiny size, to see that it works: it times nothing worth reading.
"""

from __future__ import annotations

import re
import statistics
import time
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table

from ghost_ops.bench import machine, other_models
from ghost_ops.bench.cases import ModuleCase, NetCase, module_cases
from ghost_ops.bench.gpu import MODES, Device, Inference, Training, inference_baselines, training_baselines
from ghost_ops.bench.report import to_json
from ghost_ops.bench.results import Result
from ghost_ops.bench.roofline import Limits
from ghost_ops.bench.run import Report
from ghost_ops.bench.training import TrainCase

PARTS = ("modules", "nets", "train")
BATCHES = (1, 32, 256, 1024)
TELLING = (256, 1)  # the batches that come first
TRAIN_BATCHES = (256, 32)


def run_inference(
    device: Device, part: str, case: ModuleCase | NetCase, batch: int, dtype: torch.dtype, rounds: int,
    modes: tuple[str, ...], bandwidth: float,
) -> list[Result]:  # fmt: skip
    inference = Inference(device, case, batch, dtype)
    return inference.run(part, inference_baselines(device, case, inference.net, modes), rounds, bandwidth)


def run_training(device: Device, batch: int, dtype: torch.dtype, rounds: int, modes: tuple[str, ...]) -> list[Result]:
    training = Training(device, TrainCase(side=64 if device.dry else 224), batch, dtype)
    return training.run(training_baselines(device, modes), rounds)


def plot(rows: list[Result], path: Path, title: str) -> None:
    """Times of every baseline relative to our fastest: whole nets and steps by batch, modules in the geometric mean."""
    from matplotlib.figure import Figure

    groups: dict[tuple[str, str], dict[tuple[str, int], list[float]]] = {}
    for row in rows:
        if row.speedup:
            baselines = groups.setdefault((row.kind, row.dtype), {})
            baselines.setdefault((row.baseline, row.batch), []).append(row.speedup)
    if not groups:
        return
    figure = Figure(figsize=(6 * len(groups), 4.5), layout="constrained")
    figure.suptitle(title)
    for axes, ((part, dtype), baselines) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups.items()):
        for name in dict.fromkeys(found for found, _ in baselines):
            points = sorted((n, statistics.geometric_mean(v)) for (found, n), v in baselines.items() if found == name)
            axes.plot(*zip(*points), marker="o", label=name)
        axes.set(xscale="log", xlabel="batch", ylabel="times as long as ours", title=f"{part}, {dtype}")
        axes.axhline(1, color="black", linewidth=0.5)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def show(rows: list[Result], console: Console) -> None:
    table = Table("part", "case", "batch", "dtype", "baseline", "ms", "x ours", "GB/s", "of floor", "peak MiB", "note")
    for r in rows:
        number = lambda v, form: "" if v is None else format(v, form)
        rate = r.bytes / r.seconds / 1e9 if r.bytes and r.seconds else None
        table.add_row(
            r.kind, r.case, str(r.batch), r.dtype, r.label, number(r.seconds and r.seconds * 1e3, ".3f"),
            number(r.speedup, ".2f"), number(rate, ".0f"), number(r.share, ".0%"),
            number(r.resident_bytes and r.resident_bytes / 2**20, ".0f"), r.reason,
        )  # fmt: skip
    console.print(table)


def ordered(
    parts: tuple[str, ...], modules: list[ModuleCase], nets: list[NetCase], batches: tuple[int, ...],
    train_batches: tuple[int, ...],
) -> list[tuple[str, ModuleCase | NetCase | None, int]]:  # fmt: skip
    """Part, case and batch, the most telling first, for a run that is cut short: GhostNet itself, its training, its
    modules, the other models, then all of these at other batches."""
    telling = [batch for batch in TELLING if batch in batches] or list(batches)
    others = [batch for batch in batches if batch not in telling]
    found = []
    for some in (telling, others):
        found += [("nets", nets[0], batch) for batch in some]
        found += [("train", None, batch) for batch in (train_batches if some is telling else ())]
        found += [("modules", case, batch) for batch in some for case in modules]
        found += [("nets", case, batch) for batch in some for case in nets[1:]]
    return [one for one in found if one[0] in parts]


def save(rows: list[Result], device: Device, bandwidth: float, out: Path) -> Path:
    """Writes all results so far as JSON, in the place of what was written before; returns the path."""
    name = re.sub(r"[^a-z0-9]+", "-", device.label.lower()).strip("-")
    where = machine.describe() | {"gpu": device.label, "cuda": torch.version.cuda}
    limits = Limits(1, 0.0, "not measured", {"DRAM": bandwidth}, {})
    found = Report(where, {}, [limits.as_dict()], rows)
    out.mkdir(parents=True, exist_ok=True)
    path, own = out / f"{name}.json", out / f"{name}.json.new"
    own.write_text(to_json(found))
    own.replace(path)
    return path


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="Default: all.")
@click.option("--batch", "batches", multiple=True, type=click.IntRange(1), help=f"Default: {BATCHES}.")
@click.option(
    "--train-batch", "train_batches", multiple=True, type=click.IntRange(2), help=f"Default: {TRAIN_BATCHES}."
)
@click.option("--dtype", "dtypes", multiple=True, type=click.Choice(["float16", "bfloat16"]), help="Default: both.")
@click.option("--rounds", type=click.IntRange(1), default=11, show_default=True)
@click.option("--minutes", type=click.FloatRange(0), help="No case starts later than this.")
@click.option(
    "--mode", "modes", multiple=True, type=click.Choice(MODES), help=f"Of torch.compile. Default: {MODES[:2]}."
)
@click.option("--quick", is_flag=True, help="Without torch.compile, which takes most of the time.")
@click.option("--dry-run", "dry", is_flag=True, help="Once, tiny, on the CPU: does it work?")
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent / "results", show_default=True)
def main(parts, batches, train_batches, dtypes, rounds, minutes, modes, quick, dry, out) -> None:
    """Time ghost_ops against PyTorch at its best on a CUDA device."""
    if not dry and not torch.cuda.is_available():
        raise click.ClickException("no CUDA device is there; --dry-run shows on the CPU that the benchmark works")
    end = None if minutes is None else time.monotonic() + 60 * minutes
    device, console = Device(dry), Console()
    console = console if console.is_terminal else Console(width=180)
    batches, train_batches = (batches or BATCHES, train_batches or TRAIN_BATCHES) if not dry else ((1,), (2,))
    kinds = [getattr(torch, name) for name in dtypes or (("bfloat16",) if dry else ("float16", "bfloat16"))]
    rounds, modes = 1 if dry else rounds, () if quick or dry else modes or MODES[:2]
    bandwidth, rows = device.bandwidth(), []
    modules = module_cases()[:2] if dry else module_cases()
    nets = [NetCase("ghostnet_100", side=64 if dry else 224), *(() if dry else map(NetCase, other_models.OTHER_MODELS))]
    cases = ordered(parts or PARTS, modules, nets, batches, train_batches)
    runs = [(*one, dtype) for one in cases for dtype in (kinds[:1] if one[0] == "train" else kinds)]
    for i, (part, case, batch, dtype) in enumerate(runs):
        if end is not None and time.monotonic() > end:
            console.print(f"{minutes:g} minutes are over: {len(runs) - i} of {len(runs)} cases were left out")
            break
        device.forget()
        if part == "train":
            found = run_training(device, batch, dtype, rounds, modes)
        else:
            found = run_inference(device, part, case, batch, dtype, rounds, modes, bandwidth)
        show(found, console)
        rows += found
        if not dry:
            path = save(rows, device, bandwidth, out)
    if dry or not rows:
        return
    try:
        plot(rows, path.with_suffix(".png"), device.label)
    except ImportError:
        console.print("matplotlib is not installed: no picture")


if __name__ == "__main__":
    main()
