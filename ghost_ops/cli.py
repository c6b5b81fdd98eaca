"""The command line ``ghost-ops``: info, verify, bench, demo."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from . import __version__
from . import bench as benchmark
from .bench import machine
from .bench.baselines import BASELINES, TARGETS, baselines_of
from .bench.cases import module_cases, net_cases
from .bench.machine import Unavailable

QUICK_CASES = 3
WIDTH = 180  # columns of tables that go to a file or a pipe
PARTS = ("modules", "nets", "train", "frozen", "train_modules", "zoo")


def _console() -> Console:
    """A new console for each use, since standard output may be replaced; wide where it is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


@contextmanager
def _progress(total: int) -> Iterator[Progress]:
    """On standard error, so that standard output stays for results."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task("", total=total)
        yield progress


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Fused kernels for GhostNet's Ghost modules in PyTorch."""


@main.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def info(as_json: bool) -> None:
    """Versions, instruction sets, backends, and why one is missing."""
    found = machine.describe()
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    table = Table(show_header=False, title="ghost_ops on this machine")
    commit = f", commit {found['commit']}" if found["commit"] else ""
    table.add_row("ghost_ops", f"{found['ghost_ops']}{commit}")
    table.add_row("processor", f"{found['cpu']} ({found['architecture']}), {found['cores']} cores")
    table.add_row("caches", ", ".join(f"{name} {size >> 10} KiB" for name, size in found["caches"].items()))
    table.add_row("kernels", f"{found['isa']} (of {', '.join(found['isas']) or 'none'})")
    for name, state in found["backends"].items():
        table.add_row(f"backend {name}", escape(state))
    for name, version in found["versions"].items():
        table.add_row(name, version or escape("not installed" + _how(name)))  # [bench] is not markup
    _console().print(table)


def _how(package: str) -> str:
    return ': pip install "ghost-ops[bench]"' if package in machine.ENGINES else ""


