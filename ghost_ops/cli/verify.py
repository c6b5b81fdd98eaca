"""``ghost-ops verify``: every operator against float64 on this machine."""

from __future__ import annotations

from dataclasses import asdict

import click

from .console import console, echo_json, progress
from .options import json_flag


@click.command("verify")
@click.option("--quick", is_flag=True, help="Two calls of each kind instead of twelve.")
@json_flag
def command(quick: bool, as_json: bool) -> None:
    """Compare every operator, and eager PyTorch in the same dtype, with float64 on this machine.

    Exits with 1 where an error is more than twice that of eager and a few units in the last place.

    \b
    Examples:
      ghost-ops verify --quick
      ghost-ops verify --json > verified.json
    """
    from rich.table import Table

    from .. import verify as checks
    from ..bench import machine

    directions = 2 * len(checks.OPERATORS) - len(checks.FORWARD_ONLY)
    with progress(directions * len(checks.DTYPES) * len(checks.LAYOUTS)) as steps:
        outcomes = checks.verify(2 if quick else 12, on_step=steps.begin)
    failed = [outcome for outcome in outcomes if not outcome.ok]
    if as_json:
        rows = [{**asdict(outcome), "ok": outcome.ok} for outcome in outcomes]
        echo_json({"machine": machine.describe(), "ok": not failed, "outcomes": rows})
    else:
        table = Table(
            "operator", "dtype", "layout", "direction", "backend", "calls", "error", "eager's", "of allowed", ""
        )
        for o in outcomes:
            verdict = "[green]ok[/]" if o.ok else "[bold red]FAILED[/]"
            numbers = f"{o.error:.1e}", f"{o.eager_error:.1e}", f"{o.ratio:.0%}"
            table.add_row(o.operator, o.dtype, o.layout, o.direction, o.backend, str(o.calls), *numbers, verdict)
        shown = console()
        shown.print(table)
        for outcome in failed:
            shown.print(f"{outcome.operator}, {outcome.dtype}, {outcome.layout}: {outcome.what}", markup=False)
    raise SystemExit(1 if failed else 0)
