"""What is told before the first step: pictures that do not open, a folder that cannot be written, missing packages."""

from __future__ import annotations

import importlib.util
import os
from multiprocessing.pool import ThreadPool
from pathlib import Path

import click
from rich.console import Console
from rich.progress import track
from torch.utils.data import Dataset

from .data import Folder, Unreadable, open_picture
from .parallel import World
from .record import Run

SHOWN = 5  # pictures that an error names


def check_packages(folder: Path | None, console: Console) -> None:
    """An error where the images cannot be read, a line where only the curves cannot be drawn."""
    module, package = ("sklearn", "scikit-learn") if folder is None else ("PIL", "pillow")
    if importlib.util.find_spec(module) is None:
        raise click.ClickException(f"{package}, which reads the images, is not installed: pip install {package}")
    if importlib.util.find_spec("matplotlib") is None:
        console.print("matplotlib is not installed: there will be no curves.png")


def check_pictures(sets: tuple[Dataset, ...], world: World, console: Console) -> None:
    """Every picture is decoded once; each process takes its share.

    Raises:
        ClickException: some cannot be, with the names of the first ones and why.
    """
    paths = [path for images in sets if isinstance(images, Folder) for path, _ in images.images]
    own = paths[world.rank :: world.size]
    with ThreadPool(os.cpu_count()) as pool:
        found = pool.imap(_why_unreadable, own, chunksize=16)
        bar = track(found, "looking at the pictures", len(own), console=console, transient=True)
        broken = [line for line in bar if line]
    broken = sorted(line for lines in world.gather(broken) for line in lines)
    if broken:
        more = f"; and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
        raise click.ClickException(
            f"expected pictures, {len(broken)} of {len(paths)} cannot be read: {'; '.join(broken[:SHOWN])}{more}"
        )


def _why_unreadable(path: Path) -> str:
    try:
        open_picture(path, quick=True).close()
    except Unreadable as error:
        return error.message
    return ""


def check_folder(run: Run, out: Path, world: World) -> None:
    """As many bytes as a checkpoint has are written to the folder, and removed.

    Raises:
        ClickException: the folder cannot be made or written, or its disk is full.
    """
    problem = ""
    if world.first:
        try:
            out.mkdir(parents=True, exist_ok=True)
            run.rehearse(out / "checkpoint.pt")
        except OSError as error:
            problem = f"{out} cannot be written: {error.strerror}"
    (problem, *_) = world.gather(problem)
    if problem:
        raise click.ClickException(problem)