@main.command()
@click.option("--quick", is_flag=True, help="Two calls of each kind instead of twelve.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def verify(quick: bool, as_json: bool) -> None:
    """Compare every operator, and eager PyTorch in the same dtype, with float64 on this machine.

    Exits with 1 where an error is more than twice that of eager and a few units in the last place.
    """
    from . import verify as checks

    directions = 2 * len(checks.OPERATORS) - len(checks.FORWARD_ONLY)
    with _progress(directions * len(checks.DTYPES) * len(checks.LAYOUTS)) as progress:
        outcomes = checks.verify(
            2 if quick else 12, on_step=lambda what: progress.update(0, advance=1, description=what)
        )
    failed = [outcome for outcome in outcomes if not outcome.ok]
    if as_json:
        rows = [{**asdict(outcome), "ok": outcome.ok} for outcome in outcomes]
        # an infinite error (a result that is not finite) is null: JSON has no infinity
        rows = [{k: None if v == float("inf") else v for k, v in row.items()} for row in rows]
        click.echo(json.dumps({"machine": machine.describe(), "ok": not failed, "outcomes": rows}, indent=1))
    else:
        table = Table(
            "operator", "dtype", "layout", "direction", "backend", "calls", "error", "eager's", "of allowed", ""
        )
        for o in outcomes:
            verdict = "[green]ok[/]" if o.ok else "[bold red]FAILED[/]"
            numbers = f"{o.error:.1e}", f"{o.eager_error:.1e}", f"{o.ratio:.0%}"
            table.add_row(o.operator, o.dtype, o.layout, o.direction, o.backend, str(o.calls), *numbers, verdict)
        console = _console()
        console.print(table)
        for outcome in failed:
            console.print(f"{outcome.operator}, {outcome.dtype}, {outcome.layout}: {outcome.what}", markup=False)
    raise SystemExit(1 if failed else 0)


@main.command()
@click.option("--modules", is_flag=True, help="Every Ghost module of GhostNet-100.")
@click.option("--nets", is_flag=True, help="Whole nets.")
@click.option("--train", is_flag=True, help="A training step of GhostNet-100. Without any part named: these three.")
@click.option("--train-modules", is_flag=True, help="Forward and backward of every Ghost module.")
@click.option("--frozen", is_flag=True, help="Frozen nets, engines and other nets, and the time of a net's parts.")
@click.option("--zoo", is_flag=True, help="Other people's Ghost nets: inference and training, beside OpenVINO.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", help="For --frozen.")
@click.option("--case", "--only", "patterns", multiple=True, metavar="TEXT", help="Only cases whose name has this.")
@click.option("--baselines", multiple=True, metavar="TEXT", help="Only baselines whose name contains this.")
@click.option("--peers", multiple=True, hidden=True)  # the name that --baselines had in 0.1.0
@click.option("--batch", "batches", multiple=True, type=click.IntRange(1), help="Default: 1 and 16; 1 and 8 for --zoo.")
@click.option("--train-batch", type=click.IntRange(2), help="Default: 32; 16 for --zoo.")
@click.option("--train-side", type=click.IntRange(32), default=224, show_default=True, help="Pixels, when training.")
@click.option(
    "--threads", "thread_counts", multiple=True, type=click.IntRange(1), help="Default: 1; --zoo trains with 2."
)
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True, help="Samples of each.")
@click.option("--quick", is_flag=True, help=f"Batch 1, {QUICK_CASES} modules, few rounds, no compilation.")
@click.option("--json", "json_path", metavar="PATH", help='Write JSON; "-" is standard output.')
@click.option("--plot", "plot_path", metavar="PATH", help="Write a picture.")
def bench(
    modules: bool,
    nets: bool,
    train: bool,
    train_modules: bool,
    frozen: bool,
    zoo: bool,
    dtype: str,
    patterns: tuple[str, ...],
    baselines: tuple[str, ...],
    peers: tuple[str, ...],
    batches: tuple[int, ...],
    train_batch: int | None,
    train_side: int,
    thread_counts: tuple[int, ...],
    rounds: int,
    quick: bool,
    json_path: str | None,
    plot_path: str | None,
) -> None:
    """Time ghost_ops and its baselines side by side, after comparing each result with float64."""
    from .bench import report as reports
    from .bench import session
    from .bench.training import STEPS, TrainCase, TrainModuleCase

    in_checkout = benchmark.extend()
    if not in_checkout and (frozen or zoo or plot_path):
        option = "--frozen" if frozen else "--zoo" if zoo else "--plot"
        raise click.ClickException(f"{option} needs a checkout of the repository: its code is in benchmarks/harness")
    if plot_path:
        _installed("matplotlib")
    if dtype != "float32" and not frozen:
        raise click.UsageError("--dtype is for --frozen: the other parts run in float32")
    parts = [part for part, on in zip(PARTS, (modules, nets, train, frozen, train_modules, zoo)) if on]
    parts = parts or list(PARTS[:2] if patterns else PARTS[:3])
    wanted = lambda name: _wanted(name, baselines + peers, quick)
    steps = {step.name for step in STEPS if wanted(step.name)}
    known, to_freeze, in_zoo = [*module_cases(), *net_cases()], [], []
    zoo_batches, zoo_train_batch, zoo_train_threads = (1, 16), 0, 0
    if in_checkout:
        from .bench.frozen import choose_cases, frozen_cases

        known += frozen_cases()
        to_freeze = choose_cases(patterns, dtype) if frozen else []
        if zoo:
            from .bench import zoo as menagerie

            known += menagerie.zoo_cases()
            in_zoo = menagerie.zoo_cases(patterns)
            zoo_batches = menagerie.BATCHES if parts == ["zoo"] else zoo_batches
            zoo_train_batch = train_batch or (menagerie.QUICK_TRAIN_BATCH if quick else menagerie.TRAIN_BATCH)
            zoo_train_threads = max(thread_counts, default=menagerie.TRAIN_THREADS)
    _check_names(patterns, [case.name for case in known], "--case")
    _check_names(baselines + peers, [*BASELINES, *steps], "--baselines")
    chosen = [case for case in module_cases() if not patterns or any(p in case.name for p in patterns)]
    trained = [TrainModuleCase(case) for case in chosen] if "train_modules" in parts else []
    if quick and not patterns:
        chosen = chosen[:: max(1, len(chosen) // QUICK_CASES)][:QUICK_CASES]
    cases = chosen if "modules" in parts else []
    if "nets" in parts:
        cases = cases + [case for case in net_cases() if not patterns or any(p in case.name for p in patterns)]
    selection = session.Selection(
        cases=cases,
        baselines=[baseline for baseline in baselines_of("float32") if wanted(baseline.name)],
        trained=trained,
        steps=steps,
        to_freeze=to_freeze,
        zoo=in_zoo,
        zoo_train_batch=zoo_train_batch,
        zoo_train_threads=zoo_train_threads,
        train=TrainCase(side=train_side) if "train" in parts else None,
        train_batch=train_batch or 32,
        wanted=wanted,
        parts=parts,
        dtype=dtype,
        batches=batches or ((1,) if quick else zoo_batches),
        thread_counts=thread_counts or (1,),
        rounds=min(rounds, 3) if quick else rounds,
        min_seconds=0.005 if quick else 0.02,
        quick=quick,
        in_checkout=in_checkout,
    )
    if not cases and not trained and not to_freeze and not in_zoo and "train" not in parts:
        raise click.UsageError("nothing is left to run: see --case and the parts asked for")
    with _progress(len(selection)) as progress:
        told = lambda what: progress.update(0, description=what)
        report = session.run_benchmark(selection, told, lambda: progress.advance(0))
    if json_path != "-":
        reports.show(report, _console())
        if not in_checkout:
            click.echo("ONNX Runtime, OpenVINO, ncnn and ExecuTorch run from a checkout of the repository.", err=True)
    if json_path:
        reports.write_json(report, json_path)
    if plot_path:
        from .bench.plots import plot

        plot(report, plot_path)


def _wanted(name: str, patterns: tuple[str, ...], quick: bool) -> bool:
    """Targets always run. Compilation takes minutes, so a quick run compiles only where that is asked for."""
    if name in TARGETS:
        return True
    return any(pattern in name for pattern in patterns) if patterns else not (quick and "compile" in name)


def _check_names(patterns: tuple[str, ...], names: list[str], option: str) -> None:
    for pattern in patterns:
        if not any(pattern in name for name in names):
            raise click.BadParameter(f"{pattern!r} is in no name of {', '.join(names)}", param_hint=option)


def _installed(package: str, extra: str = "bench") -> None:
    try:
        machine.need(package, extra)
    except Unavailable as why:
        raise click.ClickException(str(why)) from why


@main.command()
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), default="demo.png", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Default: PyTorch's.")
@click.option("--quick", is_flag=True, help="Less of everything.")
def demo(output: Path, threads: int | None, quick: bool) -> None:
    """GhostNet plain and fused, on photographs and in training; a table and a picture."""
    for package in ("sklearn", "matplotlib", "PIL"):
        _installed(package, "demo")
    from .demo import run_demo

    try:
        run_demo(output=output, threads=threads, quick=quick)
    except ValueError as error:  # an output that no picture can be written to, a number of threads
        raise click.ClickException(str(error)) from error
