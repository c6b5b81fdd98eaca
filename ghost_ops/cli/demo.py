"""``ghost-ops demo``: what ``make demo`` shows."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console

from .console import echo_json, need, one_line
from .options import json_flag


@click.command("demo")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), default="demo.png", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Default: PyTorch's.")
@click.option("--quick", is_flag=True, help="Less of everything.")
@json_flag
def command(output: Path, threads: int | None, quick: bool, as_json: bool) -> None:
    """GhostNet plain and fused, on photographs and in training; a table and a picture.

    \b
    Examples:
      ghost-ops demo --quick
      ghost-ops demo --output ghostnet.png --threads 2
    """
    for package in ("sklearn", "matplotlib", "PIL"):
        need(package, "demo")
    from ..demo import run_demo

    aside = {"console": Console(stderr=True)} if as_json else {}  # standard output stays for the JSON
    try:
        found = run_demo(output=output, threads=threads, quick=quick, **aside)
    except ValueError as error:  # an output that no picture can be written to, a number of threads
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"{output} cannot be written: {one_line(error)}") from error
    if as_json:
        inference = {
            str(batch): {route: timing.median for route, timing in timings.items()}
            for batch, timings in found.photos.timings.items()
        }
        training = {name: asdict(run) for name, run in found.digits.items()}
        echo_json({"output": str(found.output), "inference_seconds": inference, "training": training})
