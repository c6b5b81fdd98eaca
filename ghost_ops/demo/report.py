"""The demo's results as rich tables and sentences: losses are shown like wins."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..bench.timing import ratio
from .digits import FUSED as FUSED_RUN
from .digits import PLAIN, Run
from .photos import COMPILED, EAGER, FUSED_CL, ROUTES, Agreement, Photos


def times(speed: float) -> str:
    """A speed relative to another as a table says it: ``2.31x faster``, ``1.20x slower``, ``as fast`` within 2 %."""
    if 1 / 1.02 < speed < 1.02:
        return "as fast"
    return f"{speed:.2f}x faster" if speed > 1 else f"{1 / speed:.2f}x slower"


def _coloured(speed: float) -> Text:
    return Text(times(speed), style="green" if speed >= 1.02 else "red" if speed <= 1 / 1.02 else "")


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}" if seconds < 0.1 else f"{seconds * 1e3:.1f}"


def agreement_line(found: Agreement) -> str:
    return (
        f"Logits of {found.images} crops: the largest difference is {found.difference:.1e} of the largest logit. "
        f"Against float64, eager is off by {found.plain_error:.1e} and ghost_ops by {found.fused_error:.1e}. "
        f"Same first class for {found.top1:.0%} of the images, same first five for {found.top5:.0%}."
    )


def photos_table(photos: Photos) -> Table:
    table = Table(title="GhostNet-100 on photographs: 224 x 224, float32, inference", title_justify="left")
    table.add_column("batch", justify="right", no_wrap=True)
    table.add_column("how they run", no_wrap=True)
    table.add_column("ms", justify="right", no_wrap=True)
    table.add_column("against\neager NCHW", justify="right", no_wrap=True)
    table.add_column("the last\nrow is", justify="right", no_wrap=True)
    for batch, timings in photos.timings.items():
        for route in ROUTES:
            mine, cells = timings.get(route), ["-", "", ""]
            if mine is not None:
                cells = [_milliseconds(mine.median)]
                cells.append("" if route == EAGER else _coloured(ratio(timings[EAGER], mine)))
                cells.append("" if route == FUSED_CL else _coloured(ratio(mine, timings[FUSED_CL])))
            table.add_row(str(batch) if route == ROUTES[0] else "", route, *cells)
        table.add_section()
    return table


def photos_notes(photos: Photos) -> list[str]:
    """What the table leaves open."""
    notes = [f"{route}, batch {batch}: {why}." for (batch, route), why in photos.missing.items()]
    if any(COMPILED in timings for timings in photos.timings.values()):
        notes.append(f"torch.compile took {photos.compile_seconds:.0f} s to compile before its first result.")
    return notes


def digits_table(runs: dict[str, Run]) -> Table:
    steps = len(runs[PLAIN].losses)
    table = Table(title=f"A small GhostNet learns handwritten digits: {steps} steps, float32", title_justify="left")
    for column in ("", PLAIN, FUSED_RUN, ""):
        table.add_column(column, justify="right" if column else "left")
    plain, fused = runs[PLAIN], runs[FUSED_RUN]
    speed = plain.epoch_seconds / fused.epoch_seconds
    share = fused.saved_bytes / plain.saved_bytes
    table.add_row("test accuracy", f"{plain.accuracy:.1%}", f"{fused.accuracy:.1%}")
    table.add_row("loss of the first step", f"{plain.losses[0]:.6f}", f"{fused.losses[0]:.6f}")
    table.add_row("loss of the last epoch", f"{plain.last_loss:.6f}", f"{fused.last_loss:.6f}")
    table.add_row("gradient error", f"{plain.gradient_error:.1e}", f"{fused.gradient_error:.1e}", "against float64")
    table.add_row("time per epoch, s", f"{plain.epoch_seconds:.2f}", f"{fused.epoch_seconds:.2f}", _coloured(speed))
    table.add_row(
        "saved for backward, MB",
        f"{plain.saved_bytes / 1e6:.1f}",
        f"{fused.saved_bytes / 1e6:.1f}",
        Text(f"{share:.0%} of it", style="green" if share <= 0.98 else "red" if share >= 1.02 else ""),
    )
    return table


def show(console: Console, photos: Photos, runs: dict[str, Run]) -> None:
    console.print()
    console.print(photos_table(photos))
    console.print(agreement_line(photos.agreement))
    for note in photos_notes(photos):
        console.print(note, style="dim")
    console.print()
    console.print(digits_table(runs))
    console.print(
        "Same seed, same batches. Nearly all of either gradient's error against float64 stems from values that "
        "rounding moves across a ReLU's zero; by such differences the two losses drift apart.",
        style="dim",
    )
