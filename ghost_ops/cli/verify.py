"""``ghost-ops verify``: every operator and every block against float64 on this machine."""

from __future__ import annotations

import importlib
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from .console import console, echo_json, progress
from .options import json_flag

if TYPE_CHECKING:
    from ..verify import Outcome


@click.command("verify")
@click.option(
    "--quick", is_flag=True, help="Two calls of each operator and one of each block, instead of twelve and four."
)
@click.option("--report", is_flag=True, help="Print the machine and the outcomes as Markdown, for an issue.")
@click.option("--import", "modules", multiple=True, metavar="MODULE", help="Module that registers blocks of your own.")
@json_flag
def command(quick: bool, report: bool, modules: tuple[str, ...], as_json: bool) -> None:
    """Compare every operator and every block, and eager PyTorch in the same dtype, with float64 on this machine.

    Blocks are compared as they are called in inference and in training, fused, and frozen. Exits with 1 where an error
    is more than twice that of eager and a few units in the last place, or where a block is not fused.

    \b
    Examples:
      ghost-ops verify --quick
      ghost-ops verify --report > issue.md
      ghost-ops verify --json > verified.json
    """
    from .. import verify as checks
    from . import surroundings

    if report and as_json:
        raise click.UsageError("--report and --json: expected one of them, got both")
    for module in modules:
        _import(module)
    with progress(checks.count_outcomes()) as steps:
        outcomes = checks.verify(2 if quick else 12, on_step=steps.begin)
    failed = [outcome for outcome in outcomes if not outcome.ok]
    if as_json:
        rows = [{**asdict(outcome), "ok": outcome.ok} for outcome in outcomes]
        echo_json({"machine": surroundings.describe(), "ok": not failed, "outcomes": rows})
    elif report:
        click.echo(_markdown(outcomes, surroundings.lines(surroundings.describe())))
    else:
        shown = console()
        shown.print(_table(outcomes))
        for outcome in failed:
            shown.print(f"{_name(outcome)}, {outcome.dtype}, {outcome.layout}: {outcome.what}", markup=False)
    raise SystemExit(1 if failed else 0)


def _import(module: str) -> None:
    if "" not in sys.path:
        sys.path.insert(0, "")  # the current directory, as for factories
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise click.ClickException(
            f"--import: expected a module that can be imported, got {module!r}: {error}"
        ) from None


def _name(outcome: Outcome) -> str:
    return f"{outcome.operator}: {outcome.example}" if outcome.example else outcome.operator


def _table(outcomes: list[Outcome]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        "operator or block", "dtype", "layout", "direction", "runs", "calls", "error", "eager's", "of allowed", ""
    )
    for o in outcomes:
        verdict = "[green]ok[/]" if o.ok else "[bold red]FAILED[/]"
        if not o.calls:
            verdict = "not compared"
        numbers = f"{o.error:.1e}", f"{o.eager_error:.1e}", f"{o.ratio:.0%}"
        table.add_row(escape(_name(o)), o.dtype, o.layout, o.direction, o.backend, str(o.calls), *numbers, verdict)
    return table


def _markdown(outcomes: list[Outcome], machine: list[tuple[str, str]]) -> str:
    """What failed in full, the rest in a line for each operator and block."""
    failed = [outcome for outcome in outcomes if not outcome.ok]
    text = [f"### ghost-ops verify: {len(outcomes) - len(failed)} of {len(outcomes)} within the bound", ""]
    if failed:
        text += ["| failed | dtype | layout | direction | runs | error | eager's | of allowed | result |",
                 "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
        text += [
            _row(_name(o), o.dtype, o.layout, o.direction, o.backend, f"{o.error:.1e}", f"{o.eager_error:.1e}",
                 f"{o.ratio:.0%}", o.what)
            for o in failed
        ]  # fmt: skip
        text.append("")
    text += ["| operator or block | runs | nearest to its bound |", "|---|---|---|"]
    for name in dict.fromkeys(map(_name, outcomes)):
        of_name = [o for o in outcomes if _name(o) == name]
        worst = max(of_name, key=lambda o: o.ratio)
        runs = ", ".join(sorted({o.backend for o in of_name if o.backend}))
        where = ", ".join(filter(None, (worst.dtype, worst.layout, worst.direction)))
        text.append(_row(name, runs, f"{worst.ratio:.0%}: {where}" if worst.calls else worst.what))
    text += ["", "| machine | |", "|---|---|", *(_row(*line) for line in machine)]
    return "\n".join(text)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
