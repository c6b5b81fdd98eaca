"""A profile as a picture: how long each module takes in each way, and how long it must."""

from __future__ import annotations

from pathlib import Path

from ..bench.machine import need
from .report import WAYS, ModuleProfile, Profile

COLOURS = {"plain": "#8d99ae", "fused": "#e8a33d", "frozen": "#d1495b"}


def plot(profile: Profile, path: str | Path, top: int | None = None) -> None:
    """Bars for each module, and beside them for the whole net. The path's ending names the format.

    Args:
        top: show the modules only that take most time as plain PyTorch; None shows all.

    Raises:
        Unavailable: matplotlib is not installed.
        ValueError: matplotlib does not know the format.
    """
    need("matplotlib")
    from matplotlib.figure import Figure

    rows = profile.slowest(top)
    height = 1.5 + 0.36 * max(len(rows), 4)
    figure = Figure(figsize=(13, height), layout="constrained")
    modules, net = figure.subplots(1, 2, width_ratios=(3, 1))
    _bars(modules, rows, [row.name or "the net" for row in rows])
    modules.legend(loc="lower right", fontsize=8)
    modules.set_title("its modules (frozen: each as a program of its own)", loc="left", fontsize=10)
    _bars(net, [profile.net], [""])
    for index, (way, result) in enumerate(profile.net.ways.items()):
        if result.seconds is not None:
            text = f" {result.seconds * 1e3:.2f} ms, {result.share:.0%} of roof"
            net.annotate(f"{way}:{text}", (0, index * 0.28 - 0.28), fontsize=9, va="center")
    net.set_title("the net", loc="left", fontsize=10)
    plural = "s" if profile.threads > 1 else ""
    figure.suptitle(f"{profile.model}, {profile.input}, {profile.threads} thread{plural}", x=0.01, ha="left")
    versions = profile.machine["versions"]
    where = f"{profile.machine['cpu']}, {profile.machine['isa']}, torch {versions['torch']}"
    figure.supxlabel(where, fontsize=8, color="#555555", x=0.01, ha="left")
    figure.savefig(path, dpi=130)


def _bars(axes, rows: tuple[ModuleProfile, ...] | list[ModuleProfile], names: list[str]) -> None:
    thick = 0.28
    for index, way in enumerate(WAYS):
        timed = [(place, row.ways[way].seconds) for place, row in enumerate(rows) if row.ways[way].seconds is not None]
        places = [place + (index - 1) * thick for place, _ in timed]
        axes.barh(places, [seconds * 1e3 for _, seconds in timed], thick, color=COLOURS[way], label=way)
    for place, row in enumerate(rows):
        axes.vlines(row.roof * 1e3, place - 1.5 * thick, place + 1.5 * thick, color="black", linewidth=1.2,
                    label=None if place else "roof: the machine's limit")  # fmt: skip
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
