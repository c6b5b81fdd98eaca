"""A run as a picture: how many times longer than the target each baseline takes, and the target's share of the roof."""

from __future__ import annotations

from pathlib import Path

from .machine import need
from .report import labels_of, title
from .results import NET, OTHER_MODEL, PartResult, Result, target_of
from .run import Report

HIDDEN = ("ghost_ops_nchw", "frozen_nchw")


def plot(report: Report, path: str | Path) -> None:
    """One row of axes for each kind, batch and thread count, or frozen net. The path's ending names the format.

    Raises:
        Unavailable: matplotlib is not installed.
        ValueError: the report has nothing to show.
    """
    need("matplotlib")
    from matplotlib.figure import Figure

    groups: dict[tuple, list[Result]] = {}
    for row in report.results:
        if row.speedup is not None and row.kind != OTHER_MODEL:
            net = (row.case,) if row.kind.startswith("frozen") else ()
            groups.setdefault((row.kind, row.batch, row.threads, *net), []).append(row)
    if not groups:
        raise ValueError("plot: report: expected at least one case with a time of its target, got none")
    figure = Figure(figsize=(13, 4.2 * len(groups)), layout="constrained")
    for part, (key, rows) in zip(figure.subfigures(len(groups), 1, squeeze=False)[:, 0], groups.items()):
        kind, batch, threads, *net = key
        left, right = part.subplots(1, 2, gridspec_kw={"width_ratios": [2, 1] if net else [4, 1]})
        left.set_title(": ".join([title(kind, batch, threads), *net]), loc="left")
        if net:
            beside = [
                row for row in report.results if (row.kind, row.batch, row.threads) == (OTHER_MODEL, batch, threads)
            ]
            first = key == next(k for k in groups if k[:3] == key[:3])
            parts = [p for p in report.parts if (p.batch, p.threads, p.case) == key[1:]]
            _parts(left, [p for p in parts if p.dtype == _dtype_of(rows)])
            _ratios(right, rows, [row for row in beside if first and row.speedup is not None])
        else:
            _bars(left, rows)
            _shares(right, [row for row in rows if row.baseline == target_of(kind) and row.share is not None])
    machine = report.machine
    where = f"{machine['cpu']}, {machine['isa']}, torch {machine['versions']['torch']}"
    figure.suptitle(where, fontsize=9, x=0.99, ha="right")
    figure.savefig(path, dpi=130)


def _bars(axes, rows: list[Result]) -> None:
    import matplotlib

    base, labels = target_of(rows[0].kind), labels_of(rows)
    cases = list(dict.fromkeys(row.case for row in rows))
    names = [row.baseline for row in rows if row.baseline != base and row.baseline not in HIDDEN]
    names = list(dict.fromkeys(names))
    width = 0.84 / max(len(names), 1)
    colours = matplotlib.colormaps["tab20"].colors
    columns = max(1, min(len(names), 5))
    for index, name in enumerate(names):
        found = {row.case: row.speedup for row in rows if row.baseline == name}
        places = [cases.index(case) - 0.42 + width * (index + 0.5) for case in found]
        axes.bar(places, list(found.values()), width, label=labels[name], color=colours[index % 20])
    axes.axhline(1, color="black", linewidth=1)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}x")
    axes.set_ylabel(f"time / time of {labels.get(base, base)}")
    tilt = {"rotation": 60, "ha": "right"} if len(cases) > 4 else {}
    axes.set_xticks(range(len(cases)), cases, **tilt)
    axes.set_xlim(-0.6, len(cases) - 0.4)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=7, ncols=columns, loc="upper left", bbox_to_anchor=(0, 1), framealpha=0.8)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.5), high * 1.4 ** -(-len(names) // columns))  # room for the legend


def _shares(axes, rows: list[Result]) -> None:
    if not rows:
        axes.axis("off")
        return
    names = [row.case for row in rows]
    axes.barh(range(len(rows)), [100 * row.share for row in rows], color="0.5")
    axes.axvline(100, color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), names, fontsize=6)
    axes.invert_yaxis()
    axes.set_xlabel(f"{rows[0].label}: % of the machine's limit", fontsize=8)


def _dtype_of(rows: list[Result]) -> str:
    return next(row.dtype for row in rows if row.baseline == target_of(row.kind))


def _parts(axes, parts: list[PartResult]) -> None:
    """The time of each part of a frozen net, and within it the least that it could be."""
    timed = [part for part in parts if part.seconds is not None and part.part != NET]
    if not timed:
        axes.axis("off")
        return
    places = range(len(timed))
    axes.bar(places, [part.seconds * 1e3 for part in timed], 0.8, color="C0", alpha=0.55, label="time")
    axes.bar(places, [part.roof * 1e3 for part in timed], 0.8, color="C0", label="roof: the machine's limit")
    for place, part in zip(places, timed):
        axes.annotate(
            f"{part.share:.0%}", (place, max(part.seconds, part.roof) * 1e3), (0, 2), textcoords="offset points",
            ha="center", fontsize=7,
        )  # fmt: skip
    axes.set_xticks(places, [part.part for part in timed], rotation=60, ha="right", fontsize=8)
    axes.set_ylabel("ms")
    axes.margins(x=0.01, y=0.4)  # room for the legend
    axes.grid(axis="y", alpha=0.3)
    whole = next((part for part in parts if part.part == NET and part.seconds is not None), None)
    net = None
    if whole is not None:
        net = f"the net: {whole.seconds * 1e3:.2f} ms, {whole.share:.0%} of roof, {whole.peak_share:.0%} of peak"
    axes.legend(title=net, title_fontsize=8, fontsize=8, ncols=2, loc="upper right")


def _ratios(axes, rows: list[Result], others: list[Result]) -> None:
    """The time of each engine relative to the frozen net's, and that of the other nets, each in its fastest engine."""
    base = target_of(rows[0].kind)
    bars = [(row.label, row.speedup, "C1") for row in rows if row.baseline != base]
    for net in dict.fromkeys(row.case for row in others):
        fastest = min((row for row in others if row.case == net), key=lambda row: row.seconds)
        bars.append((f"{net},\n{fastest.label}", fastest.speedup, "C2"))
    white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    places, ratios = range(len(bars)), [ratio for _, ratio, _ in bars]
    axes.barh(places, ratios, 0.7, color=[colour for *_, colour in bars])
    for place, ratio in zip(places, ratios):
        axes.annotate(
            f"{ratio:.2f}x", (ratio, place), (4, 0), textcoords="offset points", va="center", fontsize=7, bbox=white
        )
    axes.axvline(1, color="black", linewidth=1, zorder=0.5)
    axes.set_yticks(places, [name for name, *_ in bars], fontsize=7)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(f"time / time of {labels_of(rows).get(base, base)}", fontsize=8)
