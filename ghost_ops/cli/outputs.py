"""Files that commands write: in a folder of their own first, and in their place when they are right."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click


def check_folder(path: str | Path) -> None:
    """Fail where the folder of a file to be written is missing, or the path is a folder."""
    path = Path(path)
    if path.is_dir():
        raise click.ClickException(f"{path} is a folder: expected the name of a file")
    if not path.parent.is_dir():
        raise click.ClickException(f"{path} cannot be written: the folder {path.parent} does not exist")


def check_output(path: Path, force: bool, *suffixes: str) -> None:
    """Fail before any work where a file cannot be written, or exists and may not be overwritten.

    Args:
        suffixes: those that the command knows; the files of all of them are looked at.
    """
    if path.suffix not in suffixes:
        raise click.ClickException(f"{path}: expected a name that ends in {' or '.join(suffixes)}")
    check_folder(path)
    if path.exists() and not force:
        raise click.ClickException(f"{path} exists: --force overwrites it")


@contextmanager
def placed(path: Path, force: bool) -> Iterator[Path]:
    """Yields a path of the same name in a folder beside; what is written there takes its place when the block ends.

    An error in the block leaves everything as it was.
    """
    try:
        folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=".ghost-ops-")
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}") from error
    with folder as name:
        yield Path(name) / path.name
        made = sorted(Path(name).iterdir())
        for file in made:
            target = path.parent / file.name
            if target.exists() and not force:  # made since, or a second file of a format
                raise click.ClickException(f"{target} exists: --force overwrites it")
        for file in made:
            os.replace(file, path.parent / file.name)
