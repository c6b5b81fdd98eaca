"""What is not allowed: one table of what was given and of the exact message; afterwards everything is as it was.

A row is a piece of Python over the names of ``things``, a command, or a variable of the environment. A
message is the error's class and text; of a command its last line.
"""

from __future__ import annotations

import shlex
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from ghost_ops.backends import environment
from ghost_ops.cli import main

from ..examples.conftest import train  # noqa: F401  (a fixture)
from . import rows_of_functions, rows_of_nets, rows_of_programs, things

ROWS = rows_of_functions.ROWS | rows_of_nets.ROWS | rows_of_programs.ROWS


NAMES = (
    "state.pth list.pth object.pth empty.pth notes.txt noise.pth noise.safetensors kept.pth kept.pt2 folder.pth".split()
)


@pytest.fixture(scope="session")
def every_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_files()
    return folder


@pytest.fixture
def files(given, every_file, tmp_path, monkeypatch):
    """The current directory, with the files that the row names."""
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        if name in given:
            copy = shutil.copytree if name == "folder.pth" else shutil.copy
            copy(every_file / name, name)


def make_files() -> None:
    torch.save(things.MAKERS["state"](), "state.pth")
    torch.save([1, 2], "list.pth")
    torch.save(torch.nn.ReLU(), "object.pth")
    Path("empty.pth").touch()
    Path("notes.txt").write_text("notes")
    for name in ("noise.pth", "noise.safetensors", "kept.pth", "kept.pt2"):
        Path(name).write_bytes(b"\x10 nothing that is safe")
    Path("folder.pth").mkdir()


def said_by_python(given: str) -> str:
    made = things.things_of(given)
    before = things.fingerprint(made)
    with pytest.raises(Exception) as raised:
        eval(given, things.MODULES | made)
    assert things.fingerprint(made) == before, "an argument has changed"
    return f"{raised.type.__name__}: {raised.value}"


def said_by(command, arguments: list[str]) -> str:
    result = CliRunner().invoke(command, arguments)
    assert isinstance(result.exception, SystemExit) and result.exit_code, (result.output, result.exception)
    return " ".join(result.output.partition("Error: ")[2].split())


def said(given: str, request) -> str:
    program, *arguments = shlex.split(given) if given.startswith(("ghost-ops ", "train.py ")) else [given]
    if program == "ghost-ops":
        return said_by(main, arguments)
    if program == "train.py":
        return said_by(request.getfixturevalue("train").main, arguments)
    if given.startswith("GHOST_OPS_"):
        with pytest.raises(ValueError) as raised, pytest.MonkeyPatch.context() as patch:
            patch.setenv(*given.split("=", 1))
            environment.read()
        return f"ValueError: {raised.value}"
    return said_by_python(given)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "given, message", [(given, message) for area in ROWS.values() for given, message in area.items()]
)
def test_bad_input(given, message, files, request):
    before = things.surroundings()
    assert said(given, request) == message
    assert things.surroundings() == before, "something else has changed"


def test_the_table_is_large_and_has_every_area():
    counts = Counter({area: len(entries) for area, entries in ROWS.items()})
    assert counts.total() > 150 and min(counts.values()) >= 10, counts
