"""A run as tables for people and as JSON for programs."""

from __future__ import annotations

import json
import math
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from .baselines import FROZEN, FUSED
from .results import FAILED, NET, OK, OTHER_MODEL, WRONG, PartResult, Result, target_of
from .run import SCHEMA, Report
from .summary import Summary

KINDS = {
    "module": "Ghost modules",
    "net": "Whole nets",
    "frozen": "Frozen nets",
    "frozen_bfloat16": "Frozen nets, bfloat16",
    OTHER_MODEL: "Other nets beside the frozen one",
    "train": "Training step",
    "train_module": "Ghost modules, forward and backward",
    "zoo": "Other people's nets",
    "zoo_train": "Other people's nets, training step",
}


def to_json(report: Report) -> str:
    """Indented JSON, which has neither NaN nor infinity: they become null."""
    return json.dumps(finite(report.as_dict()), indent=1)


def finite(value: object) -> object:
    """The same with None in the place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(report: Report, path: str) -> None:
    """Write to a file, or to standard output where path is "-"."""
    if path == "-":
        print(to_json(report))
    else:
        Path(path).write_text(to_json(report) + "\n")


def read_json(path: str | Path) -> Report:
    """The report that ``write_json`` wrote, in this schema or the one before.

    Raises:
        ValueError: the file holds something else.
    """
    found = json.loads(Path(path).read_text())
    if not isinstance(found, dict) or found.get("schema") not in (1, SCHEMA):
        raise ValueError(f"read_json: {path}: expected a report of schema 1 or {SCHEMA}")
    rows = [_present(row) for row in found["rows"]] if found["schema"] == 1 else found["results"]
    results = [Result(**row) for row in rows]
    parts = [PartResult(**part) for part in found.get("parts", ())]
    return Report(found["machine"], found["settings"], found["limits"], results, parts)


def _present(row: dict[str, object]) -> dict[str, object]:
    """A row of schema 1 under the names of today."""
    row = {"baseline" if key == "peer" else key: value for key, value in row.items()}
    row["group"] = "target" if row["group"] == "ours" else row["group"]
    row["kind"] = OTHER_MODEL if row["kind"] == "rival" else row["kind"]
    return row


def render(report: Report) -> RenderableType:
    """Everything: the machine, a table for each kind, batch and thread count, the summary, what is missing."""
    groups: dict[tuple[str, int, int], list[Result]] = {}
    for row in report.results:
        groups.setdefault((row.kind, row.batch, row.threads), []).append(row)
    parts: list[RenderableType] = [Text(machine_line(report.machine)), *map(limits_line, report.limits)]
    for key, rows in groups.items():
        parts.append(_TABLES.get(key[0], _table)(key, rows))
    nets: dict[tuple[str, int, int, str], list[PartResult]] = {}
    for part in report.parts:
        nets.setdefault((part.case, part.batch, part.threads, part.dtype), []).append(part)
    parts += [_parts_table(rows) for rows in nets.values()]
    parts.append(_summary_table(report.summary(), labels_of(report.results)))
    parts += _notes(report.results)
    return Group(*parts)


def labels_of(results: list[Result]) -> dict[str, str]:
    """Labels of targets and baselines by name, in the order of the results."""
    return {result.baseline: result.label for result in results}


def machine_line(machine: dict) -> str:
    """The machine and the software of a run, for people."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    own = f"ghost_ops {machine['ghost_ops']}" + (f", commit {machine['commit']}" if machine["commit"] else "")
    where = f"{machine['cpu']} ({machine['architecture']}), {machine['cores']} cores, kernels: {machine['isa']}"
    return f"{where}\n{own}, {versions}, {machine['date']}"


def limits_line(limits: dict) -> Text:
    """What a machine can do, for people."""
    rates = ", ".join(f"{level} {rate / 1e9:.0f} GB/s" for level, rate in limits["bandwidth"].items())
    peak = f"{limits['flops'] / 1e9:.0f} GFLOP/s ({limits['source']})"
    if limits.get("bfloat16_flops", 0.0) > limits["flops"]:
        peak += f", {limits['bfloat16_flops'] / 1e9:.0f} in bfloat16 (torch.mm)"
    return Text(f"{limits['threads']} threads: {peak}, {rates}")


def title(kind: str, batch: int, threads: int) -> str:
    return f"{KINDS.get(kind, kind)}, batch {batch}, {threads} thread{'s' if threads > 1 else ''}"


