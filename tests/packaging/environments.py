"""Environments of their own: made empty, given a wheel, and tested away from the checkout with the short tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# A minute in all. They touch torch.compile, autograd, opcheck, pickles, fused and frozen nets, and
# need no other net's package, no development extension, and nothing else of the checkout.
SHORT = (
    "tests/backends/test_registry.py",
    "tests/cli/test_explain.py",
    "tests/cli/test_info.py",
    "tests/models/test_checkpoint.py",
    "tests/nn/test_ghost_module.py",
    "tests/nn/test_versions.py",
    "tests/ops/test_bad_input.py",
    "tests/ops/test_inference.py",
    "tests/ops/test_registration.py::test_opcheck",
    "tests/ops/test_registration.py::test_compile_fullgraph",
    "tests/ops/test_registration.py::test_compiled_autograd",
    "tests/packaging/test_installed.py",
    "tests/program/test_format.py",
    "tests/program/test_results.py",
    "tests/test_moved.py",
)
NEEDED = ("pytest", "hypothesis", "safetensors")
ABOUT = (
    "import platform, torch, ghost_ops; from ghost_ops.backends import native; "
    "print(platform.python_version(), torch.__version__, ghost_ops.__version__, native.isa(), ghost_ops.__file__)"
)


class Failed(Exception):
    """Says which command failed, with the end of what it printed."""


def run(*command: str | Path, cwd: Path, **settings: str) -> str:
    """The standard output of a command that must succeed, without the settings and packages of this process."""
    own = ("GHOST_OPS_", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    words = list(map(str, command))
    done = subprocess.run(words, cwd=cwd, env={**inherited, **settings}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"{' '.join(words)} returned {done.returncode}:\n{done.stderr[-3000:]}\n{done.stdout[-6000:]}")
    return done.stdout


def counts(said: str) -> str:
    """What pytest's last line says of results, without warnings and time; "failed" where it says nothing."""
    lines = said.strip().splitlines()
    return ", ".join(re.findall(r"\d+ (?:passed|skipped|failed|errors?)", lines[-1] if lines else "")) or "failed"


class Environment:
    """An environment without packages, made by an interpreter in a folder that must not exist."""

    def __init__(self, folder: Path, interpreter: str | Path = sys.executable):
        self.folder = folder
        folder.mkdir(parents=True)
        run(interpreter, "-m", "venv", folder / "environment", cwd=folder)
        self.python = folder / "environment" / "bin" / "python"
        self.install("--upgrade", "pip")

    def install(self, *arguments: str | Path) -> None:
        run(self.python, "-m", "pip", "-q", "--disable-pip-version-check", "install", *arguments, cwd=self.folder)

    def about(self) -> tuple[str, str, str, str]:
        """The versions of Python, torch and ghost_ops, and the instruction set of the kernels, or "none"."""
        *versions, where = run(self.python, "-W", "ignore", "-c", ABOUT, cwd=self.folder).split()
        if not Path(where).is_relative_to(self.folder):
            raise Failed(f"expected the installed ghost_ops, got the one in {where}")
        return tuple(versions)

    def test(self, files: tuple[str, ...] = SHORT) -> str:
        """Run these tests; how many of each result, such as "812 passed, 3 skipped". Raises Failed."""
        copy = self.folder / "tested"
        if not copy.exists():
            self.install(*NEEDED)
            shutil.copytree(ROOT / "tests", copy / "tests", ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copy2(ROOT / "pyproject.toml", copy)
        out = run(self.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, cwd=copy)
        return counts(out)

    def remove(self) -> None:
        shutil.rmtree(self.folder)
