"""What ``ghost-ops demo`` shows: GhostNet-100 on photographs, and a small GhostNet that learns digits."""

from __future__ import annotations

import importlib.util
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from ..backends import native
from ..bench.machine import cpu_model
from ..bench.timing import torch_threads
from . import digits, figure, photos, report

__all__ = ["Result", "run_demo"]

_FORMATS = (".png", ".pdf", ".svg")
_NEEDS = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "PIL": "pillow"}


@dataclass(frozen=True)
class Result:
    """What was measured, and the figure that was written."""

    photos: photos.Photos
    digits: dict[str, digits.Run]
    output: Path


def run_demo(
    output: str | os.PathLike = "demo.png",
    threads: int | None = None,
    quick: bool = False,
    console: Console | None = None,
) -> Result:
    """Run GhostNet-100 and train a small GhostNet, plain and fused, on real data; print a table, write a figure.

    Args:
        output: path of the figure, a .png, .pdf or .svg; its folder is created where it is missing.
        threads: number of PyTorch's threads during the demo; by default it stays as it is.
        quick: seconds instead of minutes: few repetitions, small maps, no torch.compile.
        console: where to print; standard output by default.

    Raises:
        ImportError: scikit-learn, matplotlib or pillow is missing; the message says what to install.
        ValueError: output has another format, or threads is below 1.
        TypeError: threads is not an int.
    """
    output = _checked_output(output)
    _check_threads(threads)
    _check_packages()
    console = console or Console()
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[]), torch_threads(threads or torch.get_num_threads()):
        footnote = _machine()
        console.print(footnote)
        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
        with Progress(*columns, console=console) as progress:
            inference = photos.compare(quick, progress)
            training = digits.compare(quick, progress)
    report.show(console, inference, training)
    figure.draw(inference, training, output, footnote)
    console.print(f"\nWrote {output} after {time.perf_counter() - start:.0f} s.")
    return Result(inference, training, output)


def _checked_output(output: str | os.PathLike) -> Path:
    """The path, checked before minutes of work rather than after them."""
    path = Path(output)
    if path.suffix.lower() not in _FORMATS or path.is_dir():
        raise ValueError(f"demo: output: expected a file ending in {', '.join(_FORMATS)}, got {str(path)!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"demo: output: expected a file that can be written, got {str(path)!r}")
    return path


def _check_threads(threads: int | None) -> None:
    if threads is None:
        return
    if isinstance(threads, bool) or not isinstance(threads, int):
        raise TypeError(f"demo: threads: expected a positive int or None, got {threads!r}")
    if threads < 1:
        raise ValueError(f"demo: threads: expected a positive int or None, got {threads}")


def _check_packages() -> None:
    missing = [name for module, name in _NEEDS.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ImportError(f'the demo needs {", ".join(missing)}: pip install "ghost-ops[demo]"')


def _machine() -> str:
    """One line that says what runs on what."""
    kernels = f"{native.isa()} kernels" if native.available() else f"its reference backend, since {native.reason()}"
    threads = torch.get_num_threads()
    return (
        f"{cpu_model()}, {threads} thread{'s' * (threads > 1)}, PyTorch {torch.__version__}; "
        f"ghost_ops runs on {kernels}. All ways are timed in turns in one process; medians."
    )