def _table(key: tuple[str, int, int], rows: list[Result]) -> Table:
    """A line a case: the target's share of the roof, every time, and how many times the target's it is.

    ``target_of`` names the target of a kind; for other nets it is the frozen net that was timed beside them.
    """
    base, labels = target_of(key[0]), labels_of(rows)
    cases = list(dict.fromkeys(row.case for row in rows))
    by_key = {(row.case, row.baseline): row for row in rows}
    whose = "the first frozen net's" if key[0] == OTHER_MODEL else labels.get(base, base) + "'s"
    table = Table(title=f"{title(*key)}: ms (and how many times {whose})")
    table.add_column("case", no_wrap=True)
    shares = any(row.share for row in rows) and key[0] != OTHER_MODEL
    if shares:
        table.caption = f"roof: share of the machine's limit that {labels.get(base, base)} reaches"
        table.add_column("roof", justify="right")
    for label in labels.values():
        table.add_column(label, justify="right", overflow="fold")
    for case in cases:
        target = by_key.get((case, base))
        share = [] if not shares else [f"{target.share:.0%}" if target and target.share else ""]
        count = next(row.count for row in rows if row.case == case)
        label = f"{case} x{count}" if count > 1 else case
        table.add_row(label, *share, *(_cell(by_key.get((case, name))) for name in labels))
    return table


def _cell(row: Result | None) -> Text:
    if row is None:
        return Text("")
    if row.status != OK:
        return Text(row.status, style="bold red" if row.status in (WRONG, FAILED) else "dim")
    time = f"{row.seconds * 1e3:.3g}"
    agreed = "" if row.agreement is None else f" (top-1 {row.agreement:.1%})"
    if row.baseline == target_of(row.kind) or row.speedup is None:
        return Text(f"{time} ±{row.spread / row.seconds / 2:.0%}{agreed}")
    return Text.assemble(time, " ", factor(row.speedup), agreed)


def factor(speedup: float) -> Text:
    """How many times longer than the target: green where the target wins, red where it loses."""
    return Text(f"{speedup:.2f}x", style="green" if speedup > 1 else "bold red")


def _parts_table(rows: list[PartResult]) -> Table:
    """A line a part, their sum, and the net in one call."""
    first = rows[0]
    name = f"{first.case}, {first.dtype}, frozen"
    table = Table(title=f"The parts of {title(name, first.batch, first.threads)}")
    table.add_column("part", no_wrap=True)
    for column in ("ms", "MFLOP", "MB moved", "roof, ms", "of roof", "of peak"):
        table.add_column(column, justify="right")
    for row in rows:
        if row.part == NET:
            timed = [part for part in rows if part.part != NET and part.seconds is not None]
            table.add_section()
            table.add_row("sum of the parts", *_sums(timed))
        table.add_row(row.part, *_part_cells(row))
    return table


def _sums(rows: list[PartResult]) -> list[str]:
    seconds, flops, size, roof = (
        sum(getattr(row, name) for row in rows) for name in ("seconds", "flops", "bytes", "roof")
    )
    share = f"{roof / seconds:.0%}" if rows else ""
    return [f"{seconds * 1e3:.3f}", f"{flops / 1e6:.2f}", f"{size / 1e6:.2f}", f"{roof * 1e3:.3f}", share, ""]


def _part_cells(row: PartResult) -> list[str | Text]:
    if row.seconds is None:
        return [Text(f"{row.status}: {row.reason}", style="bold red" if row.status == WRONG else "dim")]
    time, work = f"{row.seconds * 1e3:.3f} ±{row.spread / row.seconds / 2:.0%}", f"{row.flops / 1e6:.2f}"
    return [time, work, f"{row.bytes / 1e6:.2f}", f"{row.roof * 1e3:.3f}", f"{row.share:.0%}", f"{row.peak_share:.0%}"]


def _training_table(key: tuple[str, int, int], rows: list[Result]) -> Table:
    columns = "", "ms a step", "times ours", "saved for the backward", "peak memory", "error"
    table = Table(*columns, title=title(*key))
    saved, resident = (
        max((getattr(row, n) or 0 for row in rows), default=0) for n in ("saved_bytes", "resident_bytes")
    )
    for row in rows:
        if row.status != OK:
            table.add_row(row.label, _cell(row))
            continue
        time = f"{row.seconds * 1e3:.0f} ±{row.spread / row.seconds / 2:.0%}"
        sizes = _size(row.saved_bytes, saved), _size(row.resident_bytes, resident)
        times = "" if row.baseline == target_of(row.kind) or row.speedup is None else factor(row.speedup)
        table.add_row(row.label, time, times, *sizes, f"{row.error:.1e}")
    return table


