"""``ghost-ops bench``: ghost_ops and its baselines side by side."""

from __future__ import annotations

import click

from .console import console, failing, need, progress
from .outputs import check_folder

QUICK_CASES = 3
PARTS = ("modules", "nets", "train", "frozen", "train_modules", "zoo")


@click.command("bench")
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
def command(
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
    """Time ghost_ops and its baselines side by side, after comparing each result with float64.

    \b
    Examples:
      ghost-ops bench --quick
      ghost-ops bench --nets --batch 1 --threads 2 --json nets.json --plot nets.png
      ghost-ops bench --frozen --dtype bfloat16
    """
    from .. import bench as benchmark
    from ..bench import report as reports
    from ..bench import session
    from ..bench.baselines import BASELINES, baselines_of
    from ..bench.cases import module_cases, net_cases
    from ..bench.training import STEPS, TrainCase, TrainModuleCase

    in_checkout = benchmark.extend()
    if not in_checkout and (frozen or zoo or plot_path):
        option = "--frozen" if frozen else "--zoo" if zoo else "--plot"
        raise click.ClickException(f"{option} needs a checkout of the repository: its code is in benchmarks/harness")
    if plot_path:
        need("matplotlib")
    for path in (json_path, plot_path):
        if path and path != "-":
            check_folder(path)
    if dtype != "float32" and not frozen:
        raise click.UsageError("--dtype is for --frozen: the other parts run in float32")
    parts = [part for part, on in zip(PARTS, (modules, nets, train, frozen, train_modules, zoo)) if on]
    parts = parts or list(PARTS[:2] if patterns else PARTS[:3])
    wanted = lambda name: _wanted(name, baselines + peers, quick)
    steps = {step.name for step in STEPS if wanted(step.name)}
    known, to_freeze, in_zoo = [*module_cases(), *net_cases()], [], []
    zoo_batches, zoo_train_batch, zoo_train_threads = (1, 16), 0, 0
    if in_checkout:
        from ..bench.frozen import choose_cases, frozen_cases

        known += frozen_cases()
        to_freeze = choose_cases(patterns, dtype) if frozen else []
        if zoo:
            from ..bench import zoo as menagerie

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
    with progress(len(selection)) as steps:
        report = session.run_benchmark(selection, steps.tell, steps.advance)
    if json_path != "-":
        reports.show(report, console())
        if not in_checkout:
            click.echo("ONNX Runtime, OpenVINO, ncnn and ExecuTorch run from a checkout of the repository.", err=True)
    if json_path:
        with failing(f"{json_path} cannot be written", OSError):
            reports.write_json(report, json_path)
    if plot_path:
        from ..bench.plots import plot

        with failing(f"{plot_path} cannot be written", (OSError, ValueError)):
            plot(report, plot_path)


def _wanted(name: str, patterns: tuple[str, ...], quick: bool) -> bool:
    """Targets always run. Compilation takes minutes, so a quick run compiles only where that is asked for."""
    from ..bench.baselines import TARGETS

    if name in TARGETS:
        return True
    return any(pattern in name for pattern in patterns) if patterns else not (quick and "compile" in name)


def _check_names(patterns: tuple[str, ...], names: list[str], option: str) -> None:
    for pattern in patterns:
        if not any(pattern in name for name in names):
            raise click.BadParameter(f"{pattern!r} is in no name of {', '.join(names)}", param_hint=option)
