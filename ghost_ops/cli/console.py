"""What commands print: results on standard output, progress and errors on standard error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

WIDTH = 180  # columns of tables that go to a file or a pipe


def console() -> Console:
    """A new console for each use, since standard output may be replaced; wide where it is not a terminal."""
    made = Console()
    return made if made.is_terminal else Console(width=WIDTH)


class Steps:
    """A progress bar of steps, each with a text.

    Args:
        progress: shows it.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress, self._begun = progress, False

    def begin(self, what: str) -> None:
        """The step before is done, and this one begins."""
        self._progress.update(0, advance=int(self._begun), description=what)
        self._begun = True

    def tell(self, what: str) -> None:
        """Say what is being done within a step."""
        self._progress.update(0, description=what)

    def advance(self) -> None:
        self._progress.advance(0)


@contextmanager
def progress(total: int) -> Iterator[Steps]:
    """On standard error, so that standard output stays for results."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        shown.add_task("", total=total)
        yield Steps(shown)


def echo_json(value: object) -> None:
    click.echo(to_json(value))


def to_json(value: object) -> str:
    """Indented JSON, in which numbers that JSON does not have are null."""
    from ..bench.report import finite

    return json.dumps(finite(value), indent=1)


def write_json(value: object, path: str) -> None:
    """Write to a file, or to standard output where path is "-"."""
    if path == "-":
        echo_json(value)
        return
    with failing(f"{path} cannot be written", OSError):
        Path(path).write_text(to_json(value) + "\n")


def one_line(error: BaseException) -> str:
    """An error in one line, with its type where its text says little."""
    text = str(error).strip().splitlines()
    first = " ".join(text[0].split()) if text else ""
    return first if isinstance(error, click.ClickException) else f"{type(error).__name__}: {first}".removesuffix(": ")


@contextmanager
def failing(what: str, errors: type[Exception] | tuple[type[Exception], ...] = Exception) -> Iterator[None]:
    """Within the block, turn errors into one line that begins with ``what``.

    Args:
        errors: which.
    """
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except errors as error:
        raise click.ClickException(f"{what}: {one_line(error)}") from error


def need(package: str, extra: str = "bench", command: str | None = None) -> None:
    """Fail with the command that installs it where an optional package is missing."""
    from ..bench import machine

    try:
        machine.need(package, extra, command)
    except machine.Unavailable as why:
        raise click.ClickException(str(why)) from why
