"""The check on a CUDA device: what is right, how fast it is and where the time goes, within a few minutes.

The parts run in order of worth, each until its deadline, in processes of their own: one that hangs or crashes is ended
and noted, and the next one runs. The report, ``<out>/<device>-<date>.json``, is written after every step, so that a run
that is cut off tells what it has found. Exits with 0 only where nothing was wrong and every part that compares results
has ended well.

    python benchmarks/gpu_check.py [--minutes 8] [--part training] [--cache kernels.tar.xz] [--dry-run]

``--dry-run`` runs every part once on the CPU at a tiny size, to see that it works: it measures nothing worth reading.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import click
import kernel_cache
from gpu_check_parts.runner import OK, SKIPPED, WRONG, Failed, Part, Record, Worker, run_parts
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
MINUTES = 8.0
PARTS = (  # shares in seconds; together almost 8 minutes, of which starting takes its part
    Part("kernels", "gpu_check_parts.kernels:kernels", 90),
    Part("compiler", "gpu_check_parts.speed:warm_compiler", 0, beside=True),
    Part("operators", "gpu_check_parts.gradients:operators", 50, decides=True),
    Part("bottlenecks", "gpu_check_parts.gradients:bottlenecks", 35, decides=True),
    Part("nets", "gpu_check_parts.gradients:nets", 35, decides=True),
    Part("training", "gpu_check_parts.speed:training", 90, alone=True),
    Part("launches", "gpu_check_parts.launches:launches", 20),
    Part("host", "gpu_check_parts.host:host", 10),
    Part("inference", "gpu_check_parts.speed:inference", 55),
    Part("tests", "gpu_check_parts.device_tests:tests", 65, decides=True),
    Part("sanitizer", "gpu_check_parts.device_tests:sanitizer", 20, decides=True),
)
DESCRIBING = Part("machine", "gpu_check_parts.machine:describe", 60)


def path_of(out: Path, device: str) -> Path:
    """A new file, named after device and day."""
    name = re.sub(r"[^a-z0-9]+", "-", device.lower().removeprefix("nvidia ")).strip("-")
    stem = f"{name}-{datetime.now(timezone.utc):%Y-%m-%d}"
    number = next(n for n in range(1, 10**6) if not (out / _numbered(stem, n)).exists())
    return out / _numbered(stem, number)


def _numbered(stem: str, number: int) -> str:
    return f"{stem}.json" if number == 1 else f"{stem}-{number}.json"


def check(
    parts: Sequence[Part], settings: dict, out: Path, minutes: float = MINUTES, console: Console | None = None
) -> Record:
    """Runs the parts and returns the report, which is on disk.

    Raises:
        click.ClickException: the machine has no CUDA device, and this is no dry run.
    """
    sys.path[:] = dict.fromkeys([str(ROOT), str(ROOT / "benchmarks"), *sys.path])  # the workers' too
    console, end = console or Console(), time.monotonic() + 60 * minutes
    worker = Worker(settings)
    try:
        machine = worker.ask(DESCRIBING)
    except Failed as why:
        worker.end()
        raise click.ClickException(str(why)) from None
    head = {"schema": 1, "dry_run": settings["dry"], "minutes": minutes, "machine": machine}
    record = Record(path_of(out, machine["gpu"]), head, parts)
    console.print(f"{machine['gpu']}, torch {machine['versions']['torch']}: {record.path}", highlight=False)
    tell = lambda part, left: console.print(f"{part.name}, at most {left:.0f} s")
    run_parts(parts, settings, record, end, tell, worker)
    ends = {part.name: record.status(part.name) for part in parts}
    record.data["ok"] = WRONG not in ends.values() and all(
        ends[part.name] in (OK, SKIPPED) for part in parts if part.decides
    )
    record.write()
    return record


@contextmanager
def triton_cache(cache: Path | None) -> Iterator[None]:
    """Within the block new processes find the kernels of a cache, which is a folder or an archive of one."""
    if cache is None:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="ghost-ops-kernels-") as folder:
        if cache.is_dir():
            folder = cache.resolve()
            kernel_cache.relocate(folder)
        else:
            kernel_cache.unpack(cache, Path(folder))
        before = os.environ.get("TRITON_CACHE_DIR")
        os.environ["TRITON_CACHE_DIR"] = str(folder)
        try:
            yield
        finally:
            os.environ.pop("TRITON_CACHE_DIR")
            if before is not None:
                os.environ["TRITON_CACHE_DIR"] = before


def show(record: Record, console: Console) -> None:
    table = Table(
        "part", "status", "s", "reason", title=f"{record.path.name}: {'ok' if record.data['ok'] else 'not ok'}"
    )
    for row in record.data["parts"]:
        table.add_row(row["part"], row["status"], f"{row['seconds']:.0f}", row["reason"][:300])
    console.print(table)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=MINUTES, show_default=True, help="In all.")
@click.option("--part", "names", multiple=True, type=click.Choice([p.name for p in PARTS]), help="Default: all.")
@click.option(
    "--cache",
    type=click.Path(exists=True, path_type=Path),
    help="Kernels from compile_ahead.py: a folder or its --pack.",
)
@click.option("--commit", help="For a tree without its .git.")
@click.option("--dry-run", "dry", is_flag=True, help="Once, tiny, on the CPU, into a temporary folder: does it work?")
@click.option("--out", type=click.Path(path_type=Path), help="A folder. Default: benchmarks/results.")
def main(
    minutes: float, names: tuple[str, ...], cache: Path | None, commit: str | None, dry: bool, out: Path | None
) -> None:
    """Check results, times and launches on a CUDA device within a few minutes."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the workers on the way out
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    out = out or (Path(tempfile.mkdtemp()) if dry else ROOT / "benchmarks" / "results")
    parts = [part for part in PARTS if not names or part.name in names]
    with triton_cache(cache):
        record = check(parts, {"dry": dry, "commit": commit, "cache": cache is not None}, out, minutes, console)
    show(record, console)
    raise SystemExit(0 if record.data["ok"] else 1)


if __name__ == "__main__":
    main()
