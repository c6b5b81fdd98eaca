"""Predict the time of the Triton kernels' launches at given layer shapes, without a device.

python -m benchmarks.static_model "train 16->24@112" "frozen 24->36@56"
python -m benchmarks.static_model "train 16->24@112" --kernel cheap_kernel --json before.json
python -m benchmarks.static_model "train 16->24@112" --kernel cheap_kernel --before before.json
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import click
from rich.console import Console
from rich.progress import track

from . import launches, measured, model

COLUMNS = (  # the head, the width, decimals, and where in a row the value is
    ("regs", 5, 0, lambda row: row["facts"]["registers"]),
    ("warps", 6, 0, lambda row: row["resident_warps"]),
    ("loop", 6, 0, lambda row: row["facts"]["loop"]["instructions"]),
    ("trips", 7, 0, lambda row: row["facts"]["iterations"]),
    ("/result", 8, 1, lambda row: row["per_result"]),
    ("waits", 6, 2, lambda row: row["facts"]["loop"]["phases"]),
    ("lead", 6, 2, lambda row: row["lead"]),
    ("bits", 5, 0, lambda row: row["narrowest"] or 0),
    ("div", 4, 0, lambda row: row["divisions"]),
    *((name, 8, 1, lambda row, name=name: row[name]) for name in ("issue", "bytes", "cache", "latency", "tail", "us")),
)


def row_of(case: str, label: str, recorded: launches.Recorded) -> dict:
    """What the table and the JSON show of a launch."""
    from . import build

    seen = build.see(recorded)
    found = model.predict(seen.facts)
    return {
        "case": case, "launch": label, "grid": recorded.grid, "us": round(found.time, 2),
        **{k: round(v, 2) for k, v in asdict(found).items() if k != "start"},
        "resident_warps": seen.facts.resident() * seen.facts.warps,
        **asdict(replace(seen, facts=None)), "facts": asdict(seen.facts),
    }  # fmt: skip


def head() -> str:
    return f"{'launch':32}" + "".join(f"{name:>{width}}" for name, width, *_ in COLUMNS)


def line(row: dict) -> str:
    values = "".join(f"{value(row):{width}.{decimals}f}" for _, width, decimals, value in COLUMNS)
    spilled = f"  {row['spilled']} BYTES SPILLED" if row["spilled"] else ""
    return f"{row['launch']:32}{values}{spilled}"


def whole(what: str, batch: int, to: Path | None) -> None:
    """Predict all launches of a training step, or of a call of a frozen net."""
    import torch
    import triton

    from ghost_ops.bench.machine import commit

    from . import step

    found = step.ghostnet(what, batch)
    bar = lambda items: track(items, "kernels", console=Console(stderr=True))
    row = {
        "commit": commit(), "torch": torch.__version__, "triton": triton.__version__, "net": "ghostnet_100",
        "what": what, "batch": batch, "device": "H200, predicted", **step.summary(found, bar),
    }  # fmt: skip
    for name, of in row["by_kernel"].items():
        click.echo(f"{name:32}{of['launches']:5} launches {of['different']:4} different {of['us'] / 1e3:8.3f} ms")
    click.echo(
        f"{'sum':32}{row['launches_of_ours']:5} launches {len(row['launches']):4} different {row['us'] / 1e3:8.3f} ms; "
        f"{row['kernels_compiled']} kernels compiled"
    )
    if to is not None:
        rows = row.pop("launches")
        text = json.dumps(row, indent=1).removesuffix("\n}") + ',\n "launches": [\n  '
        to.write_text(text + ",\n  ".join(map(json.dumps, rows)) + "\n ]\n}\n")


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog="Cases:\n\n\b\n" + launches.FORMS)
@click.argument("cases", nargs=-1)
@click.option("--write-budgets", is_flag=True, help="Writes budgets.json and cuda.json as kernels are now.")
@click.option("--step", type=click.Choice(("train", "frozen")), help="All launches of GhostNet-100, in place of cases.")
@click.option("--kernel", default="", help="Only kernels whose names contain this.")
@click.option("--batch", type=click.IntRange(1), default=launches.BATCH, show_default=True)
@click.option("--json", "to", type=click.Path(path_type=Path), help="Writes what was found there.")
@click.option("--before", type=click.Path(path_type=Path, exists=True), help="A file of --json to compare with.")
def main(
    cases: tuple[str, ...],
    write_budgets: bool,
    step: str | None,
    kernel: str,
    batch: int,
    to: Path | None,
    before: Path | None,
) -> None:
    """Predict the time of the launches of CASES on an H200."""
    if bool(cases) + bool(step) + write_budgets != 1:
        raise click.UsageError("expected cases, or --step, or --write-budgets")
    if write_budgets:
        from . import budgets, cuda

        if cuda.nvcc() is None:
            click.echo("nvcc was not found: cuda.json is as it was")
        else:
            cuda.FILE.write_text(json.dumps(cuda.measure(), indent=1) + "\n")
        new = budgets.write(budgets.load())
        budgets.FILE.write_text(json.dumps(new, indent=1) + "\n")
        return click.echo("\n".join(budgets.unreasoned(new)))
    if step:
        return whole(step, batch, to)
    old: dict[tuple[str, str], dict] = {}
    if before is not None:
        known = [row for row in json.loads(before.read_text()) if kernel in row["launch"]]
        old = {(row["case"], row["launch"]): row for row in known}
    rows = []
    for case in cases:
        try:
            found = launches.case(case, batch)
        except ValueError as why:
            raise click.UsageError(str(why)) from None
        click.echo(f"{case}, batch {batch}\n{head()}")
        was_total = sum(row["us"] for (of, _), row in old.items() if of == case)
        total = 0.0
        names = launches.labels(found)
        for label, one in zip(names, found):
            if kernel in one.name:
                rows.append(row_of(case, label, one))
                was = old.pop((case, label), None)
                total += rows[-1]["us"]
                known = measured.time_of(case, label) if batch == launches.BATCH else None
                rows[-1]["measured"] = known
                notes = [f"was {was['us']:.1f}" if was else "", f"measured {known} in 2026-11" if known else ""]
                click.echo("   ".join([line(rows[-1]), *filter(None, notes)]))
        for (of, _), row in old.items():
            if of == case:
                click.echo(line(row) + "   is gone")
        click.echo(
            f"{'sum':32}{total:{sum(width for _, width, *_ in COLUMNS)}.1f}"
            + (f"   was {was_total:.1f}" if before else "")
        )
    if to is not None:
        to.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
