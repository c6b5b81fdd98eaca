"""A run as a picture: how many times longer than ours each peer takes, and how near ours is to the machine's limit."""

from __future__ import annotations

from pathlib import Path

from .machine import need
from .peers import OURS
from .report import KINDS, LABELS
from .run import Report, Row

HIDDEN = ("ghost_ops_nchw",)


def plot(report: Report, path: str | Path) -> None:
    """One row of axes for each kind, batch and thread count; in what format, the path's ending says.

    Raises:
        Unavailable: matplotlib is not installed.
        ValueError: the report has nothing to show.
    """
    need("matplotlib")
    from matplotlib.figure import Figure

    groups: dict[tuple[str, int, int], list[Row]] = {}
    for row in report.rows:
        if row.speedup is not None:
            groups.setdefault((row.kind, row.batch, row.threads), []).append(row)
    if not groups:
        raise ValueError("plot: report: expected at least one case that ours has a time for, got none")
    figure = Figure(figsize=(13, 4.2 * len(groups)), layout="constrained")
    widths = {"width_ratios": [4, 1]}
    axes = figure.subplots(len(groups), 2, squeeze=False, gridspec_kw=widths)
    for (bars, shares), (key, rows) in zip(axes, groups.items()):
        kind, batch, threads = key
        bars.set_title(f"{KINDS[kind]}, batch {batch}, {threads} thread{'s' if threads > 1 else ''}", loc="left")
        _bars(bars, rows)
        _shares(shares, [row for row in rows if row.peer == OURS and row.share is not None])
    machine = report.machine
    where = f"{machine['cpu']}, {machine['isa']}, torch {machine['versions']['torch']}"
    figure.suptitle(where, fontsize=9, x=0.99, ha="right")
    figure.savefig(path, dpi=130)


def _bars(axes, rows: list[Row]) -> None:
    cases = list(dict.fromkeys(row.case for row in rows))
    names = [row.peer for row in rows if row.peer != OURS and row.peer not in HIDDEN]
    names = list(dict.fromkeys(names))
    width = 0.84 / max(len(names), 1)
    for index, name in enumerate(names):
        found = {row.case: row.speedup for row in rows if row.peer == name}
        places = [cases.index(case) - 0.42 + width * (index + 0.5) for case in found]
        axes.bar(places, list(found.values()), width, label=LABELS.get(name, name), color=f"C{index}")
    axes.axhline(1, color="black", linewidth=1)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}x")
    axes.set_ylabel("time / time of ghost_ops")
    tilt = {"rotation": 60, "ha": "right"} if len(cases) > 4 else {}
    axes.set_xticks(range(len(cases)), cases, **tilt)
    axes.set_xlim(-0.6, len(cases) - 0.4)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=7, ncols=min(len(names), 5), loc="upper left", bbox_to_anchor=(0, 1), framealpha=0.8)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.5), high * 1.8)  # room for the legend


def _shares(axes, rows: list[Row]) -> None:
    if not rows:
        axes.axis("off")
        return
    names = [row.case for row in rows]
    axes.barh(range(len(rows)), [100 * row.share for row in rows], color="0.5")
    axes.axvline(100, color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), names, fontsize=6)
    axes.invert_yaxis()
    axes.set_xlabel("ghost_ops: % of the machine's limit", fontsize=8)
