"""The command line as a whole."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import ghost_ops
from ghost_ops.cli import main

from .command import invoke

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = "info", "verify", "bench", "profile", "explain", "freeze", "export", "convert", "demo"


def test_version():
    assert invoke("--version").output.strip().endswith(f"version {ghost_ops.__version__}")


def test_every_command_has_help_with_examples():
    assert tuple(main.commands) == COMMANDS
    for name in COMMANDS:
        result = invoke(name, "--help")
        assert result.exit_code == 0 and f"ghost-ops {name} " in result.stdout.partition("Examples:")[2]
        assert "{MODEL}" not in result.stdout


def test_a_command_is_imported_without_what_it_runs():
    """So that --help, which imports all of them, is fast."""
    heavy = "timm", "matplotlib", "ghost_ops.bench.run", "ghost_ops.profiling.run", "torch.utils.flop_counter"
    code = f"import sys, ghost_ops.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_missing_packages_are_named_before_work_begins(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for args, extra in ((("bench", "--plot", "x.png"), "bench"), (("demo",), "demo")):
        result = invoke(*args)
        assert result.exit_code == 1 and f'pip install "ghost-ops[{extra}]"' in result.output


def test_python_m_is_the_same():
    command = [sys.executable, "-m", "ghost_ops", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and all(f"  {name} " in done.stdout for name in COMMANDS)
