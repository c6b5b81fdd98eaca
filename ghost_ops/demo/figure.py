"""``demo.png``: images a second, the loss curves, and what training costs, in three panels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .digits import FUSED, PLAIN, Run
from .photos import FUSED_CL, FUSED_NCHW, ROUTES, Photos

OURS, DEEP, THEIRS, LIGHT = "#d1495b", "#8f2d3c", "#8d99ae", "#c3cad6"


def draw(photos: Photos, runs: dict[str, Run], output: Path, footnote: str) -> None:
    """Write the figure to ``output``, in the format of its suffix."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    speed, losses, cost = figure.subplots(1, 3, width_ratios=(1.5, 1.1, 0.8))
    _speed(speed, photos)
    _losses(losses, runs)
    _cost(cost, runs)
    for axes in (speed, losses, cost):
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(footnote, fontsize=8.5, color="#555555", x=0.01, ha="left")
    figure.savefig(output)


def _speed(axes, photos: Photos) -> None:
    """Images a second, one group of bars a batch size."""
    rates = {b: {route: b / t.median for route, t in timings.items()} for b, timings in photos.timings.items()}
    routes = [route for route in ROUTES if any(route in of_batch for of_batch in rates.values())]
    most = max(rate for of_batch in rates.values() for rate in of_batch.values())
    height = 0.8 / len(rates)
    for i, (batch, of_batch) in enumerate(rates.items()):
        for y, route in enumerate(routes):
            if route not in of_batch:
                continue
            colours = (DEEP, OURS) if route in (FUSED_NCHW, FUSED_CL) else (THEIRS, LIGHT)
            at = y + (i - (len(rates) - 1) / 2) * height
            axes.barh(at, of_batch[route], height * 0.92, color=colours[i % 2])
            axes.text(
                of_batch[route] + 0.012 * most, at, f"{of_batch[route]:.0f}  (batch {batch})", va="center", fontsize=9
            )
    axes.set_yticks(range(len(routes)), [route.replace(", ", "\n") for route in routes])
    axes.invert_yaxis()
    axes.set_xlim(0, most * 1.22)
    axes.set_xlabel("images a second (more is better)")
    axes.set_title("Inference: GhostNet-100 on photographs", fontsize=12)


def _losses(axes, runs: dict[str, Run]) -> None:
    styles = {
        PLAIN: {"color": THEIRS, "linewidth": 4, "alpha": 0.75},
        FUSED: {"color": OURS, "linewidth": 1.6},
    }
    for name, run in runs.items():
        label = f"{name}: {run.accuracy:.1%} right in the test set"
        axes.plot(np.arange(1, len(run.losses) + 1), run.losses, label=label, **styles[name])
    axes.set_yscale("log")
    axes.set_xlabel("training step")
    axes.set_ylabel("training loss")
    axes.legend(frameon=False, fontsize=9)
    axes.grid(alpha=0.25)
    axes.set_title("Training: same seed, same batches", fontsize=12)


def _cost(axes, runs: dict[str, Run]) -> None:
    """Time per epoch and saved memory, each in per cent of plain PyTorch's."""
    rows = {
        "time\nper epoch": [(runs[name].epoch_seconds, "{:.2f} s") for name in (PLAIN, FUSED)],
        "saved for\nbackward": [(runs[name].saved_bytes / 1e6, "{:.0f} MB") for name in (PLAIN, FUSED)],
    }
    highest = 1.0
    for x, values in enumerate(rows.values()):
        whole = values[0][0]
        for i, (value, unit) in enumerate(values):
            at, share = x + (i - 0.5) * 0.4, value / whole
            highest = max(highest, share)
            axes.bar(at, share, 0.37, color=(THEIRS, OURS)[i], label=(PLAIN, FUSED)[i] if x == 0 else None)
            axes.text(at, share + 0.015, unit.format(value), ha="center", fontsize=9)
    axes.set_xticks(range(len(rows)), list(rows))
    axes.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    axes.set_ylim(0, highest * 1.25)
    axes.legend(frameon=False, fontsize=9, loc="upper center", ncols=2)
    axes.set_title("Training: its cost (less is better)", fontsize=12)
