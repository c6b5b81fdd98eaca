"""Tries one wheel with every version of Python and torch that is claimed: ``make versions``.

    python -m tests.packaging.matrix WHEEL [--python 3.10 ...] [--torch 2.10 ...] [--log FILE] [--folder FOLDER]

Makes one environment for each Python, in FOLDER, and installs the wheel there once, after the first torch. The other
versions of torch are then put in the place of that one, up and down, under the installed wheel. After each the short
tests run (environments.py). The wheel without kernels is tried last, with the last Python and torch. Prints the table
of docs/versions.md, and fails where a test fails or a Python is missing. Settings of pip, such as PIP_INDEX_URL, say
where torch comes from.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .environments import ROOT, Environment, Failed, counts, run

PYTHONS = "3.10", "3.11", "3.12", "3.13"
TORCHES = "2.10", "2.14", "2.11", "2.13"  # up, down, up
HEAD = "| Python | torch | how it came | kernels | short tests |", "|---|---|---|---|---|"


def find_python(version: str) -> str | None:
    """The interpreter of that version: one on PATH that starts, else one that pyenv has made."""
    built = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"), reverse=True)
    for candidate in (shutil.which(f"python{version}"), *map(str, built)):
        if candidate and not subprocess.run([candidate, "--version"], capture_output=True, check=False).returncode:
            return candidate
    return None


def rows(wheel: Path, pythons: list[str], torches: list[str], folder: Path) -> Iterator[tuple[str, bool]]:
    """Rows of the table as they are found, each with whether it is as it should be."""
    for version in pythons:
        interpreter = find_python(version)
        if interpreter is None:
            yield row(version, "", "", "", "this Python was not found"), False
            continue
        environment, before = Environment(folder / version, interpreter), None
        for torch in torches:
            how = "with the wheel" if before is None else f"after {before}"
            install = [[f"torch=={torch}.*"], *([[wheel]] if before is None else [])]
            yield tried(environment, torch, how, install)
            before = torch
        if version == pythons[-1]:
            install = [["--force-reinstall", "--no-deps", pure_wheel(folder / "pure")]]
            yield tried(environment, before, "pure Python", install)
        environment.remove()


def tried(environment: Environment, torch: str, how: str, install: list[list]) -> tuple[str, bool]:
    """The row of an environment after these calls of pip, and whether it is as it should be."""
    python = environment.folder.name
    isa = ""
    try:
        for arguments in install:
            environment.install(*arguments)
        python, torch, _, isa = environment.about()
        if (isa == "none") != (how == "pure Python"):
            raise Failed(f"expected kernels but in pure Python, got {isa}")
        return row(python, torch, how, isa, environment.test()), True
    except Failed as failed:
        print(failed, file=sys.stderr)
        return row(python, torch, how, isa, counts(str(failed))), False


def pure_wheel(folder: Path) -> Path:
    """The wheel that is built where there is no compiler."""
    copy = folder / "checkout"
    copy.mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, copy)
    for name in ("csrc", "ghost_ops"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    build = ("-m", "pip", "-q", "wheel", "--no-deps", "--wheel-dir", folder, copy)
    run(sys.executable, *build, cwd=folder, GHOST_OPS_NATIVE="0")
    (wheel,) = folder.glob("*-py3-none-any.whl")
    return wheel


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--python", nargs="+", default=PYTHONS)
    parser.add_argument("--torch", nargs="+", default=TORCHES)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--folder", type=Path)
    wishes = parser.parse_args()
    if not wishes.wheel.is_file():
        parser.error(f"expected a wheel, got {wishes.wheel}")
    commit = run("git", "log", "-1", "--format=commit %h", cwd=ROOT).strip()
    lines, good = [f"{commit}, {wishes.wheel.name}", "", *HEAD], True
    print(*lines, sep="\n", flush=True)
    with tempfile.TemporaryDirectory(dir=wishes.folder) as folder:
        for line, right in rows(wishes.wheel.resolve(), wishes.python, wishes.torch, Path(folder)):
            print(line, flush=True)
            lines.append(line)
            good &= right
    if wishes.log is not None:
        wishes.log.write_text("\n".join(lines) + "\n")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