def _zoo_table(key: tuple[str, int, int], rows: list[Result]) -> Table:
    """A line a net: every time, and how many times that of the fused and of the frozen net it is."""
    others = {row.baseline: row.label for row in rows if row.group != "target"}
    table = Table(title=f"{title(*key)}: ms (and how many times ours: fused, frozen)")
    table.add_column("net", no_wrap=True)
    for label in ("ghost_ops.fuse", "ghost_ops.freeze", *others.values()):
        table.add_column(label, justify="right", overflow="fold")
    table.add_column("how much runs in ours", overflow="fold")
    for case, by_name in _by_case(rows).items():
        targets = [by_name.get(name) for name in (FUSED, FROZEN)]
        notes = "; ".join(row.note for row in targets if row is not None and row.note)
        table.add_row(case, *map(_zoo_cell, targets), *(_zoo_cell(by_name.get(name)) for name in others), notes)
    return table


def _zoo_cell(row: Result | None) -> Text:
    if row is None or row.status != OK:
        return _cell(row)
    ratios = [factor(row.speedups[name]) for name in (FUSED, FROZEN) if name in row.speedups]
    if row.group == "target":
        return Text(f"{row.seconds * 1e3:.3g} ±{row.spread / row.seconds / 2:.0%}")
    return Text(", ").join([Text(f"{row.seconds * 1e3:.3g}"), *ratios])


def _zoo_training_table(key: tuple[str, int, int], rows: list[Result]) -> Table:
    """A line a net: both steps, and what autograd keeps of each."""
    columns = "net", "eager, ms", "ghost_ops, ms", "times ours", "eager saves, MiB", "ghost_ops saves, MiB", "error"
    table = Table(title=title(*key))
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=not index)
    for case, by_name in _by_case(rows).items():
        eager, ours = by_name.get("eager"), by_name.get(FUSED)
        if eager is None or ours is None or not (eager.status == ours.status == OK):
            cells = [Text("") if row is None or row.status == OK else _cell(row) for row in (eager, ours)]
            table.add_row(case, *cells)
            continue
        times = f"{eager.seconds * 1e3:.0f}", f"{ours.seconds * 1e3:.0f}", factor(eager.seconds / ours.seconds)
        saved = (f"{row.saved_bytes / 2**20:.0f}" for row in (eager, ours))
        table.add_row(case, *times, *saved, f"{ours.error:.1e}")
    return table


def _by_case(rows: list[Result]) -> dict[str, dict[str, Result]]:
    found: dict[str, dict[str, Result]] = {}
    for row in rows:
        found.setdefault(row.case, {})[row.baseline] = row
    return found


_TABLES = {"train": _training_table, "zoo": _zoo_table, "zoo_train": _zoo_training_table}


def _size(size: int | None, largest: int) -> str:
    return "" if size is None else f"{size / 2**20:.0f} MiB ({size / largest:.0%})"


def _summary_table(lines: list[Summary], labels: dict[str, str]) -> RenderableType:
    if not lines:
        return Text("")
    columns = "", "batch", "threads", "target", "against", "geometric mean", "worst", "slower in"
    table = Table(*columns, title="Ours against")
    for line in lines:
        against = labels.get(line.baseline, line.baseline)
        worst = Text.assemble(factor(line.worst), f" ({line.worst_case})" if line.cases > 1 else "")
        losses = Text(f"{line.losses} of {line.cases}", style="bold red" if line.losses else "")
        where = KINDS[line.kind], str(line.batch), str(line.threads), labels.get(line.target, line.target)
        table.add_row(*where, against, factor(line.mean), worst, losses)
    return table


def _notes(rows: list[Result]) -> list[RenderableType]:
    """The reasons why something has no time, each once."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row.status != OK:
            reasons.setdefault((row.label, row.status, row.reason), []).append(row.case)
    return [
        Text(f"{label}: {status}{'' if len(set(cases)) > 1 else f' on {cases[0]}'}: {reason}", style="yellow")
        for (label, status, reason), cases in reasons.items()
    ]


def show(report: Report, console: Console) -> None:
    console.print(render(report))
